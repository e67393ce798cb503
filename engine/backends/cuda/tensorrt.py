"""A bundle's TensorRT plan as a network on a GPU, whose forwards are captured."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from stepfuse._core import cuda
from stepfuse.backends.cuda.capture import WARM_UPS, not_captured
from stepfuse.backends.cuda.driver_network import DriverNetwork
from stepfuse.backends.host.onnxruntime import PREDICTION, SAMPLE, TIMESTEP
from stepfuse.bundle.bundle import DENOISER, Bundle
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.errors import BundleError, DenoiserError, PlanError
from stepfuse.tensorrt.choice import plan_on
from stepfuse.tensorrt.library import Library
from stepfuse.tensorrt.runtime import Execution, Runtime
from stepfuse.tensorrt.target import target_of


class TensorRTNetwork(DriverNetwork):
    """The plan of a bundle's denoiser for this GPU, which ``stepfuse plan`` has built.

    Each row count has an execution context of its own. They work in one memory, as large as the largest needs it:
    forwards never run at once.

    Args:
        bundle: The model folder.
        info: What the network is.
        max_rows: Most rows of a forward.
        device: Which GPU.
        library: The TensorRT that runs it; None: whichever is installed that the bundle has a plan of.

    Raises:
        ImportError: If no TensorRT is installed.
        BundleError: If the bundle has no plan for this GPU, TensorRT does not take it, or it is not of such a network.
        DenoiserError: If the GPU has no memory for it.
        ValueError: If no plan takes ``max_rows`` rows.
        CudaError: If there is no driver, or no memory.
    """

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
        """What is TensorRT's goes before the stream, in the GPU's context."""
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
            if _tells_of_memory(error):
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
        beside_bytes: int = 0,
    ) -> None:
        """As of the class, for row counts that the plan takes: what is between is padded."""
        padded = [self._padded(rows) for rows in buckets]
        with cuda.Current(self.context):
            self._forget()
            super().capture(padded, memory_bytes, optional=optional, beside_bytes=beside_bytes)

    def forward(self, rows: int) -> None:
        """Puts the first ``rows`` rows on the stream, without waiting for them; more where the plan takes no fewer.

        Raises:
            DenoiserError: If TensorRT cannot.
            CudaError: If there is no memory for them.
        """
        with cuda.Current(self.context):
            self._execution(self._padded(rows)).enqueue(self.stream.address)

    def _padded(self, rows: int) -> int:
        """The fewest rows from ``rows`` on that the plan takes; what is out of bounds stays so."""
        return rows if rows < 1 else min((taken for taken in self._taken_rows if taken >= rows), default=rows)

    def _execution(self, rows: int) -> Execution:
        """What runs as many rows, with memory to work in."""
        assert rows not in self.graphs, "what is captured is launched: nothing else may run in its context"
        found = self._executions.get(rows)
        if found is None:
            found = self._runtime.execution(rows, self._row, self.addresses, self.stream.address)
            self.stream.synchronize()
            self._executions[rows] = found
            self._give(found)
        if self._scratch is None or self._scratch.bytes < found.bytes:
            self._work_in(found.bytes)
        return found

    def _give(self, execution: Execution) -> None:
        """Has it work in the memory, if that suffices."""
        if self._scratch is not None and self._scratch.bytes >= execution.bytes:
            execution.work_in(self._scratch.address, self._scratch.bytes)

    def _work_in(self, size: int) -> None:
        """Has all that it suffices for work in one memory of that size."""
        assert not self.graphs, "what is captured works in the memory that it was captured with"
        self.stream.synchronize()
        self._scratch = None
        self._scratch = cuda.DeviceBuffer(self.context, max(1, size))
        for one in self._executions.values():
            self._give(one)

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
                self._keep(rows)
            self.forward(rows)
            self.stream.synchronize()
        except Exception as error:
            if self._is_out_of_memory(error):
                return False
            raise
        if not self._executions[rows].is_capturable(self.stream.address):
            raise not_captured(rows, "TensorRT says that it cannot be", self.rule)
        return super()._captures(rows)

    def _keep(self, rows: int) -> None:
        """Lets go of all that more rows than these have taken."""
        self._drop(more_than=rows)
        self._work_in(max(one.bytes for one in self._executions.values()))

    def _is_out_of_memory(self, error: BaseException) -> bool:
        return super()._is_out_of_memory(error) or (isinstance(error, DenoiserError) and _tells_of_memory(error))

    def _forget(self) -> None:
        """Drops what was captured, and the contexts that it was captured from."""
        super()._forget()
        self._drop()
        self._scratch = None

    def _drop(self, more_than: int = 0) -> None:
        """Lets go of the contexts of more rows than that. Errors may keep what they were raised in, but not these."""
        for rows in [rows for rows in self._executions if rows > more_than]:
            self._executions.pop(rows).close()


def _types(bundle: Bundle, info: ModelInfo, found: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, str]:
    """The type of each tensor of a plan, where shapes and types are those of the manifest. Floats may be halves."""
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


def _tells_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return any(words in text for words in ("out of memory", "outofmemory", "could not be allocated"))
