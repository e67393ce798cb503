"""A bundle's network on the CPU, opened once for engines of any shape."""

from __future__ import annotations

from typing import Any, Protocol, cast

from stepfuse.backends.host.base import HostBackend
from stepfuse.backends.host.config import Cpu
from stepfuse.bundle.bundle import DENOISER, Bundle
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.extras import pip_install
from stepfuse.lora.adapters import Adapters
from stepfuse.lora.networks import AdaptedNetworks


class HostNetwork(Protocol):
    """A network that engines share, each with memory of its own."""

    @property
    def computed_by(self) -> str:
        """As in ``ModelIdentity``."""

    @property
    def adapters(self) -> Adapters | None:
        """The network's LoRAs; None: it takes none while it runs."""

    def backend(self, info: ModelInfo, max_rows: int, *, deterministic: bool) -> HostBackend:
        """The network in the memory of an engine.

        Args:
            info: What its inputs and output must be; only the shape may differ between engines.
            max_rows: Most rows of one forward.
            deterministic: Whether a row has to have the same bits whatever is beside it.

        Raises:
            BundleError: If they are not, or so many rows do not fit the memory.
        """


def open_network(bundle: Bundle, cpu: Cpu, adapted: AdaptedNetworks | None = None) -> HostNetwork:
    """A bundle's denoiser in the library that is asked for.

    Args:
        bundle: The model.
        cpu: How it runs.
        adapted: Its graph with inputs for LoRAs; None: it takes none while it runs.

    Raises:
        BundleError: If it does not load.
        ImportError: If OpenVINO is asked for and missing.
        ValueError: If OpenVINO cannot compute in this precision on this processor.
    """
    if cpu.openvino is not None:
        try:
            from stepfuse.backends.host.openvino.network import OpenVinoNetwork
        except ImportError as error:
            raise ImportError(f"backend='openvino' needs OpenVINO ({error}): {pip_install('openvino')}") from error

        return OpenVinoNetwork(bundle, cpu.openvino, precision=cpu.precision, threads=cpu.threads)
    from stepfuse.backends.host.onnxruntime import OnnxRuntimeNetwork, open_session

    content = None if adapted is None else adapted.take(DENOISER)
    session = open_session(bundle.networks[DENOISER], threads=cpu.threads, spinning=cpu.spinning, content=content)
    return OnnxRuntimeNetwork(session, bundle.denoiser, None if adapted is None else adapted.adapters)


def as_network(opened: Any, bundle: Bundle) -> HostNetwork:
    """What ``open_network`` has opened, or a session of ONNX Runtime's, as a network that engines share.

    Raises:
        ValueError: If it is neither.
    """
    if hasattr(opened, "backend"):
        return cast("HostNetwork", opened)
    if not hasattr(opened, "run_with_iobinding"):
        raise ValueError(f"session must be of open_network or open_session on the CPU, got {opened!r}")
    from stepfuse.backends.host.onnxruntime import OnnxRuntimeNetwork

    return OnnxRuntimeNetwork(opened, bundle.denoiser)
