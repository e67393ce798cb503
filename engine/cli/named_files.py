"""``NAME=FILE`` and ``NAME=FILE:SCALE``, as options of the command line take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class NamedFile:
    """A file with the name it goes by.

    Attributes:
        path: Where it lies.
        scale: The number behind the colon; None where there is none.
    """

    path: Path
    scale: float | None


def named_files(option: str, texts: Sequence[str] | None) -> dict[str, NamedFile]:
    """Files by name.

    Args:
        option: What the texts were given by, such as ``--lora``.
        texts: As they are typed.

    Raises:
        ValueError: If one is not NAME=FILE or NAME=FILE:SCALE, or a name comes twice.
    """
    found: dict[str, NamedFile] = {}
    for text in texts or ():
        name, separator, rest = text.partition("=")
        if not (separator and name and rest):
            raise ValueError(f"{option} must be NAME=FILE or NAME=FILE:SCALE, got {text!r}")
        if name in found:
            raise ValueError(f"{option} {name} must be given once, got {text!r} too")
        found[name] = _parsed(rest)
    return found


def _parsed(text: str) -> NamedFile:
    file, separator, scale = text.rpartition(":")
    try:
        return NamedFile(Path(file), float(scale if separator and file else ""))
    except ValueError:  # a colon of the file's name, or none
        return NamedFile(Path(text), None)
