"""The command that installs what an extra brings, as messages name it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path


def pip_install(extra: str) -> str:
    """``pip install 'stepfuse[export]'``; of the folder, where stepfuse was installed from a clone that is still there.

    Args:
        extra: ``export``, ``text``, ``kernels``, ...
    """
    return "pip install " + shlex.quote(f"{_clone() or 'stepfuse'}[{extra}]")


def _clone() -> Path | None:
    """The folder that pip has installed stepfuse from (PEP 610); None where it came from an index."""
    from importlib.metadata import distributions  # slow to import, as urllib is, and needed in errors alone
    from urllib.parse import unquote, urlsplit

    try:  # what a build has left in the working directory is a distribution too, without the file
        said = next(filter(None, (one.read_text("direct_url.json") for one in distributions(name="stepfuse"))))
        url = urlsplit(json.loads(said)["url"])
    except (StopIteration, OSError, ValueError, TypeError, KeyError):
        return None
    folder = Path(unquote(url.path))
    return folder if url.scheme == "file" and (folder / "pyproject.toml").is_file() else None
