"""stepfuse: a compiled sampling engine for diffusion models.

A sampler is a table, a step is one 64-byte row, and one fused kernel runs any row.
"""

if __name__ != "stepfuse":
    raise ImportError(f"this folder installs as 'stepfuse': pip install it and import that, not {__name__!r}")

from typing import TYPE_CHECKING, Any

from stepfuse import samplers
from stepfuse.bundle import Bundle, ModelInfo, embedded_models, write_bundle
from stepfuse.cond import CondInput
from stepfuse.device import Cuda
from stepfuse.engine import Engine
from stepfuse.errors import (
    BundleError,
    CudaError,
    DeadlineError,
    DenoiserError,
    EngineClosed,
    GpuError,
    QueueFull,
    RequestTimeout,
)
from stepfuse.fused import step
from stepfuse.noise import normal
from stepfuse.policy import CostCurve, Serving
from stepfuse.request import Request
from stepfuse.samplers import NaiveSamplerWarning
from stepfuse.schedule import NoiseSchedule
from stepfuse.steptable import StepTable
from stepfuse.stream import Preview

if TYPE_CHECKING:
    from stepfuse.pipeline.text_to_image import TextToImage

__all__ = [
    "Bundle",
    "BundleError",
    "CondInput",
    "CostCurve",
    "Cuda",
    "CudaError",
    "DeadlineError",
    "DenoiserError",
    "Engine",
    "EngineClosed",
    "GpuError",
    "ModelInfo",
    "NaiveSamplerWarning",
    "NoiseSchedule",
    "Preview",
    "QueueFull",
    "Request",
    "RequestTimeout",
    "Serving",
    "StepTable",
    "TextToImage",
    "__version__",
    "embedded_models",
    "normal",
    "samplers",
    "step",
    "write_bundle",
]


def __getattr__(name: str) -> Any:
    if name == "TextToImage":
        from stepfuse.pipeline.text_to_image import TextToImage  # with ONNX Runtime, which not every engine needs

        return TextToImage
    if name != "__version__":
        raise AttributeError(f"module 'stepfuse' has no attribute {name!r}")
    from importlib.metadata import version  # a fiftieth of a cold start, for what few ask

    return version("stepfuse")
