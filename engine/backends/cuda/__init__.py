"""NVIDIA GPUs: networks, their capture as CUDA graphs, and the step's kernels beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepfuse.backends.cuda.trajectories import Trajectories

__all__ = ["Trajectories"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from stepfuse.backends.cuda.trajectories import Trajectories

    return Trajectories
