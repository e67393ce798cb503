"""Whole trajectories on an NVIDIA GPU: a batch that nobody joins is one launch, from its noise to its images."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from stepfuse._core import cuda
from stepfuse.backends.cuda.kernels import StepKernels
from stepfuse.backends.cuda.networks import open_network
from stepfuse.backends.cuda.program import beside_step
from stepfuse.backends.cuda.static_batch import Batch, batch_of, frames_of, split
from stepfuse.bundle.bundle import Bundle
from stepfuse.bundle.cond_input import CondInput
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.requests.resolution import Compiler, ResolvedRequest, resolve, starting_state
from stepfuse.samplers.schedule import NoiseSchedule
from stepfuse.samplers.table import StepTable

if TYPE_CHECKING:
    import torch

FORMS = {"unrolled": cuda.Form.Unrolled, "loop": cuda.Form.While}

_KEPT = 8  # trajectories: one a number of samples and of rows in each step
_SMALLEST_LOOP = 64  # steps that a loop has room for; it doubles
_KNOWN_BYTES = 3 * 4  # an element: image, mask and noise, float32

logger = logging.getLogger("stepfuse")


#: What samples come back as: a tensor on the GPU of a torch module, else an array.
Samples = TypeVar("Samples", covariant=True)


class Network(Protocol[Samples]):
    """A network on a GPU, and the memory that it and the step share.

    Attributes:
        stream: What all work is ordered on.
        graphs: Its captured forwards by their rows; empty where it runs eagerly.
        max_rows: Rows of its memory.
        values: The step's arguments that never change: addresses, strides, lengths.
        storage: What it takes samples and gives predictions in: ``float32``, ``float16`` or ``bfloat16``.
        addresses: Device memory of ``sample``, ``timestep``, ``prediction`` and each conditioning input by name.
        cond_storage: Dtype of each conditioning input in that memory.
    """

    context: cuda.Context
    stream: cuda.Stream
    graphs: dict[int, cuda.Graph]
    max_rows: int
    values: dict[str, int]
    storage: str
    addresses: dict[str, int]
    cond_storage: dict[str, str]

    def ordered(self) -> AbstractContextManager[object]:
        """Behind what the caller's stream has, and before what it gets next."""

    def begin(self, batch: Batch) -> None:
        """Copies a batch to the first rows of the memory; what it keeps of images to ``extra("known", ...)``."""

    def extra(self, name: str, size: int) -> int:
        """Memory of ``size`` bytes that some batches take beside, kept from its first use on; returns its address."""

    def upload(self, words: npt.NDArray[Any]) -> int:
        """Copies words to memory that holds them until the next call; returns its address."""

    def forward(self, rows: int) -> None:
        """Runs the first ``rows`` rows, kernel by kernel."""

    def result(self, slots: int) -> Samples:
        """A copy of the first states, (slots, *shape) float32: on the GPU, or an array once they are there."""

    def capture(self, buckets: Sequence[int], memory_bytes: int | None = None, *, optional: bool = False) -> None:
        """Captures a forward for each number of rows, the largest first."""


class Trajectories(Generic[Samples]):
    """Draws batches from a network on a GPU. Calls from several threads take turns.

    A batch's forwards and steps are one CUDA graph, which is built when it is first asked for and kept for the next
    batch of as many samples. A batch of more samples than fit the largest forward takes several launches.

    Args:
        info: What the network is.
        network: The network.
        kernels: The step, compiled.
        form: ``unrolled``, every step a piece of the graph: each as small as it can be, and any driver runs it; or
            ``loop``, one piece that the device repeats (CUDA 12.4): built once for all numbers of steps, each of which
            has the rows of the largest.

    Raises:
        ValueError: If the form is another.
    """

    def __init__(
        self, info: ModelInfo, network: Network[Samples], kernels: StepKernels, *, form: str = "unrolled"
    ) -> None:
        if form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
        self.info = info
        self._network = network
        self._kernels = kernels
        self._form = FORMS[form]
        self._compiler = Compiler(info)
        self._built: OrderedDict[tuple[Any, ...], cuda.Trajectory] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def from_torch(
        cls,
        module: Any,
        *,
        shape: tuple[int, ...],
        schedule: NoiseSchedule,
        prediction_type: str = "epsilon",
        cond: Mapping[str, CondInput] | None = None,
        timestep_dtype: str = "float32",
        defaults: Mapping[str, Any] | None = None,
        max_rows: int = 16,
        buckets: Sequence[int] | None = None,
        memory_bytes: int | None = None,
        cubins: str | os.PathLike[str] | None = None,
        form: str = "unrolled",
        eager: bool | None = False,
    ) -> Trajectories[torch.Tensor]:
        """Captures a torch module that is on a GPU, in evaluation mode and in the dtype that it is to run in.

        Args:
            module: ``module(sample (R, *shape), timestep (R,), **cond)`` to the prediction, or a tuple of which that is
                the first. It may be compiled (``torch.compile``, without graphs of its own). Floating-point inputs but
                the timestep have the dtype of its parameters.
            shape: Shape of one sample, without the batch.
            schedule: Noise levels that it was trained with.
            prediction_type: ``epsilon``, ``v_prediction``, ``sample`` or ``flow``.
            cond: Conditioning inputs by name.
            timestep_dtype: ``float32``, or ``int64`` to have timesteps rounded.
            defaults: Arguments of ``sample`` where the caller gives none.
            max_rows: Most rows of a forward; a guided sample takes two.
            buckets: Row counts that are captured; None: 1, 2, 3, 4, 6, 8, 12, ... to ``max_rows``.
            memory_bytes: Most device memory that captured forwards may work in; None: what is free. Where it does not
                suffice the largest forwards are given up, and a warning says so.
            cubins: Folder of kernels built ahead of time; None compiles them with Triton.
            form: As of the class.
            eager: Whether the forward runs kernel by kernel, each launched by the host: False never, True always, None
                where it cannot be captured, with a warning. ``self.eager`` says whether it does.

        Raises:
            ImportError: If torch is missing.
            CaptureError: If the module cannot be captured and ``eager`` is False.
            CudaError: If there is no driver, or it is too old.
            KernelError: If there is no compiled step for this GPU.
            ValueError: If a bound is broken, or the module is not on a GPU.
        """
        try:
            from stepfuse.backends.cuda.torch import TorchNetwork
        except ModuleNotFoundError as error:
            raise ImportError(f"a torch module needs {error.name}: pip install 'stepfuse[kernels]'") from error
        info = ModelInfo(
            shape=shape,
            schedule=schedule,
            prediction_type=prediction_type,
            cond=cond or {},
            timestep_dtype=timestep_dtype,
            defaults=defaults or {},
        )
        network = TorchNetwork(module, info, max_rows)
        return cls._captured(info, network, buckets, memory_bytes, cubins, form, eager)

    @classmethod
    def load(
        cls,
        name_or_path: str | os.PathLike[str] | Bundle,
        *,
        device: int = 0,
        backend: str = "onnxruntime",
        options: Mapping[str, str] | None = None,
        max_rows: int = 16,
        buckets: Sequence[int] | None = None,
        memory_bytes: int | None = None,
        cubins: str | os.PathLike[str] | None = None,
        form: str = "unrolled",
        eager: bool | None = False,
        verify: bool = True,
    ) -> Trajectories[npt.NDArray[Any]]:
        """Loads an embedded model by name or a bundle by path, and captures its network.

        Args:
            name_or_path: Such as ``"fashion"``, a folder with a ``manifest.json``, or a bundle that is loaded already.
            device: Which GPU.
            backend: What runs the network: ``onnxruntime`` by its CUDA execution provider, ``onnxruntime-tensorrt`` by
                its TensorRT execution provider, or ``tensorrt`` by a plan that ``stepfuse plan`` has put in the bundle.
            options: Of ONNX Runtime's execution provider, by the names that it has for them, such as
                ``{"use_tf32": "1"}`` or ``{"trt_engine_cache_enable": "1", "trt_engine_cache_path": "engines"}``.
            max_rows: As in ``from_torch``, like what follows.
            buckets: Row counts that are captured.
            memory_bytes: Most device memory that captured forwards may work in.
            cubins: Folder of kernels built ahead of time.
            form: As of the class.
            eager: Whether the forward runs kernel by kernel.
            verify: Whether checksums are compared; False trusts the files' sizes.

        Raises:
            ImportError: If the library is missing.
            ProviderError: If ONNX Runtime has not the execution provider; it never falls back to the CPU.
            BundleError: If the bundle cannot be used; the message names file, rule and value.
            DenoiserError: If the GPU has no memory for the network, or it cannot run.
            CaptureError: If the network cannot be captured and ``eager`` is False.
            CudaError: If there is no driver, or it is too old.
            KernelError: If there is no compiled step for this GPU.
            ValueError: If a bound is broken.
        """
        bundle = name_or_path if isinstance(name_or_path, Bundle) else Bundle.load(name_or_path, verify=verify)
        network = open_network(bundle, bundle.info, device=device, backend=backend, max_rows=max_rows, options=options)
        return cls._captured(bundle.info, network, buckets, memory_bytes, cubins, form, eager)

    @classmethod
    def _captured(
        cls,
        info: ModelInfo,
        network: Network[Any],
        buckets: Sequence[int] | None,
        memory_bytes: int | None,
        cubins: str | os.PathLike[str] | None,
        form: str,
        eager: bool | None,
    ) -> Trajectories[Any]:
        kernels = StepKernels(network.context, network.storage, None if cubins is None else Path(cubins))
        made = cls(info, network, kernels, form=form)
        if eager is not True:
            network.capture(buckets or cuda.bucket_rows(network.max_rows), memory_bytes, optional=eager is None)
        return made

    @property
    def eager(self) -> bool:
        """Whether forwards run kernel by kernel, each launched by the host."""
        return not self._network.graphs

    @property
    def rows(self) -> list[int]:
        """Row counts of the captured forwards, the largest first."""
        return sorted(self._network.graphs, reverse=True)

    def sample(
        self,
        n: int = 1,
        *,
        cond: Any = None,
        negative_cond: Any = None,
        sampler: str | Sequence[str] | None = None,
        steps: int | Sequence[int] | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        eta: float | Sequence[float] | None = None,
        seed: int | Sequence[int] | None = None,
        table: StepTable | Sequence[StepTable] | None = None,
        noise: npt.ArrayLike | None = None,
        image: npt.ArrayLike | None = None,
        mask: npt.ArrayLike | None = None,
        strength: float | Sequence[float] | None = None,
        **options: Any,
    ) -> Samples:
        """Draws ``n`` samples; the arguments are those of ``Engine.sample``, and the same seed gives the same noise.

        Returns:
            (n, *shape) float32. Of a torch module a tensor on its GPU, which nothing waits for: it is there for what is
            put on the caller's stream next. Else an array.

        Raises:
            ValueError: If a bound is broken.
            TypeError: If a value is of the wrong kind.
            CudaError: If a call of the driver failed. What was drawn is lost, later calls are not concerned.
        """
        requests = resolve(
            self._compiler,
            n,
            cond=cond,
            negative_cond=negative_cond,
            seed=seed,
            table=table,
            sampler=sampler,
            steps=steps,
            guidance_scale=guidance_scale,
            eta=eta,
            image=image,
            mask=mask,
            strength=strength,
            options=options,
        )
        first = None if noise is None else starting_state((n, *self.info.shape), noise)
        largest = max(self._network.graphs, default=self._network.max_rows)
        parts = split(requests, largest)
        with self._lock, self._network.ordered():
            drawn = [self._draw(requests[part], None if first is None else first[part]) for part in parts]
        return drawn[0] if len(drawn) == 1 else _joined(drawn)

    def _draw(self, requests: Sequence[ResolvedRequest], noise: npt.NDArray[Any] | None) -> Samples:
        frames = frames_of(requests)
        batch = batch_of(self.info, requests, frames, noise)
        if self.eager:
            self._run_eagerly(frames, batch)
        else:
            trajectory = self._trajectory(frames)
            self._network.begin(batch)
            trajectory.load(self._network.stream, frames)
            trajectory.launch(self._network.stream)
        return self._network.result(frames.slots)

    def _trajectory(self, frames: cuda.Frames) -> cuda.Trajectory:
        """The graph that these frames run in, built if there is none yet."""
        forward_rows = frames.forward_rows
        if self._form == cuda.Form.While:
            room = max(_SMALLEST_LOOP, 1 << (frames.steps - 1).bit_length())
            forward_rows = [max(forward_rows)] * room
        plan = cuda.plan_trajectory(self._form, frames.slots, forward_rows, self.rows)
        key = frames.slots, tuple(plan.forward_rows), frames.needs
        if key in self._built:
            self._built.move_to_end(key)
            return self._built[key]
        while len(self._built) >= _KEPT:
            self._built.popitem(last=False)
        try:
            built = self._build(plan, frames.needs)
        except cuda.CudaError as error:
            if not (error.out_of_memory and self._built):
                raise
            logger.warning("no memory for a trajectory of %d steps: the kept ones are given up", plan.steps)
            self._built.clear()
            built = self._build(plan, frames.needs)
        self._built[key] = built
        return built

    def _build(self, plan: cuda.TrajectoryPlan, needs: cuda.StepNeeds) -> cuda.Trajectory:
        network = self._network
        program = self._program(plan.slots, needs)
        return cuda.Trajectory(network.context, plan, program, needs, self._values(program, needs), network.graphs)

    def _program(self, slots: int, needs: cuda.StepNeeds) -> cuda.StepProgram:
        """The kernels of a step with these needs."""
        n = self._network.values["n"]
        step = {slots: self._kernels.get(slots, n, noise=needs.noise)}
        beside = beside_step(self._kernels, self._network.storage, n, needs)
        return cuda.StepProgram({} if needs.noise else step, step if needs.noise else {}, **beside)

    def _values(self, program: cuda.StepProgram, needs: cuda.StepNeeds) -> dict[str, int]:
        """The kernels' arguments but those that frames hold."""
        network = self._network
        values, rows = dict(network.values), network.max_rows
        if needs.rescale:
            values["sums"] = network.extra("sums", program.sums_bytes(rows, values["n"]))
        if needs.keep:
            values["known"] = network.extra("known", rows * _KNOWN_BYTES * values["n"])
        return values

    def _run_eagerly(self, frames: cuda.Frames, batch: Batch) -> None:
        """Every forward and every step launched by the host."""
        network, words = self._network, frames.words
        program = self._program(frames.slots, frames.needs)
        values = self._values(program, frames.needs)
        network.begin(batch)
        frame = network.upload(words)
        for rows in frames.forward_rows:
            network.forward(rows)
            program.launch(network.stream, frames.slots, frames.needs, values, frame)
            frame += words.shape[1] * words.itemsize


def _joined(drawn: Sequence[Any]) -> Any:
    if isinstance(drawn[0], np.ndarray):
        return np.concatenate(drawn)
    import torch

    return torch.cat(drawn)
