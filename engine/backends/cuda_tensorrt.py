"""A bundle's TensorRT plan as a network on a GPU."""

from __future__ import annotations

from typing import Any

from stepfuse._core import cuda
from stepfuse.backends.cuda_capture import WARM_UPS, not_captured
from stepfuse.backends.cuda_driver import DriverNetwork
from stepfuse.backends.onnxruntime import PREDICTION, SAMPLE, TIMESTEP
from stepfuse.bundle import DENOISER, Bundle, ModelInfo
from stepfuse.errors import BundleError, DenoiserError, ExportError
from stepfuse.plans.library import Library, find_library
from stepfuse.plans.runtime import Runtime, plan_on
from stepfuse.plans.target import target_of


class TensorRTNetwork(DriverNetwork):
    """The plan of a bundle's denoiser for this GPU, which ``stepfuse plan`` has built.

    Each row count has an execution context of its own, since a captured graph is of its context's shapes. They work in
    one scratch memory, that of the largest: forwards never run at once.

    Args:
        bundle: The model folder.
        info: What the network is.
        max_rows: Most rows of a forward.
        device: Which GPU.
        library: The TensorRT that runs it; None: the first that is installed.

    Raises:
        ImportError: If no TensorRT is installed.
        BundleError: If the bundle has no plan for this GPU, TensorRT does not take it, or it is not of such a network.
        ValueError: If a bound is broken, or no plan takes as many rows.
        CudaError: If there is no driver or no memory.
    """

    rule = "A plan that is captured must neither wait for the device nor compile kernels then"

    def __init__(
        self, bundle: Bundle, info: ModelInfo, max_rows: int, *, device: int = 0, library: Library | None = None
    ) -> None:
        library = library or find_library()
        context = cuda.open(device)
        self._contexts: dict[int, Any] = {}
        self._scratch: cuda.DeviceBuffer | None = None
        try:
            plan = plan_on(bundle, DENOISER, target_of(context.name, context.compute_capability), library, max_rows)
            with cuda.Current(context):
                self._runtime = Runtime(plan, library)
        except ExportError as error:
            raise BundleError(
                f"{bundle.path}: no plan of {DENOISER} runs on {context.name} ({error}): build one here, with 'stepfuse"
                f" plan {bundle.path} --rows 1,{max(1, max_rows // 2)},{max_rows}'"
            ) from error
        types = self._interface(bundle, info)
        self._least_rows, most = self._runtime.rows(SAMPLE)
        if not self._least_rows <= max_rows <= most:
            raise ValueError(f"max_rows must be {self._least_rows} to {most}, which the plan is for, got {max_rows}")
        super().__init__(
            context,
            info,
            max_rows,
            storage=types[SAMPLE],
            cond_storage={name: types[name] for name in info.cond},
        )

    def __del__(self) -> None:
        """Contexts go before the engine, and all before the stream."""
        for name in ("_contexts", "_runtime", "_scratch"):
            self.__dict__.pop(name, None)

    def _interface(self, bundle: Bundle, info: ModelInfo) -> dict[str, str]:
        """The type of each tensor, where shapes and types are those of the manifest."""
        found = self._runtime.tensors()
        rows: dict[str, tuple[set[str], tuple[int, ...]]] = {
            SAMPLE: ({"float32", "float16"}, info.shape),
            TIMESTEP: ({info.timestep_dtype}, ()),
            PREDICTION: ({"float32", "float16"}, info.shape),
        }
        for name, spec in info.cond.items():
            rows[name] = ({spec.dtype, "float16"} if spec.dtype == "float32" else {spec.dtype}, spec.shape)
        if set(found) != set(rows):
            raise BundleError(f"{bundle.path}: a plan's tensors must be {', '.join(rows)}, got {', '.join(found)}")
        for name, (types, shape) in rows.items():
            dtype, dims = found[name]
            if dtype not in types:
                raise BundleError(
                    f"{bundle.path}: {name} of the plan must be {' or '.join(sorted(types))}, got {dtype}"
                )
            fits = len(dims) == len(shape) + 1 and all(a in (-1, b) for a, b in zip(dims[1:], shape, strict=True))
            if not fits:
                raise BundleError(f"{bundle.path}: a row of {name} of the plan must have shape {shape}, got {dims[1:]}")
        if found[SAMPLE][0] != found[PREDICTION][0]:
            raise BundleError(f"{bundle.path}: sample and prediction of the plan must be of one type")
        return {name: dtype for name, (dtype, _) in found.items()}

    def forward(self, rows: int) -> None:
        """Puts the first ``rows`` rows, or as many as the plan has at least, on the stream, without waiting for them.

        Raises:
            DenoiserError: If TensorRT cannot.
            CudaError: If there is no memory for them.
        """
        with cuda.Current(self.context):
            if not self._context(rows).execute_async_v3(self.stream.address):
                raise DenoiserError(f"TensorRT could not run {rows} rows: {self._runtime.last_error()}")

    def _context(self, rows: int) -> Any:
        """The execution context of a row count, with memory to work in."""
        rows = max(rows, self._least_rows)
        context = self._contexts.get(rows)
        if context is None:
            context = self._contexts[rows] = self._make(rows)
        need = int(context.update_device_memory_size_for_shapes())
        if need > (self._scratch.bytes if self._scratch else 0):
            self._work_in(need)
        return context

    def _make(self, rows: int) -> Any:
        shapes = {SAMPLE: self.info.shape, TIMESTEP: (), **{name: spec.shape for name, spec in self.info.cond.items()}}
        whole = {name: (rows, *shape) for name, shape in shapes.items()}
        try:
            context = self._runtime.context(whole, self.stream.address)
        except ExportError as error:
            raise DenoiserError(f"a forward of {rows} rows: {error}") from error
        for name, address in self.addresses.items():
            if not context.set_tensor_address(name, address):
                raise DenoiserError(f"TensorRT does not take {name}: {self._runtime.last_error()}")
        if self._scratch is not None:
            context.set_device_memory(self._scratch.address, self._scratch.bytes)
        self.stream.synchronize()
        return context

    def _work_in(self, size: int) -> None:
        """Has all contexts work in as much memory. What is captured goes on in the memory that it was captured with."""
        if self.graphs:
            raise DenoiserError(f"a forward needs {size} bytes, more than those that are captured: capture it first")
        self.stream.synchronize()
        self._scratch = None
        self._scratch = cuda.DeviceBuffer(self.context, max(1, size))
        for context in self._contexts.values():
            context.set_device_memory(self._scratch.address, self._scratch.bytes)

    def _warm_up(self, rows: int) -> int | None:
        try:
            for _ in range(WARM_UPS):
                self.forward(rows)
            self.stream.synchronize()
        except Exception as error:
            if self._is_out_of_memory(error):
                return None
            raise
        return max(1, int(self._context(rows).update_device_memory_size_for_shapes()))

    def _free_memory(self) -> int:
        return super()._free_memory() + (self._scratch.bytes if self._scratch else 0)

    def _captures(self, rows: int) -> bool:
        if not self.graphs:  # the largest that is kept: larger ones were tried, and have left their memory
            self._contexts = {kept: context for kept, context in self._contexts.items() if kept <= rows}
            self._scratch = None
        try:
            self.forward(rows)
            self.stream.synchronize()
        except Exception as error:
            if self._is_out_of_memory(error):
                return False
            raise
        capturable = getattr(self._context(rows), "is_stream_capturable", None)
        if capturable is not None and not capturable(self.stream.address):
            raise not_captured(rows, "TensorRT says that it cannot be", self.rule)
        return super()._captures(rows)
