"""A bundle's TensorRT plan as a network on a GPU, whose forwards are captured."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from stepfuse._core import cuda
from stepfuse.backends.cuda.capture import WARM_UPS, not_captured
from stepfuse.backends.cuda.driver_network import DriverNetwork
from stepfuse.backends.cuda.memory import is_out_of_memory
from stepfuse.backends.host.interface import PREDICTION, SAMPLE, TIMESTEP
from stepfuse.bundle.bundle import DENOISER, Bundle
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.errors import BundleError, DenoiserError, PlanError
from stepfuse.tensorrt.choice import plan_on
from stepfuse.tensorrt.library import Library
from stepfuse.tensorrt.runtime import Execution, Runtime
from stepfuse.tensorrt.store import StoredPlan
from stepfuse.tensorrt.target import target_of

#: What TensorRT's errors say where memory is exhausted: its log has texts alone.
_OUT_OF_MEMORY = ("out of memory", "outofmemory", "could not be allocated")


class Plans:
    """A bundle's plans on a GPU, one of them loaded at a time, and the stream that networks of several sizes work on.

    Args:
        bundle: The model folder.
        device: Which GPU.
        library: The TensorRT that runs them; None: an installed one that the bundle has a plan for.

    Attributes:
        bundle: The same.
        context: Of the GPU.
        stream: What all work is ordered on.

    Raises:
        CudaError: If there is no driver or it is too old.
    """

    def __init__(self, bundle: Bundle, *, device: int = 0, library: Library | None = None) -> None:
        self.bundle, self._library = bundle, library
        self.context = cuda.open(device)
        self.stream = cuda.Stream(self.context)
        self._loaded: LoadedPlan | None = None

    def choose(self, info: ModelInfo, max_rows: int) -> tuple[StoredPlan, Library]:
        """The plan for samples of a size, and the library that runs it.

        Raises:
            ImportError: If no TensorRT is installed.
            BundleError: If the bundle has no plan for this GPU and size.
        """
        gpu = target_of(self.context.name, self.context.compute_capability)
        with self._refused(max_rows):
            return plan_on(self.bundle, DENOISER, gpu, shape=info.shape, rows=max_rows, library=self._library)

    def load(self, info: ModelInfo, max_rows: int) -> LoadedPlan:
        """The same plan, loaded: the one that is, if that is it. The other is let go of before.

        Raises:
            ImportError: As of ``choose``.
            BundleError: Likewise, or if the plan was changed, or TensorRT refuses it.
            DenoiserError: If the GPU has no memory for it.
        """
        stored, library = self.choose(info, max_rows)
        if self._loaded is None or self._loaded.stored != stored:
            self._loaded = None
            with self._refused(max_rows):
                self._loaded = LoadedPlan(self.context, stored, library)
        return self._loaded

    def weights(self, info: ModelInfo, max_rows: int) -> object:
        """The plan that is for them; raises as ``choose``."""
        return self.choose(info, max_rows)[0]

    def network(self, info: ModelInfo, max_rows: int) -> TensorRTNetwork:
        """The network for samples of a size; raises as ``TensorRTNetwork``."""
        return TensorRTNetwork(self, info, max_rows)

    @contextmanager
    def _refused(self, max_rows: int) -> Iterator[None]:
        try:
            yield
        except PlanError as error:
            if is_out_of_memory(error, _OUT_OF_MEMORY):
                raise DenoiserError(f"the GPU has no memory for the plan of {self.bundle.denoiser}: {error}") from error
            rows = max(1, max_rows)
            raise BundleError(
                f"{self.bundle.path}: no plan of {DENOISER} runs on {self.context.name} ({error}): build one here, with"
                f" 'stepfuse plan {self.bundle.path} --rows 1,{-(-rows // 2)},{rows}'"
            ) from error


class LoadedPlan:
    """A plan on a GPU: weights, and memory to work in, which networks of all sizes that it takes have in common.

    Attributes:
        stored: Which one.
        runtime: TensorRT's engine of it.
    """

    def __init__(self, context: cuda.Context, stored: StoredPlan, library: Library) -> None:
        self.stored, self._context = stored, context
        self._scratch: weakref.ref[cuda.DeviceBuffer] | None = None
        with cuda.Current(context):
            self.runtime = Runtime(stored.load(), library)

    def __del__(self) -> None:
        """TensorRT's engine is freed in the GPU's context."""
        if hasattr(self, "runtime"):
            with suppress(cuda.CudaError), cuda.Current(self._context):
                self.runtime.close()

    def scratch(self, size: int) -> cuda.DeviceBuffer:
        """Memory of at least ``size`` bytes, which others may have too: forwards never run at once.

        Raises:
            CudaError: If there is none.
        """
        held = None if self._scratch is None else self._scratch()
        if held is None or held.bytes < size:
            held = cuda.DeviceBuffer(self._context, max(1, size))
            self._scratch = weakref.ref(held)
        return held


class TensorRTNetwork(DriverNetwork):
    """The plan of a bundle's denoiser for this GPU, which ``stepfuse plan`` has built.

    Each row count has an execution context of its own. They share one memory, of the size that the largest needs, since
    forwards never run at once.

    Args:
        plans: The bundle's plans on a GPU.
        info: What the network is.
        max_rows: Most rows of a forward.

    Raises:
        ImportError: If no TensorRT is installed.
        BundleError: If the bundle has no plan for this GPU, TensorRT refuses it, or its tensors are not the manifest's.
        DenoiserError: If the GPU has no memory for it.
        ValueError: If no plan takes ``max_rows`` rows.
        CudaError: If there is no memory.
    """

    out_of_memory_texts = _OUT_OF_MEMORY
    rule = "A plan that is captured must not wait for the device, allocate, or have shapes that depend on data"

    def __init__(self, plans: Plans, info: ModelInfo, max_rows: int) -> None:
        self.context, bundle = plans.context, plans.bundle
        self._executions: dict[int, Execution] = {}
        self._scratch: cuda.DeviceBuffer | None = None
        self._plan = plans.load(info, max_rows)
        self._runtime = self._plan.runtime
        types = _types(bundle, info, self._runtime.tensors())
        self._row = {SAMPLE: info.shape, TIMESTEP: (), **{name: spec.shape for name, spec in info.cond.items()}}
        profiles = [rows for rows in self._runtime.rows(self._row) if rows]
        if not profiles:
            raise BundleError(f"{bundle.path}: a profile of the plan must take rows of {self._row}: none does")
        if not any(max_rows in rows for rows in profiles):
            taken = " or ".join(f"{rows[0]} to {rows[-1]}" for rows in profiles)
            raise ValueError(f"max_rows must be {taken}, which the plan is for, got {max_rows}")
        self._taken_rows = [count for count in range(1, max_rows + 1) if any(count in rows for rows in profiles)]
        cond_storage = {name: types[name] for name in info.cond}
        super().__init__(
            plans.context, info, max_rows, stream=plans.stream, storage=types[SAMPLE], cond_storage=cond_storage
        )

    def __del__(self) -> None:
        """TensorRT's contexts are freed before its engine and the stream, in the GPU's context."""
        if hasattr(self, "_executions"):
            with suppress(cuda.CudaError), cuda.Current(self.context):
                self._drop()

    def capture(
        self,
        buckets: Sequence[int],
        memory_bytes: int | None = None,
        *,
        optional: bool = False,
        reserved_bytes: int = 0,
    ) -> None:
        """As ``CapturedForwards.capture``; other row counts are padded to the next that the plan takes."""
        padded = [self._padded(rows) for rows in buckets]
        with cuda.Current(self.context):
            self._forget()
            super().capture(padded, memory_bytes, optional=optional, reserved_bytes=reserved_bytes)

    def forward(self, rows: int) -> None:
        """Enqueues a forward of the first ``rows`` rows, without waiting for it; more where the plan takes no fewer.

        Raises:
            DenoiserError: If TensorRT refuses.
            CudaError: If there is no memory for it.
        """
        with cuda.Current(self.context):
            self._execution(self._padded(rows)).enqueue(self.stream.address)

    def _padded(self, rows: int) -> int:
        """The fewest rows from ``rows`` on that the plan takes; a number out of bounds stays as it is."""
        return rows if rows < 1 else min((taken for taken in self._taken_rows if taken >= rows), default=rows)

    def _execution(self, rows: int) -> Execution:
        """The context of a row count, with memory to work in."""
        assert rows not in self.graphs, "a context whose forward was captured may run nothing else"
        found = self._executions.get(rows)
        if found is None:
            found = self._runtime.execution(rows, self._row, self.addresses, self.stream.address)
            self.stream.synchronize()
            self._executions[rows] = found
            self._give_scratch(found)
        if self._scratch is None or self._scratch.bytes < found.bytes:
            self._allocate_scratch(found.bytes)
        return found

    def _give_scratch(self, execution: Execution) -> None:
        """Gives it the shared memory, if that suffices."""
        if self._scratch is not None and self._scratch.bytes >= execution.bytes:
            execution.work_in(self._scratch.address, self._scratch.bytes)

    def _allocate_scratch(self, size: int) -> None:
        """Takes shared memory of that size, and gives it to all contexts that it suffices for."""
        assert not self.graphs, "a captured forward needs the memory that it was captured with"
        self.stream.synchronize()
        self._scratch = None
        self._scratch = self._plan.scratch(size)
        for one in self._executions.values():
            self._give_scratch(one)

    def _warm_up(self, rows: int) -> int | None:
        try:
            for _ in range(WARM_UPS):  # in the first of which TensorRT for RTX compiles
                self.forward(rows)
            self.stream.synchronize()
        except Exception as error:
            if self._is_out_of_memory(error):
                if rows in self._executions:
                    self._executions.pop(rows).close()
                return None
            raise
        return max(1, self._executions[rows].bytes)

    def _free_memory(self) -> int:
        return super()._free_memory() + (self._scratch.bytes if self._scratch else 0)

    def _captures(self, rows: int) -> bool:
        try:
            if not self.graphs:
                self._shrink_to(rows)
            self.forward(rows)
            self.stream.synchronize()
        except Exception as error:
            if self._is_out_of_memory(error):
                return False
            raise
        if not self._executions[rows].is_capturable(self.stream.address):
            raise not_captured(rows, "TensorRT says that it cannot be", self.rule)
        return super()._captures(rows)

    def _shrink_to(self, rows: int) -> None:
        """Frees the contexts of more rows, and their share of the memory."""
        self._drop(more_than=rows)
        self._allocate_scratch(max(one.bytes for one in self._executions.values()))

    def _forget(self) -> None:
        """Drops the captured forwards, and the contexts that they were captured from."""
        super()._forget()
        self._drop()
        self._scratch = None

    def _drop(self, more_than: int = 0) -> None:
        """Frees the contexts of more rows than that: errors that are kept may keep this object, but not these."""
        for rows in [rows for rows in self._executions if rows > more_than]:
            self._executions.pop(rows).close()


def _types(bundle: Bundle, info: ModelInfo, found: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, str]:
    """The dtype of each tensor of a plan, whose shapes and dtypes must be the manifest's; float32 may be float16."""
    floats = {"float32", "float16"}
    rows: dict[str, tuple[set[str], tuple[int, ...]]] = {
        SAMPLE: (floats, info.shape),
        TIMESTEP: ({info.timestep_dtype}, ()),
        PREDICTION: (floats, info.shape),
    }
    for name, spec in info.cond.items():
        rows[name] = (floats if spec.dtype == "float32" else {spec.dtype}, spec.shape)
    if set(found) != set(rows):
        raise BundleError(f"{bundle.path}: a plan's tensors must be {', '.join(rows)}, got {', '.join(found)}")
    for name, (types, shape) in rows.items():
        dtype, dims = found[name]
        if dtype not in types:
            raise BundleError(f"{bundle.path}: {name} of the plan must be {' or '.join(sorted(types))}, got {dtype}")
        fits = len(dims) == len(shape) + 1 and all(a in (-1, b) for a, b in zip(dims[1:], shape, strict=True))
        if not fits:
            raise BundleError(f"{bundle.path}: a row of {name} of the plan must have shape {shape}, got {dims[1:]}")
    if found[SAMPLE][0] != found[PREDICTION][0]:
        raise BundleError(
            f"{bundle.path}: sample and prediction of the plan must be of one type, got {found[SAMPLE][0]} and"
            f" {found[PREDICTION][0]}"
        )
    return {name: dtype for name, (dtype, _) in found.items()}
