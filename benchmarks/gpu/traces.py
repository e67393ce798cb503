"""What a profiler sees of a piece of work: kernels, their launches, and where the host waits.

torch's profiler (Kineto) names of the driver's calls only those that launch kernels, no graphs and no waits. So a graph
is counted by its kernels, which have the number of its launch; and waits by what CUPTI records of them, whichever
library asks for one (``enable_cuda_sync_events``).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WINDOW = "traced work"
_ON_THE_DEVICE = "Stream Wait Event"  # one stream for another: the host goes on


@dataclass(frozen=True)
class Event:
    """Something that took time.

    Attributes:
        name: Of the kernel, the call or the kind of wait.
        launch: Number of the launch that it is, or is of; -1 of none.
        began: Microseconds on the profiler's clock.
        ended: The same.
    """

    name: str
    launch: int
    began: float
    ended: float


@dataclass(frozen=True)
class Trace:
    """What happened, each in order of time.

    Attributes:
        kernels: Those that ran on the device.
        calls: Calls of the CUDA runtime, and of the driver those that launch kernels.
        waits: Of the host for the device.
    """

    kernels: list[Event]
    calls: list[Event]
    waits: list[Event]

    def kernels_named(self, part: str) -> list[Event]:
        """Those with ``part`` in their name."""
        return [kernel for kernel in self.kernels if part in kernel.name]


def traced(work: Callable[[], object]) -> Trace:
    """Profiles ``work``: all that it asks for, by whichever thread, and not the wait for the device behind it."""
    import torch

    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    waits = torch._C._profiler._ExperimentalConfig(enable_cuda_sync_events=True)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities, experimental_config=waits) as profile:
        with torch.profiler.record_function(_WINDOW):
            work()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(file))
        return trace_of(json.loads(file.read_text())["traceEvents"])


def trace_of(events: Iterable[dict[str, Any]]) -> Trace:
    """The same of a trace as Chrome's viewer has it.

    Raises:
        ValueError: If the work is not in it.
    """
    timed = [event for event in events if event.get("ph") == "X"]
    windows = [one for one in timed if one.get("cat") == "user_annotation" and one["name"] == _WINDOW]
    if len(windows) != 1:
        raise ValueError(f"a trace must have {_WINDOW!r} once, got it {len(windows)} times")
    window = _event(windows[0])

    def those(*categories: str) -> list[Event]:
        found = [_event(event) for event in timed if event.get("cat") in categories]
        return sorted(found, key=lambda event: event.began)

    def asked_for(found: list[Event]) -> list[Event]:
        return [event for event in found if window.began <= event.began <= window.ended]

    waits = [event for event in those("cuda_sync") if event.name != _ON_THE_DEVICE]
    return Trace(those("kernel"), asked_for(those("cuda_runtime", "cuda_driver")), asked_for(waits))


def _event(event: dict[str, Any]) -> Event:
    began = float(event["ts"])
    launch = int(event.get("args", {}).get("correlation", -1))
    return Event(str(event["name"]), launch, began, began + float(event.get("dur", 0)))
