"""Which of the supported CPythons are on this machine: run it to have their paths, one a line, the oldest first."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def supported() -> list[int]:
    """Each N of the CPython 3.N that pyproject.toml asks for."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    [(first, end)] = re.findall(r'^requires-python = ">=3\.(\d+),<3\.(\d+)"$', text, re.MULTILINE)
    return list(range(int(first), int(end)))


def interpreters() -> list[Path]:
    """A CPython of each supported version that PATH or pyenv has, the oldest first; says which are missing."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found = []
    for minor in supported():
        name = f"python3.{minor}"
        known = [shutil.which(name), *sorted(versions.glob(f"3.{minor}.*/bin/{name}"), reverse=True)]
        python = next((Path(path) for path in known if path and usable(Path(path), minor)), None)
        if python:
            found.append(python)
        else:
            print(f"CPython 3.{minor} is missing: there is no {name} with headers and venv here", file=sys.stderr)
    return found


def usable(python: Path, minor: int) -> bool:
    """Whether this is CPython 3.``minor``, with headers and venv. A pyenv shim may lead to no Python at all."""
    code = (
        "import sys, sysconfig, pathlib, ensurepip, venv;"
        "header = pathlib.Path(sysconfig.get_paths()['include'], 'Python.h');"
        f"sys.exit(not (sys.implementation.name == 'cpython' and sys.version_info[1] == {minor} and header.exists()))"
    )
    return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    print(*interpreters(), sep="\n")
