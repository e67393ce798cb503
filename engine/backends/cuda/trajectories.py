"""Whole trajectories on an NVIDIA GPU: a static batch is one launch, from its noise to its images."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic

import numpy as np
import numpy.typing as npt

from stepfuse._core import cuda
from stepfuse.backends.cuda.batch_memory import BatchMemory
from stepfuse.backends.cuda.bundle_network import OpenedNetwork
from stepfuse.backends.cuda.capture import capture_as
from stepfuse.backends.cuda.config import Cuda, gpu_of
from stepfuse.backends.cuda.kernels import StepKernels
from stepfuse.backends.cuda.network import CapturedNetwork, Samples
from stepfuse.backends.cuda.program import Kernels, batch_program
from stepfuse.backends.cuda.static_batch import StaticBatch, frames_of, split, static_batch_of
from stepfuse.bundle.bundle import Bundle
from stepfuse.bundle.cond_input import CondInput
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.extras import pip_install
from stepfuse.requests.resolution import Compiler, ResolvedRequest, resolve, starting_state
from stepfuse.samplers.schedule import NoiseSchedule
from stepfuse.samplers.table import StepTable

if TYPE_CHECKING:
    import torch

FORMS = {"unrolled": cuda.Form.Unrolled, "loop": cuda.Form.While}

_KEPT = 8  # trajectories: one a number of samples and of rows in each step
_SMALLEST_LOOP = 64  # steps that a loop has frames for; it doubles

logger = logging.getLogger("stepfuse")


class Unset(Enum):
    """An argument that was not given."""

    UNSET = "unset"


class Trajectories(Generic[Samples]):
    """Draws static batches from a network on a GPU. Calls from several threads run one after the other.

    A batch's forwards and steps are one CUDA graph, which is built when it is first needed and kept for the next batch
    of as many samples. A batch of more samples than fit the largest forward takes several launches.

    Args:
        info: What the network is.
        network: The network.
        kernels: The step, compiled.
        form: ``unrolled``, where every step has nodes of its own, with the smallest forward that it needs, on any
            driver; or ``loop``, where the device repeats the nodes of one step (CUDA 12.4): built once for all numbers
            of steps, each of which has the rows of the largest.

    Raises:
        ValueError: If ``form`` is neither.
        CudaError: If there is no memory for the samples.
    """

    def __init__(
        self, info: ModelInfo, network: CapturedNetwork[Samples], kernels: Kernels, *, form: str = "unrolled"
    ) -> None:
        if form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
        self.info = info
        self._network = network
        self._memory = BatchMemory(network, info)
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
        device: str | Cuda | None = None,
        max_rows: int = 16,
        buckets: Sequence[int] | None = None,
        memory_bytes: int | None = None,
        cubins: str | os.PathLike[str] | None = None,
        form: str = "unrolled",
        eager: bool | Unset | None = Unset.UNSET,
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
            device: Where the module is: ``cuda``, ``cuda:1``, or a ``Cuda``; None is the GPU that it is on. A ``Cuda``
                has neither ``backend`` nor ``options``, since the module is the network, and takes the place of
                ``buckets``, ``memory_bytes``, ``cubins`` and ``eager``.
            max_rows: Most rows of a forward; a guided sample takes two.
            buckets: Row counts that are captured; None: 1, 2, 3, 4, 6, 8, 12, ... to ``max_rows``.
            memory_bytes: Most device memory that captured forwards may work in; None: what is free. Where it does not
                suffice the largest forwards are given up, and a warning says so.
            cubins: Folder of kernels built ahead of time; None compiles them with Triton.
            form: As of the class.
            eager: Whether the forward runs kernel by kernel, each launched by the host: False, the default, never, True
                always, None where it cannot be captured, with a warning. ``self.eager`` says whether it does.

        Raises:
            ImportError: If torch is missing.
            CaptureError: If the module cannot be captured and ``eager`` is False.
            CudaError: If there is no driver, or it is too old.
            KernelError: If there is no compiled step for this GPU.
            ValueError: If ``max_rows`` is below 1, a bucket is not between 1 and ``max_rows``, ``form`` is neither, the
                module is not on one GPU or not on ``device``, or ``device`` is ``cpu``, or a ``Cuda`` with one of its
                attributes given as a keyword too.
            TypeError: If the module computes in a dtype that the step has no kernel for.
        """
        try:
            from stepfuse.backends.cuda.torch import TorchNetwork
        except ModuleNotFoundError as error:
            raise ImportError(f"a torch module needs {error.name}: {pip_install('kernels')}") from error
        info = ModelInfo(
            shape=shape,
            schedule=schedule,
            prediction_type=prediction_type,
            cond=cond or {},
            timestep_dtype=timestep_dtype,
            defaults=defaults or {},
        )
        gpu = _gpu(
            "cuda" if device is None else device, eager, buckets=buckets, memory_bytes=memory_bytes, cubins=cubins
        )
        network = TorchNetwork(module, info, max_rows, device=None if device is None else gpu)
        return cls._captured(info, network, gpu, form)

    @classmethod
    def load(
        cls,
        name_or_path: str | os.PathLike[str] | Bundle,
        *,
        device: int | str | Cuda = 0,
        backend: str | None = None,
        options: Mapping[str, str] | None = None,
        max_rows: int = 16,
        buckets: Sequence[int] | None = None,
        memory_bytes: int | None = None,
        cubins: str | os.PathLike[str] | None = None,
        form: str = "unrolled",
        eager: bool | Unset | None = Unset.UNSET,
        verify: bool = True,
    ) -> Trajectories[npt.NDArray[Any]]:
        """Loads an embedded model by name or a bundle by path, and captures its network.

        Args:
            name_or_path: Such as ``"fashion"``, a folder with a ``manifest.json``, or a bundle that is loaded already.
            device: Which GPU: its index, ``cuda``, ``cuda:1``, or a ``Cuda``, which takes the place of ``backend``,
                ``options``, ``buckets``, ``memory_bytes``, ``cubins`` and ``eager``.
            backend: What runs the network: ``onnxruntime``, the default, by its CUDA execution provider,
                ``onnxruntime-tensorrt`` by its TensorRT execution provider, or ``tensorrt`` by a plan that
                ``stepfuse plan`` has put into the bundle.
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
            ProviderError: If ONNX Runtime lacks the execution provider; it never falls back to the CPU.
            BundleError: If the bundle cannot be used; the message names file, rule and value.
            DenoiserError: If the GPU has no memory for the network, or the library refuses it.
            CaptureError: If the network cannot be captured and ``eager`` is False.
            CudaError: If there is no driver, or it is too old.
            KernelError: If there is no compiled step for this GPU.
            ValueError: If ``max_rows`` is below 1 or more than a plan takes, a bucket is not between 1 and
                ``max_rows``, ``form`` or ``backend`` is none of its values, the library does not take ``options``, or
                ``device`` is no GPU, or a ``Cuda`` with one of its attributes given as a keyword too.
        """
        given = {"backend": backend, "options": options, "buckets": buckets, "memory_bytes": memory_bytes}
        gpu = _gpu(device, eager, cubins=cubins, **given)
        bundle = name_or_path if isinstance(name_or_path, Bundle) else Bundle.load(name_or_path, verify=verify)
        return cls._captured(bundle.info, OpenedNetwork(bundle, gpu).network(bundle.info, max_rows), gpu, form)

    @classmethod
    def _captured(cls, info: ModelInfo, network: CapturedNetwork[Any], gpu: Cuda, form: str) -> Trajectories[Any]:
        made = cls(info, network, StepKernels.of(network, gpu.cubins), form=form)
        capture_as(gpu, network)
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
            (n, *shape) float32. Of a torch module a tensor on its GPU, without waiting for it: it is valid for what is
            enqueued on the caller's stream next. Else an array.

        Raises:
            ValueError: If an argument is out of bounds as in ``Engine.sample``, a guided sample takes more rows than
                the largest forward has, or a value does not fit the network's storage.
            TypeError: If an argument is of the wrong kind.
            CudaError: If a call of the driver failed. The samples of this call are lost; later calls are not affected.
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
        frames = frames_of(self.info, requests)
        batch = static_batch_of(self.info, requests, frames, noise)
        if self.eager:
            self._run_eagerly(frames, batch)
        else:
            trajectory = self._trajectory(frames)
            self._memory.begin(batch)
            trajectory.load(self._network.stream, frames)
            trajectory.launch(self._network.stream)
        return self._network.copy_of(self._memory.states, frames.slots)

    def _trajectory(self, frames: cuda.Frames) -> cuda.Trajectory:
        """The graph that runs these frames, built if there is none yet."""
        forward_rows = frames.forward_rows
        if self._form == cuda.Form.While:
            room = max(_SMALLEST_LOOP, 1 << (frames.steps - 1).bit_length())
            forward_rows = [max(forward_rows)] * room
        plan = cuda.plan_trajectory(self._form, frames.slots, forward_rows, self.rows, frames.needs.second)
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
        program = self._program(plan.slots, needs)
        arguments = self._memory.arguments(program, needs)
        return cuda.Trajectory(self._network.context, plan, program, needs, arguments, self._network.graphs)

    def _program(self, slots: int, needs: cuda.StepNeeds) -> cuda.StepProgram:
        return batch_program(self._kernels, self._network.storage, math.prod(self.info.shape), slots, needs)

    def _run_eagerly(self, frames: cuda.Frames, batch: StaticBatch) -> None:
        """Every forward and every step launched by the host."""
        network, words = self._network, frames.words
        program = self._program(frames.slots, frames.needs)
        arguments = self._memory.arguments(program, frames.needs)
        self._memory.begin(batch)
        frame = self._memory.upload_frames(words)
        for rows in frames.forward_rows:
            network.forward(rows)
            program.launch(network.stream, frames.slots, frames.needs, arguments, frame)
            frame += words.shape[1] * words.itemsize


def _gpu(device: int | str | Cuda, eager: bool | Unset | None, **options: Any) -> Cuda:
    """The GPU with the options that are given; eager is False unless something says otherwise."""
    given = {name: value for name, value in options.items() if value is not None}
    if eager is not Unset.UNSET:
        given["eager"] = eager
    elif not isinstance(device, Cuda):
        given["eager"] = False
    return gpu_of(device, **given)


def _joined(drawn: Sequence[Any]) -> Any:
    if isinstance(drawn[0], np.ndarray):
        return np.concatenate(drawn)
    import torch

    return torch.cat(drawn)
