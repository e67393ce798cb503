"""Which library runs a bundle's network on a GPU, and what networks of several sizes have in common there."""

from __future__ import annotations

from typing import Protocol

from stepfuse.backends.cuda.config import BACKENDS, Cuda
from stepfuse.backends.cuda.driver_network import DriverNetwork
from stepfuse.bundle.bundle import Bundle
from stepfuse.bundle.model_info import ModelInfo


class Sizes(Protocol):
    """A library's networks of several sizes. What they share, they use in turn, on one stream."""

    def weights(self, info: ModelInfo, max_rows: int) -> object:
        """Which weights the network for samples of a size has: those of equal values are the same."""

    def network(self, info: ModelInfo, max_rows: int) -> DriverNetwork:
        """The network for samples of a size, with nothing captured yet."""


class OpenedNetwork:
    """A bundle's network on a GPU, of which engines of several sizes are made.

    Args:
        bundle: The model folder.
        device: Which GPU, which library runs the network, and that library's options.

    Attributes:
        device: The same.

    Raises:
        ImportError: If the library is missing.
        ProviderError: If ONNX Runtime lacks the execution provider.
        BundleError: If the bundle has no network that the library can run.
        DenoiserError: If the GPU has no memory for it.
        CudaError: If there is no driver or it is too old.
        ValueError: If the library does not take ``options``.
    """

    def __init__(self, bundle: Bundle, device: Cuda) -> None:
        self.device = device
        self._sizes = _sizes(bundle, device)

    def weights(self, info: ModelInfo, max_rows: int) -> object:
        """Which weights the network for samples of a size has: those of equal values are the same.

        Args:
            info: What the network is.
            max_rows: Most rows of a forward.

        Raises:
            ImportError: As of the class.
            BundleError: If the bundle has none for the size.
        """
        return self._sizes.weights(info, max_rows)

    def network(self, info: ModelInfo, max_rows: int) -> DriverNetwork:
        """The network for samples of a size, with nothing captured yet.

        Args:
            info: What the network is.
            max_rows: Most rows of a forward.

        Raises:
            ImportError: As of the class, as are ProviderError and DenoiserError.
            BundleError: If the bundle has no network that the library can run, or its interface is not the manifest's.
            CudaError: If there is no memory.
            ValueError: If ``max_rows`` is below 1 or more than a plan takes.
        """
        return self._sizes.network(info, max_rows)


def _sizes(bundle: Bundle, device: Cuda) -> Sizes:
    backend = device.backend or BACKENDS[0]
    if backend == "tensorrt":
        if device.options:
            raise ValueError(
                f"options are of ONNX Runtime's execution providers: none for tensorrt, got {device.options}"
            )
        from stepfuse.backends.cuda.tensorrt import Plans

        return Plans(bundle, device=device.index)
    from stepfuse.backends.cuda.onnxruntime import CudaSession, TensorRTSessions

    kind = TensorRTSessions if backend == "onnxruntime-tensorrt" else CudaSession
    return kind(bundle, device=device.index, options=device.options)
