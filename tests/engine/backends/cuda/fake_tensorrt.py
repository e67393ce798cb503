"""A stand-in for TensorRT's runtime, which no machine without a GPU can have: its contexts launch a kernel of the
recording driver's. It holds its caller to NVIDIA's rules, and keeps what breaks them.
"""

import gc
import weakref
from types import SimpleNamespace

import support

from stepfuse._core import cuda

MIB = 1 << 20  # that a row works in
TENSORS = {
    "sample": ("FLOAT", (-1, *support.SHAPE)),
    "timestep": ("FLOAT", (-1,)),
    "class_labels": ("INT64", (-1,)),
    "prediction": ("FLOAT", (-1, *support.SHAPE)),
}
OUT_OF_MEMORY = "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)"


class Context:
    """An ``IExecutionContext`` whose memory is the caller's. A graph of it forbids all else."""

    def __init__(self, trt):
        self._trt = weakref.proxy(trt)
        self._shapes, self._at = {}, {}
        self._profile = self._need = self._memory = None
        self._ran = self._captured = False
        trt.rule(trt.in_context(), "a context is made outside of the GPU's context")

    def __del__(self):
        self._trt.rule(self._trt.in_context(), "a context is destroyed outside of the GPU's context")

    def _changes(self):
        self._trt.rule(not self._captured, "a context of a captured graph is changed")
        self._trt.rule(not self._trt.capturing, "a context is changed while a stream is captured")
        self._ran = False

    def set_optimization_profile_async(self, profile, stream):
        self._changes()
        self._trt.rule(stream == self._trt.stream, "a profile is set on another stream")
        self._profile, self._shapes = profile, {}
        return profile < len(self._trt.profiles)

    def set_input_shape(self, name, shape):
        self._changes()
        self._trt.rule(self._profile is not None, "a shape is set before the profile")
        self._shapes[name], self._need = shape, None
        least, _, most = self._trt.profiles[self._profile]
        return least <= shape[0] <= most

    def set_tensor_address(self, name, memory):
        self._changes()
        self._at[name] = memory
        return name in self._trt.tensors

    def update_device_memory_size_for_shapes(self):
        self._changes()
        inputs = {name for name in self._trt.tensors if name != "prediction"}
        self._trt.rule(set(self._shapes) == inputs, "memory is asked for before all shapes are set")
        self._need, self._memory = MIB * self.rows, None
        return self._need

    def set_device_memory(self, memory, size):
        self._changes()
        self._trt.rule(self._need is not None, "memory is given before it is known how much is needed")
        self._trt.rule(memory % 256 == 0, "memory is not aligned to 256 bytes")
        self._trt.rule(size >= (self._need or 0), "memory is given that does not suffice")
        self._memory = memory, size

    @property
    def rows(self):
        return self._shapes["sample"][0]

    def execute_async_v3(self, stream):
        trt = self._trt
        trt.rule(trt.in_context(), "a context runs outside of the GPU's context")
        trt.rule(stream == trt.stream, "a context runs on another stream")
        trt.rule(set(self._at) == set(trt.tensors), "a context runs without addresses")
        trt.rule(self._need is not None and self._memory is not None, "a context runs without memory")
        trt.rule(not self._captured, "a context of a captured graph runs")
        trt.rule(self._ran or not trt.capturing, "a context is captured that has not run with its shapes")
        trt.ran.append((self.rows, self._profile))
        if failure := trt.fails(self.rows):
            trt.logger.log(trt.ILogger.ERROR, failure)
            return False
        self._captured, self._ran = trt.capturing, True
        trt.launch(self.rows, self._at)
        return True


class RtxContext(Context):
    """One of TensorRT for RTX, which says whether it can be captured."""

    def is_stream_capturable(self, stream):
        self._trt.rule(self._ran, "a context is asked before it ran")
        return self._trt.capturable


class Engine:
    """An ``ICudaEngine``."""

    def __init__(self, trt):
        self._trt, self._names = trt, list(trt.tensors)
        self.num_io_tensors, self.num_optimization_profiles = len(trt.tensors), len(trt.profiles)
        self.get_tensor_name = self._names.__getitem__

    def __del__(self):
        self._trt.rule(self._trt.in_context(), "an engine is destroyed outside of the GPU's context")

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name=self._trt.tensors[name][0])

    def get_tensor_shape(self, name):
        return self._trt.tensors[name][1]

    def get_tensor_profile_shape(self, name, profile_index):
        row = self._trt.rows_of.get(name, self._trt.tensors[name][1][1:])
        return [(rows, *row) for rows in self._trt.profiles[profile_index]]

    def create_execution_context(self, strategy):
        if self._trt.rtx:
            self._trt.rule(vars(strategy) == EXPECTED, f"what is captured would not be the last word: {vars(strategy)}")
            return RtxContext(self._trt)
        self._trt.rule(strategy == "USER_MANAGED", "memory is TensorRT's, not shared")
        return Context(self._trt)

    def create_runtime_config(self):
        return Config()


class Config:
    """An ``IRuntimeConfig`` of TensorRT for RTX."""

    def set_execution_context_allocation_strategy(self, strategy):
        self.memory = strategy


EXPECTED = {
    "memory": "USER_MANAGED",
    "dynamic_shapes_kernel_specialization_strategy": "EAGER",
    "cuda_graph_strategy": "DISABLED",
}


class Trt:
    """What a runtime uses of ``tensorrt``, or of ``tensorrt_rtx``.

    Args:
        profiles: Least, best and most rows of each.
        tensors: TensorRT's type and shape of each input and output.
        rtx: Whether it is TensorRT for RTX.
        rows_of: What a row is, where it is dynamic.
        refuses: What it says of a plan that it does not take.
    """

    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="USER_MANAGED")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="EAGER", LAZY="LAZY")
    CudaGraphStrategy = SimpleNamespace(DISABLED="DISABLED")

    class ILogger:
        ERROR = SimpleNamespace(name="ERROR")

        def __init__(self):
            pass

    def __init__(self, profiles=((1, 4, 8),), tensors=None, *, rtx=False, rows_of=None, refuses=None):
        self.profiles, self.tensors, self.rtx = profiles, {**TENSORS, **(tensors or {})}, rtx
        self.rows_of, self.refuses = rows_of or {}, refuses
        self.violations, self.ran, self.plans = [], [], []
        self.capturable, self.capturing = True, False
        self.fails = lambda rows: None
        self.stream = self.launch = None
        self.most_engines, self._engines = 0, weakref.WeakSet()  # that are held at once

    def put_on(self, fake, patch):
        """Connects it with the recording driver's contexts and captures."""
        self.in_context = lambda: "current context" in fake.live
        begin, trt = cuda.Capture, weakref.proxy(self)

        class Capture:
            def __init__(self, stream):
                trt.capturing = True
                self._capture = begin(stream)

            def __del__(self):
                trt.capturing = False

            def end(self):
                return self._capture.end()

        patch.setattr(cuda, "Capture", Capture)

    def rule(self, kept, otherwise):
        if not kept:
            self.violations.append(otherwise)

    def Runtime(self, logger):  # noqa: N802
        self.logger = logger
        return SimpleNamespace(deserialize_cuda_engine=self._deserialise)

    def _deserialise(self, data):
        self.rule(self.in_context(), "a plan is read outside of the GPU's context")
        self.plans.append(bytes(data))
        if self.refuses:
            self.logger.log(self.ILogger.ERROR, self.refuses)
            return None
        engine = Engine(self)
        self._engines.add(engine)
        self.most_engines = max(self.most_engines, len(self._engines))
        return engine

    def close(self):
        """Checks the rules once all is released, and drops the driver."""
        gc.collect()
        violations = self.violations
        vars(self).clear()
        assert violations == [], violations
