"""Chooses which of a bundle's plans runs on a GPU."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

from stepfuse.bundle.bundle import Bundle
from stepfuse.bundle.folder import CACHE
from stepfuse.tensorrt.library import NAMES, Library, find_library
from stepfuse.tensorrt.plan import PlanKey
from stepfuse.tensorrt.profile import Profile
from stepfuse.tensorrt.store import PlanStore, StoredPlan
from stepfuse.tensorrt.target import Target


def source_of(bundle: Bundle, network: str) -> str:
    """Digest of what the manifest says of a network, and of every file that may hold its weights."""
    others = (".json", ".onnx")
    parts = [
        f"{name} {about['sha256']}"
        for name, about in sorted(bundle.files.items())
        if name == network or not (name.endswith(others) or name.startswith(CACHE))
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def plan_on(
    bundle: Bundle,
    network: str,
    target: Target,
    *,
    shape: tuple[int, ...],
    rows: int,
    library: Library | None = None,
) -> tuple[StoredPlan, Library]:
    """The plan of a bundle's network for a GPU: one for enough rows, else for the most. And the library that runs it.

    Args:
        bundle: The model folder.
        network: Name of the ONNX file in it.
        target: The GPU.
        shape: Shape of one sample.
        rows: Most rows of a forward.
        library: The TensorRT that is to run it; None: any that is installed, ``tensorrt`` before ``tensorrt_rtx``.

    Raises:
        PlanError: If none fits, with the differences of the nearest one.
        ImportError: If no TensorRT is installed.
    """
    store, source = PlanStore(bundle.path, bundle=True), source_of(bundle, network)
    cell = bundle.pipeline.pixels_per_latent if bundle.pipeline else 1
    libraries = [library] if library else _installed(store.libraries(network))

    def unfit(key: PlanKey) -> list[str]:
        asked = [replace(key, source=source, library=one.name, version=one.version, target=target) for one in libraries]
        differences = min((key.differences(wanted) for wanted in asked), key=len)
        if not _most_rows(key, shape, cell):
            differences.append(f"its pictures are of other sizes than {_size(shape, cell)}")
        return differences

    def rank(key: PlanKey) -> tuple[int, int]:
        return min(rows, _most_rows(key, shape, cell)), -NAMES.index(key.library)

    plan = store.best(network, unfit, rank)
    return plan, next(one for one in libraries if one.name == plan.key.library)


def _installed(names: Iterable[str]) -> list[Library]:
    """The named libraries that are installed; if none is, the first one installed, to compare plans with."""
    found = []
    for name in sorted(names):
        with suppress(ImportError):
            found.append(find_library(name))
    return found or [find_library()]


def _most_rows(key: PlanKey, shape: tuple[int, ...], cell: int) -> int:
    """Most rows of the profiles that take samples of this shape; 0 if none does."""
    return max((profile.rows[2] for profile in key.profiles if _takes(profile, shape, cell)), default=0)


def _takes(profile: Profile, shape: tuple[int, ...], cell: int) -> bool:
    if profile.sizes is None or len(shape) != 3:
        return True
    least, _, most = profile.sizes
    size = shape[2] * cell, shape[1] * cell
    return all(a <= b <= c for a, b, c in zip(least, size, most, strict=True))


def _size(shape: tuple[int, ...], cell: int) -> str:
    return "x".join(str(side * cell) for side in reversed(shape[1:]))
