"""The cache of a checked folder, ``plans/``: files that are added and removed while others read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from stepfuse.bundle.folder import CACHE, MANIFEST, entry, gone, inside, read_manifest
from stepfuse.errors import BundleError
from stepfuse.files.atomic import scratch_beside, sync


def change_cache(path: Path, add: Mapping[str, bytes | memoryview], remove: Collection[str] = ()) -> None:
    """Adds files under ``plans/`` to a folder, and removes some, in an order that keeps the folder readable meanwhile.

    The manifest lists a file before it is there, and until it is gone. A writer that is killed leaves names of nothing,
    which the next one drops. A folder that is replaced meanwhile stays as it is. Hold ``locked(path)``.

    Args:
        path: The folder; what is written passes through a scratch folder beside it.
        add: Contents by name; a name that is there already keeps its content, so a name must stand for its content.
        remove: Names to remove.

    Raises:
        BundleError: If a name is not under ``plans/``, or the manifest is not readable.
    """
    for name in (*add, *remove):
        if not (inside(path, name) and name.startswith(CACHE)):
            raise BundleError(f"{path}: what is cached must be under {CACHE}, got {name!r}")
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _change(path, Path(f"/proc/self/fd/{handle}"), add, remove)
    finally:
        os.close(handle)


def _change(path: Path, folder: Path, add: Mapping[str, bytes | memoryview], remove: Collection[str]) -> None:
    """As ``change_cache``; ``folder`` leads to the folder at ``path`` even when another takes its place."""
    manifest = read_manifest(folder)
    listed = entry(path, manifest, "files", dict)
    files = {name: value for name, value in listed.items() if name not in remove and not gone(folder, name)}
    new = {name: content for name, content in add.items() if name not in files}
    with scratch_beside(path.resolve(), folder=True) as scratch:
        for index, content in enumerate(new.values()):
            _write_through(scratch / str(index), content)
        for name in remove:
            (folder / name).unlink(missing_ok=True)
        files |= {
            name: {"size": memoryview(content).nbytes, "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in new.items()
        }
        text = json.dumps({**manifest, "files": files}, indent=2) + "\n"
        _write_through(scratch / MANIFEST, text.encode())
        shutil.copymode(folder / MANIFEST, scratch / MANIFEST)
        (scratch / MANIFEST).replace(folder / MANIFEST)
        for index, name in enumerate(new):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / str(index)).replace(folder / name)
            sync((folder / name).parent)
        sync(folder)


def _write_through(file: Path, content: bytes | memoryview) -> None:
    """Writes a file to the disk itself: a rename must not overtake what it names."""
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
