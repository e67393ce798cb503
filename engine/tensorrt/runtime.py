"""A plan's engine on a GPU, and its forwards, as a library that captures them itself must have them.

The rules are NVIDIA's. Every captured graph has an execution context of its own, which no other work goes through. It
has run with its shapes before, outside of the capture. How much memory it needs is asked once all its shapes are set
(``update_device_memory_size_for_shapes``), and the memory given to it after that.
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
        PlanError: If it is another TensorRT's, or TensorRT refuses it.
    """
    return Runtime(plan, library or find_library(plan.key.library)).engine


class Runtime:
    """A plan's engine.

    Args:
        plan: The plan.
        library: The TensorRT that it is of.

    Attributes:
        engine: TensorRT's ``ICudaEngine``.

    Raises:
        PlanError: If it is another TensorRT's, or TensorRT refuses it.
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
            raise PlanError(f"TensorRT does not take the plan for {plan.key.target}: {self.told()}")
        self._config: Any = None

    def close(self) -> None:
        """Lets TensorRT's engine go; what it runs goes before."""
        self.engine = self._config = None

    def told(self) -> str:
        """The errors that TensorRT has told since it was last asked."""
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
        """Row counts that each profile takes, where a row of each input has the shape that is given by name."""
        return [self._rows(profile, row) for profile in range(self.engine.num_optimization_profiles)]

    def _rows(self, profile: int, row: Mapping[str, tuple[int, ...]]) -> range:
        ranges = {name: self.engine.get_tensor_profile_shape(name, profile) for name in row}
        if not all(_within(shape, *ranges[name]) for name, shape in row.items()):
            return range(0)
        return range(max(least[0] for least, _, _ in ranges.values()), 1 + min(most[0] for *_, most in ranges.values()))

    def execution(
        self, rows: int, row: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int], stream: int
    ) -> Execution:
        """What runs ``rows`` rows, by the profile that is tuned for the nearest number; it has no memory yet.

        Args:
            rows: A row count that a profile takes.
            row: Shape of a row of each input, by name.
            addresses: Device memory of all inputs and outputs, by name.
            stream: Address of the stream that it is made ready on, which the caller waits for.

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
            raise DenoiserError(f"TensorRT does not take {rows} rows: {self.told()}")
        return Execution(self, context, rows)

    def _new_context(self) -> Any:
        trt = self._library.module
        managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self._library.is_rtx:
            return self.engine.create_execution_context(managed)
        if self._config is None:
            # It compiles kernels for the shapes that it meets, if it may behind the caller's back, and it may capture
            # and launch graphs of its own: what we capture must be there, and its last word.
            self._config = self.engine.create_runtime_config()
            self._config.set_execution_context_allocation_strategy(managed)
            eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            self._config.dynamic_shapes_kernel_specialization_strategy = eager
            self._config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
        return self.engine.create_execution_context(self._config)


class Execution:
    """A number of rows in an execution context of their own.

    Attributes:
        bytes: Memory that it works in, which is given to it before it runs.
    """

    def __init__(self, runtime: Runtime, context: Any, rows: int) -> None:
        self._runtime, self._context, self._rows = runtime, context, rows
        self.bytes = int(context.update_device_memory_size_for_shapes())  # of these shapes, not of the profile's

    def close(self) -> None:
        """Lets TensorRT's context go."""
        self._context = None

    def work_in(self, address: int, size: int) -> None:
        """Gives it memory of ``size`` bytes, aligned to 256."""
        self._context.set_device_memory(address, size)

    def enqueue(self, stream: int) -> None:
        """Puts it on a stream, without waiting for it.

        Raises:
            DenoiserError: If TensorRT cannot.
        """
        if not self._context.execute_async_v3(stream):
            raise DenoiserError(f"TensorRT could not run {self._rows} rows: {self._runtime.told()}")

    def is_capturable(self, stream: int) -> bool:
        """Whether TensorRT says that it can be captured; ``tensorrt`` does not say."""
        asked = getattr(self._context, "is_stream_capturable", None)
        return asked is None or bool(asked(stream))


def _within(row: tuple[int, ...], least: Any, _: Any, most: Any) -> bool:
    """Whether a row is in the bounds of a profile, whose shapes begin with the number of rows."""
    low, high = tuple(least)[1:], tuple(most)[1:]
    return len(row) == len(low) and all(a <= b <= c for a, b, c in zip(low, row, high, strict=True))
