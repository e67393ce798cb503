"""A torch module on a GPU as a network: its rows, and a captured forward for each number of them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from stepfuse._core import cuda
from stepfuse.backends.cuda.capture import WARM_UPS, CapturedForwards, not_captured, require_repeatable
from stepfuse.backends.cuda.config import Cuda
from stepfuse.backends.cuda.torch_capture import RULE, TorchCapture
from stepfuse.bundle.model_info import GUIDANCE_INPUT, ModelInfo
from stepfuse.errors import DenoiserError

_STORAGE = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class TorchNetwork(CapturedForwards):
    """A module, the rows that its forwards and the step share, and its captured forwards.

    Args:
        module: ``module(sample (R, *shape), timestep (R,), **cond)``, on a GPU.
        info: What it is.
        max_rows: Most rows of a forward.
        device: The GPU that the caller names, which must be the module's; None: the module's.

    Raises:
        ValueError: If ``max_rows`` is below 1, the module is in training mode, has no parameter, is not on one GPU or
            on another than ``device``, or ``device`` names what runs a bundle's network.
        TypeError: If it computes in a type that the step has no kernel for.
    """

    def __init__(self, module: Any, info: ModelInfo, max_rows: int, device: Cuda | None = None) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {max_rows}")
        self.device, self._dtype = _where(module)
        if getattr(module, "training", False):
            raise ValueError(
                "the module must be in evaluation mode, got one in training mode, where dropout draws random numbers"
                " that every replay of a captured forward repeats: module.eval()"
            )
        if device is not None:
            _require_device(device, self.device)
        self.storage = _STORAGE[self._dtype]
        self.max_rows = max_rows
        self.graphs: dict[int, cuda.Graph] = {}
        self._module = module
        self._capturing = TorchCapture(self.device)
        self.context = self._capturing.context
        self.stream = cuda.Stream.borrow(self.context, self._capturing.stream.cuda_stream)
        self._captured: list[torch.cuda.CUDAGraph] = []  # they own the memory that the graphs work in
        self._shape = info.shape
        with self.ordered():
            self._allocate(info)

    def _allocate(self, info: ModelInfo) -> None:
        rows, shape = self.max_rows, info.shape
        self._sample, self._prediction = (self._zeros((rows, *shape), self._dtype) for _ in range(2))
        self._timestep = self._zeros((rows,), torch.int64 if info.timestep_dtype == "int64" else torch.float32)
        self._cond = {}
        for name, spec in info.cond.items():
            null = torch.from_numpy(spec.value(name, None))
            computed = null.is_floating_point() and name != GUIDANCE_INPUT
            dtype = self._dtype if computed else null.dtype
            self._cond[name] = null.to(self.device, dtype).expand(rows, *spec.shape).contiguous()
        memory = {"sample": self._sample, "timestep": self._timestep, "prediction": self._prediction, **self._cond}
        self.addresses = {name: tensor.data_ptr() for name, tensor in memory.items()}
        self.cond_storage = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in self._cond.items()}

    @contextmanager
    def ordered(self) -> Iterator[None]:
        """Makes our stream the current one: after the work of the caller's stream, and before its next work."""
        with self._capturing.ordered() as self._callers:
            yield

    def forward(self, rows: int) -> None:
        """Enqueues a forward of the first ``rows`` rows on the current stream.

        Raises:
            DenoiserError: If the module returns another shape, or no tensor.
        """
        cond = {name: values[:rows] for name, values in self._cond.items()}
        got = self._module(self._sample[:rows], self._timestep[:rows], **cond)
        prediction = got if isinstance(got, torch.Tensor) else got[0]
        target = self._prediction[:rows]
        if not isinstance(prediction, torch.Tensor) or prediction.shape != target.shape:
            shape = tuple(getattr(prediction, "shape", ())) or type(prediction).__name__
            raise DenoiserError(f"the module must return shape {tuple(target.shape)}, got {shape}")
        target.copy_(prediction)

    def copy_of(self, states: cuda.DeviceBuffer, count: int) -> torch.Tensor:
        """A copy of the first states, (count, *shape) float32, for the stream that called ``ordered``."""
        copy = torch.empty((count, *self._shape), dtype=torch.float32, device=self.device)
        target = cuda.DeviceBuffer.borrow(self.context, copy.data_ptr(), copy.nbytes)
        target.copy(self.stream, states, copy.nbytes)
        copy.record_stream(self._callers)
        return copy

    def _warm_up(self, rows: int) -> int | None:
        """Bytes that a forward works in, or None if there was no memory for it."""
        before, generator = torch.cuda.memory_allocated(self.device), torch.cuda.get_rng_state(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        try:
            for _ in range(WARM_UPS):
                self.forward(rows)
            self._capturing.stream.synchronize()
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return None
        if not torch.equal(generator, torch.cuda.get_rng_state(self.device)):
            raise not_captured(rows, "it draws random numbers, which every replay would repeat", RULE)
        return max(1, int(torch.cuda.max_memory_allocated(self.device) - before))

    def _free_memory(self) -> int:
        gc.collect()
        torch.cuda.empty_cache()
        return self.context.memory[0]

    def _captures(self, rows: int) -> bool:
        """Captures one forward; False if there was no memory for it."""
        try:
            graph = self._capturing.capture(lambda: self.forward(rows))
        except torch.OutOfMemoryError:
            return False
        except RuntimeError as error:
            raise not_captured(rows, error, RULE) from error
        captured = cuda.Graph.borrow(self.context, graph.raw_cuda_graph())
        require_repeatable(rows, captured, RULE)
        self._captured.append(graph)
        self.graphs[rows] = captured
        return True

    def _forget(self) -> None:
        super()._forget()
        self._captured.clear()

    def _zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)


def _where(module: Any) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of a module's parameters."""
    parameters = [one for one in getattr(module, "parameters", list)() if one.is_floating_point()]
    if not parameters:
        raise ValueError("the module must have floating-point parameters, which say where and in what it computes")
    devices = {parameter.device for parameter in parameters}
    if len(devices) > 1 or next(iter(devices)).type != "cuda":
        raise ValueError(
            f"the module must be on one GPU, got {', '.join(sorted(map(str, devices)))}: module.to('cuda')"
        )
    dtype = parameters[0].dtype
    if dtype not in _STORAGE:
        raise TypeError(f"the module must compute in float32, float16 or bfloat16, got {dtype}")
    return parameters[0].device, dtype


def _require_device(named: Cuda, found: torch.device) -> None:
    for name in ("backend", "options"):
        if (value := getattr(named, name)) is not None:
            raise ValueError(f"{name} must be left out for a torch module, which is the network itself, got {value!r}")
    if named.index != (found.index or 0):
        raise ValueError(f"the module must be on the device named, cuda:{named.index}, got {found}")
