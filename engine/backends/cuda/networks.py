"""Which library runs a bundle's network on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from stepfuse.backends.cuda.config import BACKENDS
from stepfuse.bundle.bundle import Bundle
from stepfuse.bundle.model_info import ModelInfo

if TYPE_CHECKING:
    from stepfuse.backends.cuda.driver_network import DriverNetwork


def open_network(
    bundle: Bundle,
    info: ModelInfo,
    *,
    device: int = 0,
    backend: str = "onnxruntime",
    max_rows: int = 16,
    options: Mapping[str, str] | None = None,
) -> DriverNetwork:
    """A bundle's network on a GPU, with nothing captured yet.

    Args:
        bundle: The model folder.
        info: What the network is.
        device: Which GPU.
        backend: One of ``stepfuse.backends.cuda.config.BACKENDS``.
        max_rows: Most rows of a forward.
        options: Of ONNX Runtime's execution provider, by the names that it has for them.

    Raises:
        ImportError: If the library is missing.
        ProviderError: If ONNX Runtime has not the execution provider.
        BundleError: If the network cannot be used.
        DenoiserError: If the GPU has no memory for it.
        CudaError: If there is no driver, it is too old, or out of memory.
        ValueError: If a bound is broken.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "tensorrt":
        if options:
            raise ValueError(f"options are of ONNX Runtime's execution providers: none for tensorrt, got {options}")
        from stepfuse.backends.cuda.tensorrt import TensorRTNetwork

        return TensorRTNetwork(bundle, info, max_rows, device=device)
    from stepfuse.backends.cuda.onnxruntime import OnnxRuntimeNetwork

    tensorrt = backend == "onnxruntime-tensorrt"
    return OnnxRuntimeNetwork(bundle, info, max_rows, device=device, tensorrt=tensorrt, options=options)
