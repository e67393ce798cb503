"""Services as processes of their own: started, waited for, looked into through /proc, and ended."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

_HERE = Path(__file__).parent
_LONGEST_START, _LONGEST_END = 120.0, 30.0
_POLL_SECONDS = 0.005

#: What runs each system, before its options: all take ``--port`` and ``--threads``.
OURS, LOCKED, BATCHED, RAY = "ours", "locked", "batched", "ray"
COMMANDS: dict[str, tuple[str, ...]] = {
    OURS: (str(Path(sys.executable).with_name("stepfuse")), "serve"),
    LOCKED: (sys.executable, str(_HERE / "http_peers.py"), LOCKED),
    BATCHED: (sys.executable, str(_HERE / "http_peers.py"), BATCHED),
    RAY: (sys.executable, str(_HERE / "http_ray.py")),
}
NAMES = {
    OURS: "stepfuse serve",
    LOCKED: "FastAPI, diffusers, a lock",
    BATCHED: "FastAPI, static batches",
    RAY: "Ray Serve, a call a request",
}


class Service:
    """A service that runs until the block ends.

    Args:
        system: A key of ``COMMANDS``.
        bundle: Embedded model or bundle folder.
        threads: Of the network; 0 is one a core.
        options: More of the command line.

    Attributes:
        port: Where it listens, on 127.0.0.1.
        process: The process.
        seconds: From its start until ``/ready`` answered 200.

    Raises:
        RuntimeError: If it ends before that, or takes longer than two minutes.
    """

    def __init__(self, system: str, bundle: str, *, threads: int = 0, options: Sequence[str] = ()) -> None:
        self.port = free_port()
        arguments = [*COMMANDS[system], bundle, "--port", str(self.port), "--threads", str(threads), *options]
        began = time.perf_counter()
        self.process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not self._ready():
                if self.process.poll() is not None or time.perf_counter() - began > _LONGEST_START:
                    raise RuntimeError(f"{' '.join(arguments)} must become ready, got status {self.process.poll()}")
                time.sleep(_POLL_SECONDS)
        except BaseException:
            self.end()
            raise
        self.seconds = time.perf_counter() - began

    def __enter__(self) -> Service:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    def end(self) -> int:
        """Has it drain, and kills it where that takes long; returns its status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(_LONGEST_END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def get(self, path: str) -> tuple[int, bytes]:
        """The status and body of a path."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_LONGEST_END)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def memory(self) -> float:
        """Resident megabytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def files(self) -> int:
        """Open files, connections among them."""
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    def processor_seconds(self) -> float:
        """Time that its threads have run, in hundredths of a second."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _ready(self) -> bool:
        try:
            return self.get("/ready")[0] == 200
        except OSError:
            return False


def free_port() -> int:
    """A port that nothing listens at now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
