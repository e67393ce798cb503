"""A checked folder: ``manifest.json`` lists every other file with its size and SHA-256. Nothing is unpickled.

Bundles and judges are such folders. What lies under ``plans/`` is a cache: added and removed while others read, listed
like the rest, but not missed where it is gone.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from stepfuse.errors import BundleError

T = TypeVar("T")

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
CACHE = "plans/"


def read_folder(path: Path, *, verify: bool = True) -> dict[str, Any]:
    """The manifest of a folder whose every file is as it says; a cached file that is gone is left out.

    Args:
        path: The folder.
        verify: Whether checksums are compared; False trusts the files' sizes.

    Raises:
        BundleError: If anything is not as the manifest says, or a file is not listed.
    """
    found = _found(path)  # before the manifest, which lists a cached file before it is there
    manifest = _read_manifest(path)
    listed = entry(path, manifest, "files", dict)
    files = {}
    for name, expected in listed.items():
        try:
            _check_file(path, name, expected, verify=verify)
            files[name] = expected
        except FileNotFoundError as error:
            if not name.startswith(CACHE):
                raise BundleError(
                    f"{path / name} is listed in the manifest and must be a file of the bundle: it is missing"
                ) from error
    _refuse_unlisted(path, found, listed)
    return {**manifest, "files": files}


def entry(path: Path, manifest: Mapping[str, Any], key: str, kind: type) -> Any:
    """A value of the manifest, refused if it is of another kind."""
    value = manifest.get(key)
    if not isinstance(value, kind):
        raise BundleError(f"{path / MANIFEST}: {key} must be a {kind.__name__}, got {value!r}")
    return value


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

        Args:
            manifest: All but ``format_version``; what stands under ``files`` is replaced.
            check: Reads the folder back. The checksums have just been computed: it need not compute them again.

        Returns:
            What ``check`` returns.

        Raises:
            BundleError: If ``target`` was made meanwhile and is not to be replaced.
        """
        files = {
            file.relative_to(self.path).as_posix(): {"size": file.stat().st_size, "sha256": _sha256(file)}
            for file in sorted(self.path.rglob("*"))
            if file.is_file()
        }
        text = json.dumps({"format_version": FORMAT_VERSION, **manifest, "files": files}, indent=2)
        (self.path / MANIFEST).write_text(text + "\n", encoding="utf-8")
        self.path.chmod(0o755)  # mkdtemp's own mode would lock other users out
        found = check(self.path)
        _require_replaceable(self.target, overwrite=self.overwrite)
        _put_in_place(self.path, self.target)
        return found


@contextmanager
def new_folder(target: Path, *, overwrite: bool) -> Iterator[NewFolder]:
    """A checked folder to be written: at ``target`` there is all of it once it is finished, and nothing before.

    Leaving the context without ``finish`` removes what was written.

    Args:
        target: The folder to make.
        overwrite: Whether a folder with a manifest that is there already is replaced.

    Raises:
        BundleError: If the folder is there already and ``overwrite`` is not set, or it has no manifest.
    """
    _require_replaceable(target, overwrite=overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield NewFolder(scratch, target, overwrite)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


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


def copy_files(folder: Path, files: Mapping[str, Any]) -> None:
    """Copies files into a folder, by their names there.

    Raises:
        BundleError: If a name could lead out of the folder.
    """
    for name, source in files.items():
        copy = _inside(folder, name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a folder's lock, which is the only one that changes its cache; waits for it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def change_cache(path: Path, add: Mapping[str, bytes | memoryview], remove: Collection[str] = ()) -> None:
    """Adds files under ``plans/`` to a folder, and removes some, in an order that keeps the folder readable meanwhile.

    The manifest lists a file before it is there, and until it is gone. A writer that is killed leaves names of nothing,
    which the next one drops. Hold ``locked(path)``.

    Args:
        path: The folder; what is written passes through a scratch folder beside it.
        add: Contents by name; a name that is there already keeps its content, so a name must stand for its content.
        remove: Names to remove.

    Raises:
        BundleError: If a name is not under ``plans/``, or the manifest is not readable.
    """
    for name in (*add, *remove):
        if not (_inside(path, name) and name.startswith(CACHE)):
            raise BundleError(f"{path}: what is cached must be under {CACHE}, got {name!r}")
    manifest = _read_manifest(path)
    listed = entry(path, manifest, "files", dict)
    files = {name: value for name, value in listed.items() if name not in remove and not _gone(path, name)}
    new = {name: content for name, content in add.items() if name not in files}
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        for index, content in enumerate(new.values()):
            _write_through(scratch / str(index), content)
        for name in remove:
            (path / name).unlink(missing_ok=True)
        files |= {
            name: {"size": memoryview(content).nbytes, "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in new.items()
        }
        text = json.dumps({**manifest, "files": files}, indent=2) + "\n"
        _write_through(scratch / MANIFEST, text.encode())
        shutil.copymode(path / MANIFEST, scratch / MANIFEST)
        (scratch / MANIFEST).replace(path / MANIFEST)
        for index, name in enumerate(new):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / str(index)).replace(path / name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_through(file: Path, content: bytes | memoryview) -> None:
    """Writes a file to the disk itself: a rename must not overtake what it names."""
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _require_replaceable(target: Path, *, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise BundleError(f"{target} exists already: pass overwrite=True to replace it")
    if target.exists() and not (target / MANIFEST).is_file():
        raise BundleError(f"{target} has no {MANIFEST}: only a folder with one is replaced")


def _put_in_place(scratch: Path, target: Path) -> None:
    """Renames ``scratch`` to ``target``. What was there before is gone then, or back in its place if that fails."""
    if not target.exists():
        scratch.rename(target)
        return
    retired = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    target.rename(retired / target.name)
    try:
        scratch.rename(target)
    except BaseException:
        (retired / target.name).rename(target)
        retired.rmdir()
        raise
    shutil.rmtree(retired, ignore_errors=True)


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{file} is not readable JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise BundleError(f"{file} must hold an object, got {type(manifest).__name__}")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise BundleError(f"{file}: format_version must be {FORMAT_VERSION}, got {version!r}")
    if manifest.get("dtype") != "float32":
        raise BundleError(f"{file}: dtype must be 'float32', got {manifest.get('dtype')!r}")
    return manifest


def _inside(path: Path, name: str) -> Path:
    """The file's path, refused if the name could lead out of the folder."""
    parts = PurePosixPath(name)
    if not name or parts.is_absolute() or ".." in parts.parts or "\\" in name or name == MANIFEST:
        raise BundleError(f"{path}: a file's name must stay inside the folder, got {name!r}")
    return path / name


def _check_file(path: Path, name: str, expected: Any, *, verify: bool) -> None:
    file = _inside(path, name)
    if not isinstance(expected, dict) or not {"size", "sha256"} <= expected.keys():
        raise BundleError(f"{path / MANIFEST}: files[{name!r}] must give size and sha256, got {expected!r}")
    try:
        target, exists = file.resolve(), file.is_file()
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} must be a name that a file can have: {error}") from error
    if not target.is_relative_to(path.resolve()):
        raise BundleError(f"{file} must stay inside the folder, but leads to {target}")
    if not exists:
        raise FileNotFoundError(file)
    size = file.stat().st_size
    if size != expected["size"]:
        raise BundleError(
            f"{file}: size must be {expected['size']} bytes, got {size}: the file is truncated or changed"
        )
    if verify and (digest := _sha256(file)) != expected["sha256"]:
        raise BundleError(f"{file}: sha256 must be {expected['sha256']}, got {digest}: the file was changed")


def _found(path: Path) -> set[str]:
    return {file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir()}


def _gone(path: Path, name: str) -> bool:
    return name.startswith(CACHE) and not os.path.lexists(_inside(path, name))


def _refuse_unlisted(path: Path, found: set[str], listed: Mapping[str, Any]) -> None:
    """An ONNX file may point to weights in other files: what is not listed is not checked, so it must not be there."""
    if unlisted := sorted(name for name in found - {*listed, MANIFEST} if not _gone(path, name)):
        raise BundleError(f"{path}: every file must be listed in {MANIFEST}, got {', '.join(unlisted)}")


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
