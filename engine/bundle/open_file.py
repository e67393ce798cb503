"""A file that is opened once: what was checked is what is used, whatever its name leads to by then."""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from stepfuse.errors import BundleError

_BLOCK = 1 << 20


class OpenFile:
    """A regular file, open to be read until this object is gone.

    Who renames another file to its name changes nothing here. Who writes into the file itself is found out, by its time
    stamps and then its checksum, when ``require_unchanged`` is called after the use; a mapping that outlives that call
    shows what is written later.

    Args:
        path: Its path.
        name: Its path from ``folder``, where that is given.
        folder: Descriptor of an open folder.

    Attributes:
        path: Its path, for messages.
        size: Its bytes.

    Raises:
        BundleError: If it is no regular file.
        OSError: If it cannot be opened.
    """

    def __init__(self, path: Path, *, name: str | None = None, folder: int | None = None) -> None:
        self.path = path
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK  # a pipe without a writer would block
        self._handle = os.open(path if name is None else name, flags, dir_fd=folder)
        status = os.fstat(self._handle)
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path} must be a regular file")
        self.size = status.st_size
        self._sha256: str | None = None
        self._stamp = self._stamps()
        self._pending: Future[str] | None = None

    def __del__(self) -> None:
        """Closes it."""
        if hasattr(self, "_handle"):
            with suppress(OSError):
                os.close(self._handle)

    def __copy__(self) -> OpenFile:
        """Itself: there is one descriptor, closed once."""
        return self

    def __deepcopy__(self, memo: object) -> OpenFile:
        """Itself."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the file by its path, and checks it."""
        return _reopened, (self.path, self.size, self._sha256)

    @property
    def link(self) -> str:
        """A path that leads to this file as long as it is open."""
        return f"/proc/self/fd/{self._handle}"

    @property
    def leads_to(self) -> Path:
        """Where the file itself lies, behind all links."""
        return Path(os.path.realpath(self.link))

    def read(self) -> bytes:
        """Its content.

        Raises:
            BundleError: If that is not what was checked.
        """
        self.settle()
        content = b"".join(self._blocks())
        if len(content) != self.size:
            raise BundleError(f"{self.path} was changed while it was read")
        if self._sha256 is not None and self._stamps() != self._stamp:
            self._require(hashlib.sha256(content).hexdigest())
        return content

    def mapped(self) -> mmap.mmap | bytes:
        """Its content, read where it is used."""
        return mmap.mmap(self._handle, 0, access=mmap.ACCESS_READ) if self.size else b""

    def digest(self) -> str:
        """SHA-256 of its content."""
        digest = hashlib.sha256()
        for block in self._blocks():
            digest.update(block)
        return digest.hexdigest()

    def require(self, sha256: str) -> None:
        """Checks its content, and has ``read`` and ``require_unchanged`` do so where it was written to since.

        Raises:
            BundleError: If its checksum is another.
        """
        self._sha256, self._stamp = sha256, self._stamps()
        self._require(self.digest())

    def expect(self, sha256: str) -> None:
        """The same, but its content is checked by ``settle``, once another thread has gone through it."""
        self._sha256, self._stamp = sha256, self._stamps()
        self._pending = Future()

    def settle(self) -> None:
        """Waits until its content is checked, if that is still to come.

        Raises:
            BundleError: If its checksum is another.
            OSError: If it cannot be read.
        """
        if (pending := self._pending) is not None:
            self._require(pending.result())
            self._pending = None

    def require_unchanged(self) -> None:
        """Checks that what was used since is what was checked.

        Raises:
            BundleError: If the file was written to, or its checksum is another.
        """
        self.settle()
        if self._stamps() == self._stamp:
            return
        if self._sha256 is None:
            if os.fstat(self._handle).st_size != self.size:
                raise BundleError(f"{self.path} was changed while it was read")
        else:
            self._require(self.digest())

    def _go_through(self) -> None:
        assert self._pending is not None
        try:
            self._pending.set_result(self.digest())
        except BaseException as error:  # as concurrent.futures' own workers do
            self._pending.set_exception(error)

    def _require(self, digest: str) -> None:
        if digest != self._sha256:
            raise BundleError(f"{self.path}: sha256 must be {self._sha256}, got {digest}: the file was changed")

    def _stamps(self) -> tuple[int, int, int]:
        status = os.fstat(self._handle)
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def _blocks(self) -> Iterator[bytes]:
        at = 0
        while block := os.pread(self._handle, _BLOCK, at):
            yield block
            at += len(block)


def check_meanwhile(files: Sequence[OpenFile]) -> None:
    """Has another thread go through files that ``expect`` a checksum, one after another.

    The end of the process does not wait for it. Where the system has no thread left, the caller's goes through them.
    """

    def go_through() -> None:
        for file in files:
            file._go_through()

    if not files:
        return
    try:
        threading.Thread(target=go_through, name="stepfuse-checksums", daemon=True).start()
    except RuntimeError:
        go_through()


def _reopened(path: Path, size: int, sha256: str | None) -> OpenFile:
    file = OpenFile(path)
    if file.size != size:
        raise BundleError(f"{path}: size must be {size} bytes, got {file.size}: the file was changed")
    if sha256 is not None:
        file.require(sha256)
    return file
