"""A stage of a pipeline before or after the denoiser: text encoder, VAE encoder, VAE decoder."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.backends.cuda.config import Cuda
from stepfuse.backends.device_samples import DeviceSample
from stepfuse.backends.host.onnxruntime import open_session, returning_memory
from stepfuse.bundle.onnx_file import OnnxFile
from stepfuse.errors import BundleError, DenoiserError, EngineClosed

Array = npt.NDArray[Any]


class Interrupt:
    """Has the runs that it is given to end before their next operator, from any thread."""

    def __init__(self) -> None:
        self._options: dict[str, Any] = {}
        self._is_set = False
        self._changing = threading.Lock()

    def options(self, device: str) -> Any:
        """What a run on a device is given: ``cpu:0``, ``gpu:0``, ..."""
        with self._changing:
            found = self._options.setdefault(device, returning_memory(device))
            found.terminate = self._is_set
            return found

    def set(self) -> None:
        """Ends the run in progress, and those to come."""
        with self._changing:
            self._is_set = True
            for one in self._options.values():
                one.terminate = True


class Stage:
    """One network in an ONNX Runtime session, which holds no more than its weights between runs.

    Calls from any number of threads are safe.

    Args:
        network: The network's ONNX file, of ``Bundle.networks``.
        inputs: Names of its inputs.
        outputs: Names of its outputs; None takes those that the file has.
        content: As in ``open_session``.
        threads: As in ``open_session``. Idle threads do not spin, as the denoiser's threads need the cores.
        gpu: Runs it in ONNX Runtime's CUDA provider; ``content`` and ``threads`` are then unused. None: the CPU.

    Raises:
        BundleError: If ONNX Runtime cannot load the file, or it has other inputs or outputs.
        ProviderError: If it has no CUDA provider.
        DenoiserError: If the GPU has no memory for it.
        CudaError: If there is no driver or it is too old.
    """

    def __init__(
        self,
        network: OnnxFile,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...] | None = None,
        *,
        threads: int = 0,
        content: bytes | None = None,
        gpu: Cuda | None = None,
    ) -> None:
        self._name = network.path.name
        session: Any
        if gpu is None:
            self._device = "cpu:0"
            session = open_session(network, threads=threads, spinning=False, content=content)
        else:
            from stepfuse.backends.cuda.onnxruntime import open_session as open_on_gpu

            self._device = f"gpu:{gpu.index}"
            session = open_on_gpu(network, gpu.index)
        for kind, nodes, wanted in (
            ("inputs", session.get_inputs(), inputs),
            ("outputs", session.get_outputs(), outputs),
        ):
            found = [node.name for node in nodes]
            if wanted is not None and set(found) != set(wanted):
                raise BundleError(f"{network.path}: {kind} must be {', '.join(wanted)}, got {', '.join(found)}")
        self.outputs = tuple(node.name for node in session.get_outputs())
        self._session: Any = session
        self._seconds = 0.0
        self._counting = threading.Lock()

    @property
    def seconds(self) -> float:
        """How long the network has run."""
        return self._seconds

    def require_open(self) -> Any:
        """The session.

        Raises:
            EngineClosed: If the stage is closed.
        """
        session = self._session  # read once: another thread may close the stage meanwhile
        if session is None:
            raise EngineClosed("the pipeline is closed")
        return session

    def run(self, feeds: Mapping[str, Array | DeviceSample], interrupt: Interrupt | None = None) -> dict[str, Array]:
        """The outputs by name.

        Args:
            feeds: The inputs by name; a sample that is in its GPU's memory is read there.
            interrupt: Gives it up, with a DenoiserError.

        Raises:
            DenoiserError: If ONNX Runtime fails, or an output is no array of finite floating point.
            EngineClosed: If the stage is closed.
        """
        session = self.require_open()
        began = time.perf_counter()
        try:
            found = self._outputs(session, feeds, (interrupt or Interrupt()).options(self._device))
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            shapes = ", ".join(f"{name} {value.shape}" for name, value in feeds.items())
            raise DenoiserError(f"ONNX Runtime could not run {self._name} on {shapes}: {error}") from error
        finally:
            with self._counting:
                self._seconds += time.perf_counter() - began
        for name, array in zip(self.outputs, found, strict=True):
            if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
                kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
                raise DenoiserError(f"{name} of {self._name} must be floating point, got {kind}")
            if not np.isfinite(array).all():
                raise DenoiserError(
                    f"{name} of {self._name} must be finite, got {array[~np.isfinite(array)][0]}: float16 weights"
                    " overflow in some networks, which are to be exported in float32"
                )
        return dict(zip(self.outputs, found, strict=True))

    def _outputs(self, session: Any, feeds: Mapping[str, Array | DeviceSample], options: Any) -> list[Array]:
        if not any(isinstance(value, DeviceSample) for value in feeds.values()):
            return list(session.run(self.outputs, dict(feeds), options))
        binding, (_, index) = session.io_binding(), self._device.split(":")
        for name, value in feeds.items():
            if isinstance(value, DeviceSample):
                binding.bind_input(name, "cuda", int(index), np.float32, value.shape, value.buffer.address)
            else:
                binding.bind_cpu_input(name, value)
        for name in self.outputs:
            binding.bind_output(name)
        session.run_with_iobinding(binding, options)
        return list(binding.copy_outputs_to_cpu())

    def close(self) -> None:
        """Frees the network; closing twice is fine."""
        self._session = None
