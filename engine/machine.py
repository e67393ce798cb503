"""What times depend on beside the code: the machine, and the versions of packages."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stepfuse import _core


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, instruction set, system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processor = named[0] if named else platform.processor() or platform.machine()
    return {"processor": processor, "cores": cores, "instructions": _core.isas()[-1], "system": platform.system()}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of Python and of these packages; empty where one is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # slow to import, and needed here alone

    try:
        return version(package)
    except PackageNotFoundError:
        return ""
