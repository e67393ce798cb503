"""Whether the service takes work: it warms up, is ready, and drains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stepfuse.server.errors import SERVER, ApiError


class Lifecycle:
    """Of one app. All but ``drain``, which a signal may call, is for its event loop alone.

    Attributes:
        warm: Whether the models have run.
        draining: Whether the service ends, and takes no more work.
        giving_up: Whether what runs is not waited for.
        running: Requests for pictures that have not been answered in full.
    """

    def __init__(self) -> None:
        self.warm = False
        self.draining = False
        self.giving_up = False
        self.running = 0

    @property
    def ready(self) -> bool:
        """Whether a load balancer should send work."""
        return self.warm and not self.draining

    def drain(self) -> None:
        """Has the service refuse new work, and end when what runs is answered; called again, without waiting."""
        self.giving_up = self.draining
        self.draining = True

    @contextmanager
    def work(self) -> Iterator[None]:
        """Counts a request for pictures.

        Raises:
            ApiError: 503 while the service drains.
        """
        if self.draining:
            headers = {"Retry-After": "1", "Connection": "close"}
            raise ApiError(503, "the service is ending: ask another one", type=SERVER, code="draining", headers=headers)
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
