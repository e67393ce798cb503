"""Files that can be made again, kept on the disk: each under the digest of all that it depends on, with a checksum."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepfuse.files.atomic import write_atomically

logger = logging.getLogger("stepfuse")

_DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True)
class FileCache:
    """Files in one folder, which any number of processes share; a file is whole or not there.

    What cannot be read or written is reported in the log, and made anew: a cache may be lost at any time.

    Attributes:
        folder: Where.
        suffix: Of its files' names.
        noun: What a file holds, in messages: ``a compiled network``.
        verb: How that is made, likewise: ``compiled``.
        most_bytes: Of all files together; those that were not used for longest go first.
    """

    folder: Path
    suffix: str
    noun: str
    verb: str
    most_bytes: int

    def file(self, facts: Mapping[str, Any]) -> Path:
        """The file of what is made from these facts, whatever their order."""
        text = json.dumps(facts, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}{self.suffix}"

    def read(self, file: Path) -> memoryview | None:
        """What ``write`` was given; None if it is not there or damaged."""
        try:
            content = file.read_bytes()
            os.utime(file)  # used now
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("%s cannot be read, and is %s anew: %s", self.noun, self.verb, error)
            return None
        view = memoryview(content)
        if hashlib.sha256(view[_DIGEST:]).digest() != view[:_DIGEST]:
            self.drop(file, "its checksum is another")
            return None
        return view[_DIGEST:]

    def drop(self, file: Path, why: object) -> None:
        """Removes a file that is of no use."""
        logger.warning("%s is damaged, and is %s anew: %s", file, self.verb, why)
        with suppress(OSError):
            file.unlink()

    def write(self, file: Path, content: bytes | memoryview) -> None:
        """Keeps a file, and removes what there is no more room for."""
        if len(content) > self.most_bytes:
            return
        digest = hashlib.sha256(content).digest()

        def save(path: Path) -> None:
            with path.open("wb") as stream:
                stream.write(digest)
                stream.write(content)

        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(file, save)
            self._shrink()
        except OSError as error:
            logger.warning("%s cannot be kept, and is %s anew by the next process: %s", self.noun, self.verb, error)

    def _shrink(self) -> None:
        found = []
        for file in self.folder.glob(f"*{self.suffix}"):
            with suppress(FileNotFoundError):  # another process makes room, too
                status = file.stat()
                found.append((status.st_mtime_ns, status.st_size, file))
        room = self.most_bytes
        for _, size, file in sorted(found, reverse=True):
            room -= size
            if room < 0:
                file.unlink(missing_ok=True)
