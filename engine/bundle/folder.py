"""A checked folder: ``manifest.json`` lists every other file with its size and SHA-256. Nothing is unpickled.

Bundles and judges are such folders. A folder is opened once, and so is each of its files: what is used is what was
checked, while others replace the folder or files in it. What lies under ``plans/`` is a cache: added and removed while
others read, listed like the rest, but not missed where it is gone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from stepfuse.bundle.onnx_file import OnnxFile
from stepfuse.bundle.open_file import OpenFile, check_meanwhile
from stepfuse.display import brief
from stepfuse.errors import BundleError
from stepfuse.files.strict_json import parse_json

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
CACHE = "plans/"

MOST_BYTES = 8 << 20  # of a manifest
MOST_FILES = 128  # that stay open; those of the cache do not
_MOST_FOUND, _DEEPEST = 4096, 8  # files in a folder, folders in folders
LARGE = 1 << 20  # bytes of a file whose checksum is compared while it is used
_TRIES = 50  # of a reader whose folder is replaced meanwhile


@dataclass(frozen=True)
class CheckedFolder:
    """A folder whose every file is as its manifest says.

    Attributes:
        path: The folder.
        manifest: What ``manifest.json`` says; under ``files`` are those that are there.
        opened: The files, but for those of the cache, by name.
        networks: The ONNX files among them, each with those that hold weights of it.
    """

    path: Path
    manifest: dict[str, Any]
    opened: Mapping[str, OpenFile]
    networks: Mapping[str, OnnxFile]


def settle_all(opened: Mapping[str, OpenFile]) -> None:
    """Waits until these files are checked.

    Raises:
        BundleError: If a checksum is another, or one cannot be read.
    """
    for file in opened.values():
        try:
            file.settle()
        except OSError as error:
            raise BundleError(f"{file.path} is not readable: {error}") from error


def open_folder(path: Path, *, verify: bool = True) -> CheckedFolder:
    """Opens a folder and checks it, all of it before or after its replacement by another.

    Args:
        path: The folder. A file in it may be a link, to a file in the folder or to one under ``blobs`` of the hub's
            cache, where the folder lies under its ``snapshots``.
        verify: Whether checksums are compared; False trusts the files' sizes.

    Raises:
        BundleError: If anything is not as the manifest says, a file is not listed, or an ONNX file names one that is
            not.
    """
    folder = open_folder_to_use(path, verify=verify)
    settle_all(folder.opened)
    return folder


def open_folder_to_use(path: Path, *, verify: bool = True) -> CheckedFolder:
    """The same, but checksums of files from 1 MiB on are compared meanwhile: ``settle_all`` waits for them."""
    for _ in range(_TRIES):
        with _open(path) as handle:
            try:
                return _checked(path, handle, verify=verify)
            except BundleError:
                if _is_at(path, handle):
                    raise
    raise BundleError(f"{path} was replaced {_TRIES} times while it was read")


def read_folder(path: Path, *, verify: bool = True) -> dict[str, Any]:
    """The manifest of a folder whose every file is as it says; a cached file that is gone is left out.

    Arguments and errors are those of ``open_folder``.
    """
    return open_folder(path, verify=verify).manifest


def _network(path: Path, opened: Mapping[str, OpenFile], name: str) -> OnnxFile:
    def open_data(other: str) -> OpenFile:
        if other not in opened:
            raise BundleError(f"{path / name}: external data must be a file that the manifest lists, got {other!r}")
        return opened[other]

    return OnnxFile.of(opened[name], PurePosixPath(name).parent.as_posix(), open_data)


def entry(path: Path, manifest: Mapping[str, Any], key: str, kind: type) -> Any:
    """A value of the manifest, refused if it is of another kind."""
    value = manifest.get(key)
    if not isinstance(value, kind):
        raise BundleError(f"{path / MANIFEST}: {key} must be a {kind.__name__}, got {brief(value)}")
    return value


def read_manifest(path: Path, folder: int | None = None) -> dict[str, Any]:
    """A folder's manifest, of this format and ``float32``.

    Args:
        path: The folder.
        folder: Its descriptor, where it is open.

    Raises:
        BundleError: If it cannot be read, is larger than 8 MiB, or is no such manifest.
    """
    file = path / MANIFEST
    try:
        opened = OpenFile(file, name=None if folder is None else MANIFEST, folder=folder)
        if opened.size > MOST_BYTES:
            raise BundleError(f"{file} must have at most {MOST_BYTES} bytes, got {opened.size}")
        manifest = parse_json(opened.read())
    except BundleError:
        raise
    except (OSError, ValueError, MemoryError) as error:
        raise BundleError(f"{file} is not readable JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise BundleError(f"{file} must hold an object, got {type(manifest).__name__}")
    version = manifest.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise BundleError(f"{file}: format_version must be {FORMAT_VERSION}, got {brief(version)}")
    if manifest.get("dtype") != "float32":
        raise BundleError(f"{file}: dtype must be 'float32', got {brief(manifest.get('dtype'))}")
    return manifest


def inside(path: Path, name: str) -> Path:
    """A file's path, refused if its name could lead out of the folder."""
    parts = PurePosixPath(name)
    if not name or parts.is_absolute() or ".." in parts.parts or "\\" in name or name == MANIFEST:
        raise BundleError(f"{path}: a file's name must stay inside the folder, got {brief(name)}")
    return path / name


def gone(path: Path, name: str) -> bool:
    """Whether a file of the cache is not there."""
    return name.startswith(CACHE) and not os.path.lexists(inside(path, name))


@contextmanager
def _open(path: Path) -> Iterator[int]:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} must be a folder that can be listed: {error}") from error
    try:
        yield handle
    finally:
        os.close(handle)


def _is_at(path: Path, handle: int) -> bool:
    """Whether a path still leads to the folder that was opened there."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except OSError:
        return False


def _checked(path: Path, handle: int, *, verify: bool) -> CheckedFolder:
    found = _found(path, handle)  # before the manifest, which lists a cached file before it is there
    manifest = read_manifest(path, handle)
    listed = entry(path, manifest, "files", dict)
    files, opened = {}, {}
    for name, expected in listed.items():
        try:
            file = _check_file(path, handle, name, expected, verify=verify)
        except FileNotFoundError as error:
            if not name.startswith(CACHE):
                raise BundleError(
                    f"{path / name} is listed in the manifest and must be a file of the bundle: it is missing"
                ) from error
            continue
        files[name] = expected
        if not name.startswith(CACHE):
            opened[name] = file
        if len(opened) > MOST_FILES:
            raise BundleError(f"{path / MANIFEST}: files must be at most {MOST_FILES}, got {len(listed)}")
    pinned = Path(f"/proc/self/fd/{handle}")
    if unlisted := sorted(name for name in found - {*listed, MANIFEST} if not gone(pinned, name)):
        more = f" and {len(unlisted) - 20} more" if len(unlisted) > 20 else ""
        raise BundleError(f"{path}: every file must be listed in {MANIFEST}, got {', '.join(unlisted[:20])}{more}")
    if verify:
        check_meanwhile([file for file in opened.values() if file.size >= LARGE])
    try:
        networks = {name: _network(path, opened, name) for name in opened if name.endswith(".onnx")}
    except BundleError:
        settle_all(opened)  # a damaged file is one first of all
        raise
    return CheckedFolder(path, {**manifest, "files": files}, opened, networks)


def _check_file(path: Path, handle: int, name: str, expected: Any, *, verify: bool) -> OpenFile:
    file = inside(path, name)
    if not _is_entry(expected):
        raise BundleError(
            f"{path / MANIFEST}: files[{brief(name)}] must give size and sha256, a whole number and a text, got"
            f" {brief(expected)}"
        )
    try:
        opened = OpenFile(file, name=name, folder=handle)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{file} must be a name that a file can have: {error}") from error
    if not _may_lead_to(Path(os.path.realpath(f"/proc/self/fd/{handle}")), opened.leads_to):
        raise BundleError(f"{file} must stay inside the folder, but leads to {opened.leads_to}")
    if opened.size != expected["size"]:
        raise BundleError(
            f"{file}: size must be {expected['size']} bytes, got {opened.size}: the file is truncated or changed"
        )
    if verify and opened.size >= LARGE and not name.startswith(CACHE):
        opened.expect(expected["sha256"])
    elif verify:
        opened.require(expected["sha256"])
    return opened


def _is_entry(expected: Any) -> bool:
    return (
        isinstance(expected, dict)
        and type(expected.get("size")) is int
        and isinstance(expected.get("sha256"), str)
        and len(expected["sha256"]) <= 64
    )


def _may_lead_to(folder: Path, file: Path) -> bool:
    """Whether a file of the folder may be this one: within it, or behind a link as the hub's cache has them.

    There ``snapshots/REVISION/NAME`` leads to ``blobs/CHECKSUM``.
    """
    if file.is_relative_to(folder):
        return True
    snapshots = next((one for one in folder.parents if one.name == "snapshots"), None)
    return snapshots is not None and file.parent == snapshots.parent / "blobs"


def _found(path: Path, handle: int) -> set[str]:
    """Names of all that is in a folder and its folders, but for these themselves."""
    found: set[str] = set()
    folders = [PurePosixPath()]
    while folders:
        folder = folders.pop()
        try:
            inner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=handle)
            try:
                with os.scandir(inner) as entries:
                    for one in entries:
                        if not one.is_dir():
                            found.add((folder / one.name).as_posix())
                        elif one.is_symlink():
                            raise BundleError(f"{path / folder / one.name} must be a folder itself, not a link to one")
                        else:
                            folders.append(folder / one.name)
                        if len(found) + len(folders) > _MOST_FOUND or len(folder.parts) > _DEEPEST:
                            raise BundleError(
                                f"{path} must have at most {_MOST_FOUND} files, in folders at most {_DEEPEST} deep"
                            )
            finally:
                os.close(inner)
        except OSError as error:
            if folder.parts and folder.parts[0] + "/" == CACHE and isinstance(error, FileNotFoundError):
                continue
            raise BundleError(f"{path / folder} must be a folder that can be listed: {error}") from error
    return found
