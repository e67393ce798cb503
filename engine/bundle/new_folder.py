"""Writing checked folders: all of one, or nothing, while others read what is in its place and write the same."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from stepfuse.bundle.folder import FORMAT_VERSION, MANIFEST, inside
from stepfuse.bundle.open_file import OpenFile
from stepfuse.errors import BundleError
from stepfuse.files.atomic import locked, move_into_place, scratch_beside, sync

T = TypeVar("T")


@dataclass(frozen=True)
class NewFolder:
    """A checked folder that is being written, beside the place that it takes when it is finished.

    Attributes:
        path: Where its files are written.
        target: The folder that it becomes.
        overwrite: Whether a checked folder that is at ``target`` is replaced.
    """

    path: Path
    target: Path
    overwrite: bool

    def finish(self, manifest: Mapping[str, Any], check: Callable[[Path], T]) -> T:
        """Hashes each file once, writes the manifest, has it checked, and renames the folder to ``target``.

        A reader of ``target`` finds the old folder or the new one. Writers of the same folder take turns.

        Args:
            manifest: All but ``format_version``; what stands under ``files`` is replaced.
            check: Reads the folder back. The checksums have just been computed: it need not compute them again.

        Returns:
            What ``check`` returns.

        Raises:
            BundleError: If ``target`` was made meanwhile and is not to be replaced.
        """
        found = sorted(self.path.rglob("*"))
        files = {file.relative_to(self.path).as_posix(): _hashed(file) for file in found if file.is_file()}
        text = json.dumps({"format_version": FORMAT_VERSION, **manifest, "files": files}, indent=2)
        (self.path / MANIFEST).write_text(text + "\n", encoding="utf-8")
        for one in (self.path / MANIFEST, *(folder for folder in found if folder.is_dir()), self.path):
            sync(one)
        result = check(self.path)
        with locked(self.target.parent):
            _require_replaceable(self.target, overwrite=self.overwrite)
            try:
                move_into_place(self.path, self.target, replace=self.overwrite)
            except FileExistsError as error:
                raise BundleError(_taken(self.target)) from error
        return result


@contextmanager
def new_folder(target: Path, *, overwrite: bool) -> Iterator[NewFolder]:
    """A checked folder to be written: at ``target`` there is all of it once it is finished, and nothing before.

    Leaving the context without ``finish`` removes what was written; what a killed process has left, the next one does.

    Args:
        target: The folder to make.
        overwrite: Whether a folder with a manifest that is there already is replaced.

    Raises:
        BundleError: If the folder is there already and ``overwrite`` is not set, or it has no manifest.
    """
    _require_replaceable(target, overwrite=overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    with scratch_beside(target, folder=True) as scratch:
        yield NewFolder(scratch, target, overwrite)


def write_folder(
    target: Path,
    manifest: Mapping[str, Any],
    fill: Callable[[Path], None],
    check: Callable[[Path], T],
    *,
    overwrite: bool,
) -> T:
    """Writes a checked folder: all of it, or nothing.

    Args:
        target: The folder to make.
        manifest: As in ``NewFolder.finish``.
        fill: Puts the files into the folder it is given.
        check: As in ``NewFolder.finish``.
        overwrite: As in ``new_folder``.

    Returns:
        What ``check`` returns.

    Raises:
        BundleError: As in ``new_folder``.
    """
    with new_folder(target, overwrite=overwrite) as folder:
        fill(folder.path)
        return folder.finish(manifest, check)


def copy_files(folder: Path, files: Mapping[str, str | os.PathLike[str] | OpenFile]) -> None:
    """Copies files into a folder, by their names there; open files as they were checked.

    Raises:
        BundleError: If a name could lead out of the folder, or an open file was written to since it was checked.
    """
    for name, source in files.items():
        copy = inside(folder, name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, OpenFile):
            shutil.copyfile(source.link, copy)
            source.require_unchanged()
        else:
            shutil.copyfile(source, copy)


def _hashed(file: Path) -> dict[str, Any]:
    opened = OpenFile(file)
    found = {"size": opened.size, "sha256": opened.digest()}
    sync(file)
    return found


def _require_replaceable(target: Path, *, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise BundleError(_taken(target))
    if target.exists() and not (target / MANIFEST).is_file():
        raise BundleError(f"{target} has no {MANIFEST}: only a folder with one is replaced")


def _taken(target: Path) -> str:
    return f"{target} exists already: pass overwrite=True to replace it"
