"""Files and folders that are there wholly or not at all: written beside their place, on the disk, then renamed.

A writer holds a lock (flock) on what it writes. What is left by one that was killed has no lock, and the next writer in
the same folder removes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SCRATCH = re.compile(r"\..+-[0-9a-f]{8}\.partial(\.\w+)?")
_AT_FDCWD, _RENAME_NOREPLACE, _RENAME_EXCHANGE = -100, 1, 2  # of linux/fcntl.h and linux/fs.h
# Of file systems that have none; NFS has some, but of what is open to be written, which no folder is.
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF}


@contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds the lock of a folder. Where the file system has no locks, it is not held.

    Args:
        folder: The folder.
        wait: Whether it waits for another process that holds it.

    Raises:
        BlockingIOError: If another process holds it, and ``wait`` is not set.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _lock(handle, wait=wait)
        yield
    finally:
        os.close(handle)


@contextmanager
def scratch_beside(target: Path, *, folder: bool = False) -> Iterator[Path]:
    """An empty file or folder beside ``target``, which is removed at the end unless it was renamed.

    What killed writers have left in that folder is removed first.

    Args:
        target: The place that it is for. Its name has the suffix of ``target``, which tells writers a format.
        folder: Whether it is a folder.
    """
    _remove_stale(target.parent)
    suffix = "" if folder else target.suffix if target.suffix[1:].isalnum() else ""
    path, handle = _new_scratch(target, suffix, folder=folder)
    try:
        yield path
    finally:
        os.close(handle)
        _remove(path)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Has a file written beside ``path`` and renames it: at ``path`` is the old file or the new one, whole.

    A link stays one, a file's mode stays, and what is no regular file, such as ``/dev/stdout``, is written to directly.

    Args:
        path: The file.
        write: Writes the file that it is given.
    """
    target = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        write(path)
        return
    with scratch_beside(target) as scratch:
        write(scratch)
        if target.exists():
            shutil.copymode(target, scratch)
        sync(scratch)
        scratch.replace(target)
    sync(target.parent)


def move_into_place(scratch: Path, target: Path, *, replace: bool) -> None:
    """Renames a folder to ``target`` in one step; what was at ``target`` is at ``scratch`` then.

    On a system or file system without ``renameat2`` that takes two steps, between which nothing is at ``target``. Hold
    ``locked(target.parent)``, so that writers take turns.

    Raises:
        FileExistsError: If something is at ``target`` and ``replace`` is not set.
    """
    try:
        if not _renameat2(scratch, target, _RENAME_NOREPLACE):
            _rename_in_two_steps(scratch, target, replace=replace)
    except FileExistsError:
        if not replace:
            raise
        if not _renameat2(scratch, target, _RENAME_EXCHANGE):
            _rename_in_two_steps(scratch, target, replace=replace)
    sync(target.parent)


def sync(path: Path) -> None:
    """Has a file or folder on the disk itself: a rename must not overtake what it names."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _lock(handle: int, *, wait: bool = True) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _new_scratch(target: Path, suffix: str, *, folder: bool) -> tuple[Path, int]:
    """An empty file or folder and the descriptor that holds its lock."""
    while True:
        path = target.parent / f".{target.name[:64]}-{secrets.token_hex(4)}.partial{suffix}"
        if folder:
            path.mkdir()
        else:
            path.touch(exist_ok=False)
        with suppress(FileNotFoundError):  # before it has its lock, another writer may take it for one that was left
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            _lock(handle)
            if path.exists():
                return path, handle
            os.close(handle)


def _remove_stale(folder: Path) -> None:
    for path in folder.iterdir():
        if not _SCRATCH.fullmatch(path.name):
            continue
        with suppress(OSError):  # locked, another user's, or removed meanwhile
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
            finally:
                os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _rename_in_two_steps(scratch: Path, target: Path, *, replace: bool) -> None:
    if not os.path.lexists(target):
        scratch.rename(target)
        return
    if not replace:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    retired = scratch.with_name(f".{target.name[:64]}-{secrets.token_hex(4)}.partial")
    target.rename(retired)
    try:
        scratch.rename(target)
    except BaseException:
        retired.rename(target)
        raise
    retired.rename(scratch)


def _renameat2(old: Path, new: Path, flags: int) -> bool:
    """Linux's renameat2(2); False where the system or the file system has no such call."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(code, os.strerror(code), str(old), None, str(new))
