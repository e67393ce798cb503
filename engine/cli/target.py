"""Where a command writes: tried before anything is drawn, and nothing there is replaced unless it may be."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from stepfuse.bundle.folder import MANIFEST
from stepfuse.files.atomic import scratch_beside

STDOUT = "-"


@dataclass(frozen=True)
class Target:
    """A file that a command will write, or standard output.

    Attributes:
        path: The file; None is standard output.
        suffix: What its name ends in, which chooses the format; lower case.
    """

    path: Path | None
    suffix: str

    @property
    def name(self) -> str:
        """How it is reported."""
        return "standard output" if self.path is None else str(self.path)

    @property
    def is_stdout(self) -> bool:
        """Whether it is standard output."""
        return self.path is None

    def named(self, name: object) -> Target:
        """``cat.png`` as ``cat-NAME.png``, of one picture among several; standard output as it is."""
        return self if self.path is None else replace(self, path=self.path.with_stem(f"{self.path.stem}-{name}"))

    @property
    def exists(self) -> bool:
        """Whether there is a regular file to be replaced; a device or a pipe is written to."""
        return self.path is not None and self.path.is_file()

    def prepare(self, *, force: bool) -> None:
        """Tries to write it, and leaves nothing: what is drawn for minutes has to have its place.

        Raises:
            FileExistsError: If the file is there, and ``force`` is not set.
            OSError: If no file can be written there.
            ValueError: If standard output is a terminal.
        """
        prepare_all([self], force=force)

    def write(self, save: Callable[[Path], object]) -> None:
        """Has the file written.

        Args:
            save: Writes the file that it is given, all of it or nothing.
        """
        with _naming(self.name):
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                save(self.path)
            else:
                self._write_to_stdout(save)

    def _write_to_stdout(self, save: Callable[[Path], object]) -> None:
        with TemporaryDirectory() as folder:
            file = Path(folder) / f"output{self.suffix}"
            save(file)
            sys.stdout.flush()
            sys.stdout.buffer.write(file.read_bytes())
            sys.stdout.buffer.flush()


def target_of(output: str, suffixes: Sequence[str], *, format: str | None = None, of: str = "") -> Target:
    """The target that ``--output`` names, ``-`` being standard output.

    Args:
        output: A path, or ``-``.
        suffixes: What it may end in, the default of standard output first.
        format: What standard output gets, a suffix without its dot.
        of: Words behind the suffixes, such as ``" for a grid"``.

    Raises:
        ValueError: If it ends in nothing of that, or a format is given for a file.
        IsADirectoryError: If it is a folder.
    """
    if not output:
        raise ValueError("--output must name a file, got ''")
    formats = [suffix.removeprefix(".") for suffix in suffixes]
    if output == STDOUT:
        if format is not None and format not in formats:
            raise ValueError(f"--format must be {_either(formats)}{of}, got {format!r}")
        return Target(None, f".{format or formats[0]}")
    if format is not None:
        raise ValueError(f"--format is for --output - alone: a file's suffix says it, got {format!r}")
    if Path(output).is_dir():
        raise IsADirectoryError(f"{output} is a folder: name a file in it")
    suffix = Path(output).suffix.lower()
    if suffix not in suffixes:
        raise ValueError(f"--output must end in {_either(suffixes)}{of}, got {Path(output).name or output!r}")
    return Target(Path(output), suffix)


def prepare_all(targets: Iterable[Target], *, force: bool, way_out: str = "") -> None:
    """``Target.prepare`` of each; a folder of many is tried once.

    Args:
        targets: The files.
        force: Whether files that are there may be replaced.
        way_out: What else the error of a file that is there offers.

    Raises:
        FileExistsError: If a file is there, and ``force`` is not set.
        OSError: If a file cannot be written.
        ValueError: If standard output is a terminal.
    """
    folders: dict[Path, Path] = {}
    for one in targets:
        if one.path is None:
            if sys.stdout.isatty():
                raise ValueError("--output - must go to a pipe or a file, standard output is a terminal")
        elif one.exists or not one.path.exists():
            if one.exists and not force:
                raise FileExistsError(_taken(one.path) + way_out)
            file = Path(os.path.realpath(one.path))
            folders.setdefault(file.parent, file)
    for file in folders.values():
        require_writable(file)


def require_writable(path: Path, *, folder: bool = False) -> None:
    """Tries to write a file or folder, in the nearest folder that is there; nothing is left of it.

    Raises:
        OSError: If that is not possible.
    """
    with _naming(str(path)):
        nearest = next(one for one in path.absolute().parents if one.exists())
        if not nearest.is_dir():
            raise NotADirectoryError(f"{nearest} is a file: name a folder")
        longest = os.pathconf(nearest, "PC_NAME_MAX")
        if any(len(os.fsencode(part)) > longest for part in path.parts):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        with scratch_beside(nearest / path.name, folder=folder):
            pass


def require_new_bundle(output: str, *, force: bool) -> Path:
    """The folder of a bundle that is to be written, tried before that takes minutes.

    Raises:
        FileExistsError: If it is there and ``force`` is not set, or it is no bundle.
        OSError: If no folder can be made there.
    """
    path = Path(output)
    if path.exists() and not force:
        raise FileExistsError(_taken(path))
    if path.exists() and not (path / MANIFEST).is_file():
        raise FileExistsError(f"{path} has no {MANIFEST}: only a bundle is replaced")
    require_writable(path, folder=True)
    return path


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Has errors of the system name the file that was to be written, not the scratch file beside it."""
    try:
        yield
    except OSError as error:
        if error.strerror is None or isinstance(error, BrokenPipeError):
            raise
        raise OSError(error.errno, error.strerror, name) from error


def _taken(path: Path) -> str:
    return f"{path} exists already: give --force to replace it"


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
