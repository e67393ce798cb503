"""Compiled networks on the disk: each under the digest of all that it depends on, with its own checksum."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from stepfuse.files.atomic import write_atomically

logger = logging.getLogger("stepfuse")

#: Most bytes of a folder; those that were not used for longest go first.
MOST_BYTES = 4 << 30

_SUFFIX = ".compiled"
_DIGEST = hashlib.sha256().digest_size


class CompileCache:
    """Files in one folder, which any number of processes share; a file is whole or not there.

    What cannot be read or written is reported in the log, and compiled anew: a cache may be lost at any time.

    Args:
        folder: Where; None is the user's own.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self.folder = Path.home() / ".cache/stepfuse/openvino" if folder is None else Path(folder)

    def file(self, facts: Mapping[str, Any]) -> Path:
        """The file of what is compiled from these facts, whatever their order."""
        text = json.dumps(facts, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}{_SUFFIX}"

    def read(self, file: Path) -> memoryview | None:
        """What ``write`` was given; None if it is not there or damaged."""
        try:
            content = file.read_bytes()
            os.utime(file)  # used now
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("a compiled network cannot be read, and is compiled anew: %s", error)
            return None
        view = memoryview(content)
        if hashlib.sha256(view[_DIGEST:]).digest() != view[:_DIGEST]:
            self.drop(file, "its checksum is another")
            return None
        return view[_DIGEST:]

    def drop(self, file: Path, why: object) -> None:
        """Removes a file that is of no use."""
        logger.warning("%s is damaged, and is compiled anew: %s", file, why)
        with suppress(OSError):
            file.unlink()

    def write(self, file: Path, compiled: bytes | memoryview) -> None:
        """Keeps a compiled network, and removes what there is no more room for."""
        if len(compiled) > MOST_BYTES:
            return
        digest = hashlib.sha256(compiled).digest()

        def save(path: Path) -> None:
            with path.open("wb") as stream:
                stream.write(digest)
                stream.write(compiled)

        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(file, save)
            self._shrink()
        except OSError as error:
            logger.warning("a compiled network cannot be kept, and is compiled anew by the next process: %s", error)

    def _shrink(self) -> None:
        found = []
        for file in self.folder.glob(f"*{_SUFFIX}"):
            with suppress(FileNotFoundError):  # another process makes room, too
                status = file.stat()
                found.append((status.st_mtime_ns, status.st_size, file))
        room = MOST_BYTES
        for _, size, file in sorted(found, reverse=True):
            room -= size
            if room < 0:
                file.unlink(missing_ok=True)
