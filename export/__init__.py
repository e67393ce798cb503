"""From trained models to bundles, and from bundles to TensorRT plans."""

if __name__ != "stepfuse.export":
    raise ImportError(f"this folder installs as 'stepfuse.export': import that, not {__name__!r}")

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stepfuse.export.errors import ExportError

if TYPE_CHECKING:
    from stepfuse.export.diffusers_folder import from_diffusers as from_diffusers
    from stepfuse.export.lora import fuse_lora as fuse_lora
    from stepfuse.export.lora import lora_weights as lora_weights
    from stepfuse.export.lora import unfuse_lora as unfuse_lora
    from stepfuse.export.quantization import quantize as quantize
    from stepfuse.export.torch_module import to_bundle as to_bundle

# Where each call lives. No module has its call's name: imported first, the module would hide the call.
_CALLS = {
    "from_diffusers": "diffusers_folder",
    "fuse_lora": "lora",
    "lora_weights": "lora",
    "quantize": "quantization",
    "to_bundle": "torch_module",
    "unfuse_lora": "lora",
}

__all__ = ["ExportError", *_CALLS]


def __getattr__(name: str) -> Any:
    if name in _CALLS:
        return getattr(import_module(f"stepfuse.export.{_CALLS[name]}"), name)
    raise AttributeError(f"module 'stepfuse.export' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
