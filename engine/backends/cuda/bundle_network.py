"""Which library runs a bundle's network on a GPU, and what networks of several sizes have in common there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepfuse.backends.cuda.config import BACKENDS, Cuda
from stepfuse.bundle.bundle import Bundle
from stepfuse.bundle.model_info import ModelInfo

if TYPE_CHECKING:
    from stepfuse.backends.cuda.driver_network import DriverNetwork
    from stepfuse.backends.cuda.onnxruntime import DenoiserSession


class OpenedNetwork:
    """A bundle's network on a GPU, from which engines of several sizes are made.

    Args:
        bundle: The model folder.
        device: Which GPU, which library runs the network, and that library's options.

    Attributes:
        device: The same.
        sizes_share: Whether networks of several sizes have their weights in common, and the memory that forwards work
            in. They then work on one stream, in turn.

    Raises:
        ImportError: If the library is missing.
        ProviderError: If ONNX Runtime lacks the execution provider.
        BundleError: If the bundle has no network that the library can run.
        DenoiserError: If the GPU has no memory for it.
        CudaError: If there is no driver, it is too old, or out of memory.
        ValueError: If the library does not take ``options``.
    """

    def __init__(self, bundle: Bundle, device: Cuda) -> None:
        self.device, self._bundle = device, bundle
        backend = device.backend or BACKENDS[0]
        if backend == "tensorrt" and device.options:
            raise ValueError(
                f"options are of ONNX Runtime's execution providers: none for tensorrt, got {device.options}"
            )
        self.sizes_share = backend == "onnxruntime"
        self._session: DenoiserSession | None = None
        if self.sizes_share:
            from stepfuse.backends.cuda.onnxruntime import DenoiserSession

            self._session = DenoiserSession(bundle, device=device.index, options=device.options)

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
        if self.device.backend == "tensorrt":
            from stepfuse.backends.cuda.tensorrt import TensorRTNetwork

            return TensorRTNetwork(self._bundle, info, max_rows, device=self.device.index)
        from stepfuse.backends.cuda.onnxruntime import DenoiserSession, OnnxRuntimeNetwork

        opened = self._session or DenoiserSession(
            self._bundle, device=self.device.index, options=self.device.options, tensorrt=(info, max_rows)
        )
        return OnnxRuntimeNetwork(opened, info, max_rows)
