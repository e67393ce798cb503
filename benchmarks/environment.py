"""What figures depend on beside the benchmark: the machine, the versions, the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stepfuse import _core

PACKAGES = ("stepfuse", "numpy", "onnxruntime", "openvino", "torch", "diffusers")
#: What benchmarks and reports write themselves does not make a checkout dirty.
WRITTEN = (":(exclude)benchmarks/results", ":(exclude)docs/*.png", ":(exclude)docs/analysis")


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "isas": _core.isas(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str | None]:
    """Of Python and of the packages that are compared; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def commit() -> str | None:
    """The checkout's commit, with ``-dirty`` if tracked files differ from it; None outside a git checkout."""
    head = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *WRITTEN)
    return head and f"{head}-dirty" if changed else head


def _git(*arguments: str) -> str | None:
    """What git prints, run at the repository's root; None if it fails or is not installed."""
    root = Path(__file__).parent.parent
    try:
        found = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
