"""A plan's engine on a GPU, and its forwards, which callers capture as CUDA graphs.

NVIDIA's rules of capture: every captured graph has an execution context of its own, which runs nothing else. It has run
once with its shapes, outside of the capture. The memory that it needs is queried when all its shapes are set
(``update_device_memory_size_for_shapes``), and given to it after that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepfuse.errors import DenoiserError, PlanError
from stepfuse.tensorrt.library import Library, find_library
from stepfuse.tensorrt.logger import logger_for
from stepfuse.tensorrt.plan import Plan

_TYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64", "INT32": "int32", "BOOL": "bool"}


def deserialise(plan: Plan, *, library: Library | None = None) -> Any:
    """An ``ICudaEngine`` of a plan that ``plan_for`` or ``load_plan`` returned.

    Raises:
        PlanError: If another TensorRT built the plan, or TensorRT refuses it.
    """
    return Runtime(plan, library or find_library(plan.key.library)).engine


class Runtime:
    """A plan's engine.

    Args:
        plan: The plan.
        library: The TensorRT that built it.

    Attributes:
        engine: TensorRT's ``ICudaEngine``.

    Raises:
        PlanError: If another TensorRT built the plan, or TensorRT refuses it.
    """

    def __init__(self, plan: Plan, library: Library) -> None:
        if (library.name, library.version) != (plan.key.library, plan.key.version):
            raise PlanError(
                f"the plan must be of {library.name} {library.version}, got {plan.key.library} {plan.key.version}"
            )
        self._library = library
        self._logger = logger_for(library.module)
        self.engine = library.module.Runtime(self._logger).deserialize_cuda_engine(plan.data)
        if self.engine is None:
            raise PlanError(f"TensorRT does not take the plan for {plan.key.target}: {self.take_errors()}")
        self._config: Any = None

    def close(self) -> None:
        """Releases TensorRT's engine. Its executions must be closed before."""
        self.engine = self._config = None

    def take_errors(self) -> str:
        """The errors that TensorRT has logged since the last call."""
        errors = "; ".join(self._logger.errors)
        self._logger.errors.clear()
        return errors or "it says no reason"

    def tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape, -1 where that is dynamic, of each input and output by name."""
        found = {}
        for index in range(self.engine.num_io_tensors):
            name = self.engine.get_tensor_name(index)
            dtype = self.engine.get_tensor_dtype(name).name
            found[name] = _TYPES.get(dtype, dtype), tuple(self.engine.get_tensor_shape(name))
        return found

    def rows(self, row: Mapping[str, tuple[int, ...]]) -> list[range]:
        """Row counts that each profile takes; ``row`` has the shape of a row of each input, by name."""
        return [self._rows(profile, row) for profile in range(self.engine.num_optimization_profiles)]

    def _rows(self, profile: int, row: Mapping[str, tuple[int, ...]]) -> range:
        ranges = {name: self.engine.get_tensor_profile_shape(name, profile) for name in row}
        if not all(_within(shape, *ranges[name]) for name, shape in row.items()):
            return range(0)
        return range(max(least[0] for least, _, _ in ranges.values()), 1 + min(most[0] for *_, most in ranges.values()))

    def execution(
        self, rows: int, row: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int], stream: int
    ) -> Execution:
        """An execution of ``rows`` rows, by the profile that is tuned for the nearest number. It has no memory yet.

        Args:
            rows: A row count that a profile takes.
            row: Shape of a row of each input, by name.
            addresses: Device memory of all inputs and outputs, by name.
            stream: Address of the stream on which it is prepared; the caller synchronizes that.

        Raises:
            DenoiserError: If TensorRT refuses.
        """
        taking = [index for index, counts in enumerate(self.rows(row)) if rows in counts]
        first = next(iter(row))
        profile = min(taking, key=lambda index: abs(self.engine.get_tensor_profile_shape(first, index)[1][0] - rows))
        context = self._new_context()
        ready = (
            context is not None
            and context.set_optimization_profile_async(profile, stream)
            and all(context.set_input_shape(name, (rows, *shape)) for name, shape in row.items())
            and all(context.set_tensor_address(name, address) for name, address in addresses.items())
        )
        if not ready:
            del context  # the error keeps this frame, and would keep it beyond the GPU's context
            raise DenoiserError(f"TensorRT does not take {rows} rows: {self.take_errors()}")
        return Execution(self, context, rows)

    def _new_context(self) -> Any:
        trt = self._library.module
        managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self._library.is_rtx:
            return self.engine.create_execution_context(managed)
        if self._config is None:
            # By default it compiles kernels for new shapes in the background, and captures and launches graphs of its
            # own. A forward that we capture must have its final kernels, and be no graph itself.
            self._config = self.engine.create_runtime_config()
            self._config.set_execution_context_allocation_strategy(managed)
            eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            self._config.dynamic_shapes_kernel_specialization_strategy = eager
            self._config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
        return self.engine.create_execution_context(self._config)


class Execution:
    """A forward of a fixed number of rows, with an execution context of its own.

    Attributes:
        bytes: Bytes of scratch memory, which it is given before it runs.
    """

    def __init__(self, runtime: Runtime, context: Any, rows: int) -> None:
        self._runtime, self._context, self._rows = runtime, context, rows
        self.bytes = int(context.update_device_memory_size_for_shapes())  # of these shapes, not of the profile's

    def close(self) -> None:
        """Releases TensorRT's context."""
        self._context = None

    def work_in(self, address: int, size: int) -> None:
        """Sets its scratch memory, of ``size`` bytes, aligned to 256."""
        self._context.set_device_memory(address, size)

    def enqueue(self, stream: int) -> None:
        """Enqueues it on a stream, without synchronizing.

        Raises:
            DenoiserError: If TensorRT cannot run it.
        """
        if not self._context.execute_async_v3(stream):
            raise DenoiserError(f"TensorRT could not run {self._rows} rows: {self._runtime.take_errors()}")

    def is_capturable(self, stream: int) -> bool:
        """Whether TensorRT reports that it can be captured; ``tensorrt`` has no such report, and is assumed to."""
        is_stream_capturable = getattr(self._context, "is_stream_capturable", None)
        return is_stream_capturable is None or bool(is_stream_capturable(stream))


def _within(row: tuple[int, ...], least: Any, _: Any, most: Any) -> bool:
    """Whether a row's shape is within a profile, whose shapes begin with the number of rows."""
    low, high = tuple(least)[1:], tuple(most)[1:]
    return len(row) == len(low) and all(a <= b <= c for a, b, c in zip(low, row, high, strict=True))
