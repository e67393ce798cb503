"""A bundle's plan on the GPU that it is for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from stepfuse.bundle import Bundle
from stepfuse.errors import ExportError
from stepfuse.folder import CACHE
from stepfuse.plans.library import Library, find_library
from stepfuse.plans.logger import logger_for
from stepfuse.plans.plan import Plan
from stepfuse.plans.store import PlanStore
from stepfuse.plans.target import Target

_TYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64", "INT32": "int32", "BOOL": "bool"}
_ATTRIBUTES = {
    "DynamicShapesKernelSpecializationStrategy": "dynamic_shapes_kernel_specialization_strategy",
    "CudaGraphStrategy": "cuda_graph_strategy",
}


def source_of(bundle: Bundle, network: str) -> str:
    """Digest of what the manifest says of a network, and of every file that may hold its weights."""
    others = (".json", ".onnx")
    parts = [
        f"{name} {about['sha256']}"
        for name, about in sorted(bundle.files.items())
        if name == network or not (name.endswith(others) or name.startswith(CACHE))
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def plan_on(bundle: Bundle, network: str, target: Target, library: Library, rows: int) -> Plan:
    """The plan that a bundle has of a network for a GPU: the one of most rows, or the first that has enough.

    Raises:
        ExportError: If there is none, with why.
    """
    store = PlanStore(bundle.path, bundle=True)
    plans = store.find_all(network, source_of(bundle, network), library.name, library.version, target)
    return max(plans, key=lambda plan: min(rows, max(profile.rows[2] for profile in plan.key.profiles)))


def deserialise(plan: Plan, *, library: Library | None = None) -> Any:
    """An ``ICudaEngine`` of a plan that ``plan_for`` or ``load_plan`` returned; a stripped one gets its weights next.

    Raises:
        ExportError: If it is another TensorRT's, or TensorRT refuses it.
    """
    library = library or find_library(plan.key.library)
    if (library.name, library.version) != (plan.key.library, plan.key.version):
        raise ExportError(
            f"the plan must be of {library.name} {library.version}, got {plan.key.library} {plan.key.version}"
        )
    logger = logger_for(library.module)
    engine = library.module.Runtime(logger).deserialize_cuda_engine(plan.data)
    if engine is None:
        raise ExportError(f"TensorRT does not take the plan for {plan.key.target}: {'; '.join(logger.errors)}")
    return engine


class Runtime:
    """A plan's engine, from which execution contexts are made.

    Args:
        plan: The plan.
        library: The TensorRT that it is of.

    Raises:
        ExportError: If TensorRT refuses it.
    """

    def __init__(self, plan: Plan, library: Library) -> None:
        self._trt = library.module
        self._logger = logger_for(self._trt)
        self._runtime = self._trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan.data)
        if self._engine is None:
            raise ExportError(f"TensorRT does not take the plan for {plan.key.target}: {self.last_error()}")

    def last_error(self) -> str:
        """What TensorRT has said last."""
        return self._logger.errors[-1] if self._logger.errors else "it says nothing"

    def tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape, -1 where that is dynamic, of each input and output by name."""
        found = {}
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            dtype = self._engine.get_tensor_dtype(name)
            found[name] = _TYPES.get(dtype.name, dtype.name), tuple(self._engine.get_tensor_shape(name))
        return found

    def rows(self, name: str) -> tuple[int, int]:
        """Fewest and most rows that an input may have."""
        ranges = [self._range(name, profile) for profile in range(self._engine.num_optimization_profiles)]
        return min(least[0] for least, _ in ranges), max(most[0] for _, most in ranges)

    def context(self, shapes: Mapping[str, tuple[int, ...]], stream: int) -> Any:
        """An execution context for these shapes of the inputs, which works in memory that it is given.

        Args:
            shapes: By the input's name.
            stream: Address of the stream on which it is made ready.

        Raises:
            ExportError: If no profile of the plan has them.
        """
        profile = self._profile(shapes)
        context = self._new_context()
        if context is None:
            raise ExportError(f"TensorRT could not make a context: {self.last_error()}")
        ready = context.set_optimization_profile_async(profile, stream) and all(
            context.set_input_shape(name, shape) for name, shape in shapes.items()
        )
        if not ready:
            raise ExportError(f"TensorRT does not take shapes {dict(shapes)}: {self.last_error()}")
        return context

    def _new_context(self) -> Any:
        managed = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(self._engine, "create_runtime_config"):
            return self._engine.create_execution_context(managed)
        # TensorRT for RTX compiles kernels when shapes come first, some of them behind the caller's back, and can
        # capture graphs of its own: all is to be there when we capture.
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(managed)
        for strategies, value in (
            ("DynamicShapesKernelSpecializationStrategy", "EAGER"),
            ("CudaGraphStrategy", "DISABLED"),
        ):
            if hasattr(self._trt, strategies):
                setattr(config, _ATTRIBUTES[strategies], getattr(getattr(self._trt, strategies), value))
        return self._engine.create_execution_context(config)

    def _profile(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The profile that has these shapes and is tuned for the nearest number of rows."""
        fitting = []
        for profile in range(self._engine.num_optimization_profiles):
            ranges = {name: self._range(name, profile) for name in shapes}
            if all(_within(shape, *ranges[name]) for name, shape in shapes.items()):
                tuned = self._engine.get_tensor_profile_shape(next(iter(shapes)), profile)[1]
                fitting.append((abs(tuned[0] - next(iter(shapes.values()))[0]), profile))
        if not fitting:
            raise ExportError(f"no profile of the plan has shapes {dict(shapes)}")
        return min(fitting)[1]

    def _range(self, name: str, profile: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        least, _, most = self._engine.get_tensor_profile_shape(name, profile)
        return tuple(least), tuple(most)


def _within(shape: tuple[int, ...], least: tuple[int, ...], most: tuple[int, ...]) -> bool:
    return len(shape) == len(least) and all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))
