"""How many processors this process may keep busy: those that it is held to, and its control groups' quota."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_GROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")


def processors(groups: Path = _GROUPS, mount: Path = _MOUNT) -> int:
    """The number of processors, at least 1: those that it is held to (taskset, cpusets), or by quota, rounded up.

    Libraries that start a thread for each processor of the machine have them take turns where these are fewer.

    Args:
        groups: The control groups of this process, as Linux lists them (cgroups(7)); a file that is not there sets no
            limit.
        mount: Where their hierarchies are mounted.
    """
    held_to = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([held_to, *(math.ceil(share) for share in _shares(groups, mount))]))


def held_to() -> int:
    """Threads for a library that would count the machine's processors: ``processors()``, or 0 if that is all of them.

    Such a library's threads would take turns on fewer.
    """
    allowed = processors()
    return 0 if allowed == os.cpu_count() else allowed


def _shares(groups: Path, mount: Path) -> Iterator[float]:
    """Processors that each control group allows, where it says so: the process's own and all above it."""
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:  # version 2 has one hierarchy
            roots, read = [mount, mount / "unified"], _share
        elif "cpu" in controllers.split(","):
            roots, read = [mount / controllers, mount / "cpu"], _share_of_version_1
        else:
            continue
        own = PurePosixPath(path).relative_to("/") if path.startswith("/") else PurePosixPath(path)
        for root in roots:
            # In a container the path may be the host's, and the container's own group the root of what is mounted.
            for group in (own, *own.parents):
                if (share := read(root / group)) is not None:
                    yield share


def _share(group: Path) -> float | None:
    words = _words(group / "cpu.max")
    return _ratio(*words) if len(words) == 2 else None


def _share_of_version_1(group: Path) -> float | None:
    words = [*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us")]
    return _ratio(*words) if len(words) == 2 else None


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return []


def _ratio(quota: str, period: str) -> float | None:
    """Processors; None without a limit, which is written as ``max``, and in version 1 as -1."""
    try:
        share = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None
    return share if share > 0 else None
