"""stepfuse: a compiled sampling engine for diffusion models.

A sampler is a table, a step is one 64-byte row, and one fused kernel runs any row.
"""

if __name__ != "stepfuse":
    raise ImportError(f"this folder installs as 'stepfuse': pip install it and import that, not {__name__!r}")

from typing import TYPE_CHECKING, Any

from stepfuse import samplers
from stepfuse.backends.cuda.config import Cuda
from stepfuse.backends.host.config import OpenVino
from stepfuse.bundle.bundle import Bundle, embedded_models, write_bundle
from stepfuse.bundle.cond_input import CondInput
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.engine import Engine
from stepfuse.errors import (
    BundleError,
    CaptureError,
    CudaError,
    DeadlineError,
    DenoiserError,
    EngineClosed,
    ExportError,
    GpuError,
    KernelError,
    LoraError,
    PlanError,
    ProviderError,
    QueueFull,
    RequestTimeout,
    StepfuseError,
)
from stepfuse.lora.adapters import LoraInfo
from stepfuse.requests.prompt_request import PromptRequest
from stepfuse.requests.request import Request
from stepfuse.samplers import NaiveSamplerWarning
from stepfuse.samplers.noise import normal
from stepfuse.samplers.schedule import NoiseSchedule
from stepfuse.samplers.step import step
from stepfuse.samplers.table import StepTable
from stepfuse.serving.config import CostCurve, Serving
from stepfuse.serving.stats import EngineStats
from stepfuse.serving.stream import Preview
from stepfuse.version import __version__

if TYPE_CHECKING:
    from stepfuse.benchmarking import bench
    from stepfuse.fitting import fit
    from stepfuse.pipeline.pictures import Pictures
    from stepfuse.pipeline.provenance import Provenance
    from stepfuse.pipeline.sampling import sample_pictures
    from stepfuse.pipeline.text_to_image import TextToImage

__all__ = [
    "Bundle",
    "BundleError",
    "CaptureError",
    "CondInput",
    "CostCurve",
    "Cuda",
    "CudaError",
    "DeadlineError",
    "DenoiserError",
    "Engine",
    "EngineClosed",
    "EngineStats",
    "ExportError",
    "GpuError",
    "KernelError",
    "LoraError",
    "LoraInfo",
    "ModelInfo",
    "NaiveSamplerWarning",
    "NoiseSchedule",
    "OpenVino",
    "Pictures",
    "PlanError",
    "Preview",
    "PromptRequest",
    "Provenance",
    "ProviderError",
    "QueueFull",
    "Request",
    "RequestTimeout",
    "Serving",
    "StepTable",
    "StepfuseError",
    "TextToImage",
    "__version__",
    "bench",
    "embedded_models",
    "fit",
    "normal",
    "sample_pictures",
    "samplers",
    "step",
    "write_bundle",
]


#: Modules that ``import stepfuse`` alone does not load, each by the first use of its name.
_MODULES = (
    "analysis",
    "benchmarking",
    "export",
    "fitting",
    "integrations",
    "interpolation",
    "kernels",
    "metrics",
    "server",
)

#: Names likewise, and the modules that have them.
_NAMES = {
    "Pictures": "pipeline.pictures",
    "Provenance": "pipeline.provenance",
    "TextToImage": "pipeline.text_to_image",  # with ONNX Runtime, which not every engine needs
    "bench": "benchmarking",
    "fit": "fitting",
    "sample_pictures": "pipeline.sampling",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"stepfuse.{name}")
    if name in _NAMES:
        return getattr(import_module(f"stepfuse.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'stepfuse' has no attribute {name!r}")
