"""From trained models to bundles, and from bundles to TensorRT plans."""

if __name__ != "stepfuse.export":
    raise ImportError(f"this folder installs as 'stepfuse.export': import that, not {__name__!r}")

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stepfuse.errors import ExportError

if TYPE_CHECKING:
    from stepfuse.export.lora.fuse import fuse_lora as fuse_lora
    from stepfuse.export.lora.fuse import lora_weights as lora_weights
    from stepfuse.export.lora.fuse import unfuse_lora as unfuse_lora
    from stepfuse.export.onnx.torch_module import to_bundle as to_bundle
    from stepfuse.export.pipelines.export_folder import from_diffusers as from_diffusers
    from stepfuse.export.quantization.quantize import quantize as quantize

# Where each call lives. No module has its call's name: imported first, the module would hide the call.
_CALLS = {
    "from_diffusers": "pipelines.export_folder",
    "fuse_lora": "lora.fuse",
    "lora_weights": "lora.fuse",
    "quantize": "quantization.quantize",
    "to_bundle": "onnx.torch_module",
    "unfuse_lora": "lora.fuse",
}

__all__ = ["ExportError", *_CALLS]


def __getattr__(name: str) -> Any:
    if name in _CALLS:
        return getattr(import_module(f"stepfuse.export.{_CALLS[name]}"), name)
    raise AttributeError(f"module 'stepfuse.export' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
