"""Which library runs a bundle's network on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepfuse.backends.cuda.config import BACKENDS, Cuda
from stepfuse.bundle.bundle import Bundle
from stepfuse.bundle.model_info import ModelInfo

if TYPE_CHECKING:
    from stepfuse.backends.cuda.driver_network import DriverNetwork


def open_network(bundle: Bundle, info: ModelInfo, device: Cuda, max_rows: int) -> DriverNetwork:
    """A bundle's network on a GPU, with nothing captured yet.

    Args:
        bundle: The model folder.
        info: What the network is.
        device: Which GPU, which library runs the network, and that library's options.
        max_rows: Most rows of a forward.

    Raises:
        ImportError: If the library is missing.
        ProviderError: If ONNX Runtime lacks the execution provider.
        BundleError: If the bundle has no network that the library can run, or its interface is not the manifest's.
        DenoiserError: If the GPU has no memory for it.
        CudaError: If there is no driver, it is too old, or out of memory.
        ValueError: If ``max_rows`` is below 1 or more than a plan takes, or the library does not take ``options``.
    """
    backend = device.backend or BACKENDS[0]
    if backend == "tensorrt":
        if device.options:
            raise ValueError(
                f"options are of ONNX Runtime's execution providers: none for tensorrt, got {device.options}"
            )
        from stepfuse.backends.cuda.tensorrt import TensorRTNetwork

        return TensorRTNetwork(bundle, info, max_rows, device=device.index)
    from stepfuse.backends.cuda.onnxruntime import OnnxRuntimeNetwork

    tensorrt = backend == "onnxruntime-tensorrt"
    return OnnxRuntimeNetwork(bundle, info, max_rows, device=device.index, tensorrt=tensorrt, options=device.options)
