"""Pictures that are kept under a url for a while: at most so many bytes, the oldest go first."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Stored:
    """A file that is kept.

    Attributes:
        data: Its bytes.
        media_type: What it is.
        expires: When it is dropped, on the store's clock.
    """

    data: bytes
    media_type: str
    expires: float


class Store:
    """Calls from any number of threads are safe.

    Args:
        most_bytes: Of all files together.
        seconds: That a file is kept.
        clock: Says the time, in seconds.
    """

    def __init__(self, most_bytes: int, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._seconds, self._clock = most_bytes, seconds, clock
        self._lock = threading.Lock()
        self._files: OrderedDict[str, Stored] = OrderedDict()
        self._bytes = 0

    def put(self, data: bytes, media_type: str) -> str:
        """Keeps a file.

        Returns:
            Its id, which cannot be guessed.

        Raises:
            ValueError: If it is larger than all that may be kept.
        """
        if len(data) > self._most:
            raise ValueError(
                f"response_format must be b64_json for a file above {self._most:,} bytes, got {len(data):,}"
            )
        id = secrets.token_urlsafe(24)
        with self._lock:
            self._drop_expired()
            while self._bytes + len(data) > self._most:
                self._drop_oldest()
            self._files[id] = Stored(data, media_type, self._clock() + self._seconds)
            self._bytes += len(data)
        return id

    def get(self, id: str) -> tuple[Stored, float] | None:
        """A file that is kept, and the seconds that it has left; None if there is none of this id any more."""
        with self._lock:
            self._drop_expired()
            found = self._files.get(id)
            return None if found is None else (found, found.expires - self._clock())

    def _drop_expired(self) -> None:
        now = self._clock()
        while self._files and next(iter(self._files.values())).expires <= now:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, dropped = self._files.popitem(last=False)
        self._bytes -= len(dropped.data)
