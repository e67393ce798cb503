"""A bundle's TensorRT plan as a network on a GPU, whose forwards are captured."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

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
from stepfuse.tensorrt.target import target_of

#: What TensorRT's errors say where memory is exhausted: its log has texts alone.
_OUT_OF_MEMORY = ("out of memory", "outofmemory", "could not be allocated")


class TensorRTNetwork(DriverNetwork):
    """The plan of a bundle's denoiser for this GPU, which ``stepfuse plan`` has built.

    Each row count has an execution context of its own. They share one memory, of the size that the largest needs, since
    forwards never run at once.

    Args:
        bundle: The model folder.
        info: What the network is.
        max_rows: Most rows of a forward.
        device: Which GPU.
        library: The TensorRT that runs it; None: an installed one that the bundle has a plan for.

    Raises:
        ImportError: If no TensorRT is installed.
        BundleError: If the bundle has no plan for this GPU, TensorRT refuses it, or its tensors are not the manifest's.
        DenoiserError: If the GPU has no memory for it.
        ValueError: If no plan takes ``max_rows`` rows.
        CudaError: If there is no driver, or no memory.
    """

    out_of_memory_texts = _OUT_OF_MEMORY
    rule = "A plan that is captured must not wait for the device, allocate, or have shapes that depend on data"

    def __init__(
        self, bundle: Bundle, info: ModelInfo, max_rows: int, *, device: int = 0, library: Library | None = None
    ) -> None:
        self.context = cuda.open(device)
        self._executions: dict[int, Execution] = {}
        self._scratch: cuda.DeviceBuffer | None = None
        self._runtime = self._load(bundle, info, max_rows, library)
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
        super().__init__(self.context, info, max_rows, storage=types[SAMPLE], cond_storage=cond_storage)

    def __del__(self) -> None:
        """TensorRT's objects are freed before the stream, in the GPU's context."""
        if hasattr(self, "_runtime"):
            with suppress(cuda.CudaError), cuda.Current(self.context):
                self._drop()
                self._runtime.close()

    def _load(self, bundle: Bundle, info: ModelInfo, max_rows: int, library: Library | None) -> Runtime:
        try:
            gpu = target_of(self.context.name, self.context.compute_capability)
            plan, library = plan_on(bundle, DENOISER, gpu, shape=info.shape, rows=max_rows, library=library)
            with cuda.Current(self.context):
                return Runtime(plan, library)
        except PlanError as error:
            if is_out_of_memory(error, _OUT_OF_MEMORY):
                raise DenoiserError(f"the GPU has no memory for the plan of {bundle.denoiser}: {error}") from error
            rows = max(1, max_rows)
            raise BundleError(
                f"{bundle.path}: no plan of {DENOISER} runs on {self.context.name} ({error}): build one here, with"
                f" 'stepfuse plan {bundle.path} --rows 1,{-(-rows // 2)},{rows}'"
            ) from error

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
        """Allocates the shared memory, and gives it to all contexts that it suffices for."""
        assert not self.graphs, "a captured forward needs the memory that it was captured with"
        self.stream.synchronize()
        self._scratch = None
        self._scratch = cuda.DeviceBuffer(self.context, max(1, size))
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
