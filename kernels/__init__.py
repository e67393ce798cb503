"""Kernels of the fused step: the numpy oracles, and the same in Triton for torch tensors on a GPU.

The oracles need numpy alone. The rest is loaded when it is first used, and needs the extra ``stepfuse[kernels]``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if __name__ == "stepfuse.kernels":
    from stepfuse.kernels.reference import (
        adapt_guidance_ref,
        cfg_renorm_ref,
        dynamic_threshold_ref,
        fused_step_ref,
        guidance_rescale_ref,
        keep_known_ref,
        two_line_step_ref,
    )

if TYPE_CHECKING:
    from stepfuse.kernels.adapt import adapt_guidance, dynamic_threshold, guidance_rescale
    from stepfuse.kernels.keep import keep_known
    from stepfuse.kernels.renorm import cfg_renorm
    from stepfuse.kernels.step import fused_step
    from stepfuse.kernels.tuning import tune

__all__ = [
    "adapt_guidance",
    "adapt_guidance_ref",
    "cfg_renorm",
    "cfg_renorm_ref",
    "dynamic_threshold",
    "dynamic_threshold_ref",
    "fused_step",
    "fused_step_ref",
    "guidance_rescale",
    "guidance_rescale_ref",
    "keep_known",
    "keep_known_ref",
    "tune",
    "two_line_step_ref",
]

_MODULES = {
    "fused_step": "step",
    "adapt_guidance": "adapt",
    "cfg_renorm": "renorm",
    "dynamic_threshold": "adapt",
    "guidance_rescale": "adapt",
    "keep_known": "keep",
    "tune": "tuning",
}


def __getattr__(name: str) -> Any:
    if __name__ != "stepfuse.kernels" and not name.startswith("__"):
        # Not at import: in the clone's folder transformers looks here for the package that has this name.
        raise ImportError(f"this folder installs as 'stepfuse.kernels': import that, not {__name__!r}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"stepfuse.kernels.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "triton"):
            raise
        raise ModuleNotFoundError(
            f"stepfuse.kernels.{name} needs {error.name}: pip install 'stepfuse[kernels]'", name=error.name
        ) from error
    globals()[name] = value  # later uses find it at once, and torch.compile can trace them
    return value
