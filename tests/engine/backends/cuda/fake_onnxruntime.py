"""A stand-in of ONNX Runtime on a GPU, over the recording driver; it holds its caller to the rules of the real one.

It enqueues a denoiser's forward on the stream that it was given, as a kernel of the recording driver's, which runs the
network itself in a session on the CPU. So captured forwards are replayed with real predictions.
"""

import ctypes
import math
import types
import weakref
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from recording_driver import forward_arguments

from stepfuse._core import cuda
from stepfuse.backends.cuda import kernels, trajectories
from stepfuse.backends.cuda.onnxruntime import CPU, CUDA, TENSORRT

MIB = 1 << 20


def array_at(address, shape, dtype):
    count = math.prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * count).from_address(address), dtype=dtype).reshape(shape)


class Binding:
    """What was bound; every tensor must be the GPU's memory."""

    def __init__(self, device):
        self._device, self.at = device, {}

    def bind_input(self, name, device_type, device_id, element_type, shape, buffer_ptr):
        assert (device_type, device_id) == ("cuda", self._device)
        self.at[name] = element_type, shape, buffer_ptr

    bind_output = bind_input


class Session:
    """What is used of a session. Its arena grows as forwards need, and keeps that until a run that asks for shrinkage.

    A forward that is replayed works where it was captured: that the arena has that memory still is checked.
    """

    def __init__(self, gpu, model, options, providers):
        assert options.get_session_config_entry("session.record_ep_graph_assignment_info") == "1"
        self._gpu, self._providers, self._options = gpu, [name for name, _ in providers], dict(providers)
        self._cpu = gpu.real(model, providers=[CPU])
        self.get_inputs, self.get_outputs = self._cpu.get_inputs, self._cpu.get_outputs
        self._arena = []
        for own in self._options.values():
            assert own["device_id"] == "0"
        self._stream = cuda.Stream.borrow(gpu.context, int(self._options[CUDA]["user_compute_stream"]))
        self._scratch = cuda.DeviceBuffer(gpu.context, 8)
        gpu.sessions.append(self._options)

    def __del__(self):  # memory is freed in stream order, so the stream must still exist
        if hasattr(self, "_scratch"):
            self._scratch.upload(self._stream, bytes(8))

    def get_providers(self):
        return [*([] if self._gpu.libraries_missing else self._providers), CPU]

    def get_provider_graph_assignment_info(self):
        node = types.SimpleNamespace
        on_cpu = [node(op_type=kind) for kind in self._gpu.on_cpu]
        parts = {CPU: on_cpu, self._providers[0]: [node(op_type="Conv")]}
        return [types.SimpleNamespace(ep_name=name, get_nodes=lambda n=nodes: n) for name, nodes in parts.items()]

    def io_binding(self):
        return Binding(0)

    def run_with_iobinding(self, binding, options):
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        assert self._options[CUDA]["use_tf32"] == "0"
        element, (rows, *_), _ = binding.at["sample"]
        assert element is np.float32
        self._gpu.before(self._stream, rows)
        need = rows * MIB
        if not self._arena or self._arena[-1].bytes < need:
            try:
                self._arena.append(cuda.DeviceBuffer(self._gpu.context, need))
            except cuda.CudaError as error:
                if not error.out_of_memory:
                    raise RuntimeError(f"CUDA failure {error.code}: operation not permitted when capturing") from None
                text = f"Failed to allocate memory for requested buffer of size {need}"
                raise RuntimeError(f"[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : {text}") from None
        self._gpu.run(self._cpu, self._stream, rows, binding, weakref.ref(self._arena[-1]))
        try:
            if options.get_run_config_entry("memory.enable_memory_arena_shrinkage") == "gpu:0":
                self._stream.synchronize()  # as freeing does
                self._arena.clear()
        except RuntimeError:  # there is no such entry
            pass


class HostBinding(Binding):
    """Of a run that takes the GPU's memory and returns the host's."""

    def __init__(self):
        super().__init__(0)
        self.outputs = []

    def bind_output(self, name):
        self.outputs.append(name)

    def copy_outputs_to_cpu(self):
        return self.found


class ArraySession:
    """A session that takes and returns arrays, and between runs holds no more than its weights."""

    def __init__(self, gpu, model, options, providers):
        assert providers == [
            (CUDA, {"device_id": "0", "arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"}),
        ]
        self._gpu, self._name = gpu, Path(str(model)).name
        if gpu.too_large:
            raise RuntimeError("CUDA failure 2: out of memory")
        self._cpu = gpu.real(model, providers=[CPU])
        self.get_inputs, self.get_outputs = self._cpu.get_inputs, self._cpu.get_outputs
        self._weights = cuda.DeviceBuffer(gpu.context, MIB)

    def get_providers(self):
        return [*([] if self._gpu.libraries_missing else [CUDA]), CPU]

    def run(self, outputs, feeds, options):
        assert options.get_run_config_entry("memory.enable_memory_arena_shrinkage") == "gpu:0"
        assert all(isinstance(array, np.ndarray) for array in feeds.values())
        assert self._gpu.context.memory[0] >= MIB
        own = ort.RunOptions()
        own.terminate = options.terminate
        found = self._cpu.run(outputs, feeds, own)
        self._gpu.arrays.append((sorted(feeds), sorted(outputs)))
        return found

    def io_binding(self):
        return HostBinding()

    def run_with_iobinding(self, binding, options):
        """Of inputs that are the GPU's memory; outputs are the host's."""
        feeds = {name: array_at(at, shape, kind).copy() for name, (kind, shape, at) in binding.at.items()}
        binding.found = self.run(binding.outputs, feeds, options)
        names, outputs = self._gpu.arrays.pop()
        self._gpu.arrays.append(([f"{name} on the GPU" for name in names], outputs))


class Gpu:
    """ONNX Runtime as it is where there is a GPU, over the recording driver."""

    def __init__(self, fake, step_on, patch):
        self.context, self.sessions, self.ran = fake.open(), [], []
        self.arrays, self.alive, self.most_alive = [], weakref.WeakSet(), 0
        self.too_large, self.freed = False, []  # rows of forwards whose memory was gone when they ran
        self.real = ort.InferenceSession
        self.available, self.libraries_missing, self.on_cpu = [TENSORRT, CUDA, CPU], False, []
        self.before = lambda stream, rows: None
        steps, self._kernel = step_on(self.context, self._network())

        class Kernels:
            @classmethod
            def of(cls, network, cubins):
                assert (network.storage, cubins) == ("float32", None)
                return cls()

            def get(self, slots, n, **kind):
                return steps.get(slots, n, **kind)

            def named(self, name):
                return steps.named(name)

        def session(model, options=None, providers=None, **others):
            if providers == [CPU]:
                return self.real(model, options, providers=providers, **others)
            assert others == {"enable_fallback": 0}
            if "user_compute_stream" not in providers[0][1]:
                return ArraySession(self, model, options, providers)
            found = Session(self, model, options, providers)
            self.alive.add(found)
            self.most_alive = max(self.most_alive, len(self.alive))
            return found

        patch.setattr(ort, "InferenceSession", session)
        patch.setattr(ort, "get_available_providers", lambda: self.available)
        patch.setattr(cuda, "open", lambda device: self.context)
        for module in (trajectories, kernels):
            patch.setattr(module, "StepKernels", Kernels)

    def _network(self):
        bound = self._launched = {}

        freed = self.freed

        def network(x, t):
            session, shape, conditioning, arena = bound[x.ctypes.data]
            if arena() is None:
                freed.append(len(x))
            cond = {name: array_at(at, (len(x), *row), dtype) for name, (dtype, (_, *row), at) in conditioning.items()}
            inputs = {"sample": x.reshape(len(x), *shape), "timestep": t, **cond}
            return session.run(None, inputs)[0].reshape(x.shape)

        return network

    def run(self, session, stream, rows, binding, arena):
        self.ran.append(rows)
        _, (_, *shape), sample = binding.at["sample"]
        own = "sample", "timestep", "prediction"
        cond = {name: one for name, one in binding.at.items() if name not in own}
        self._launched[sample] = session, tuple(shape), cond, arena
        at = [binding.at[name][2] for name in own]
        assert at[0] == sample
        self._kernel.launch(stream, rows, forward_arguments(rows, math.prod(shape), *at))


@pytest.fixture
def onnxruntime_gpu(fake, step_on, monkeypatch):
    """A GPU with ONNX Runtime, whose forwards are real."""
    gpu = Gpu(fake, step_on, monkeypatch)
    yield gpu
    assert gpu.freed == []
    monkeypatch.undo()
    vars(gpu).clear()  # pytest keeps it until all is released, which is to be checked before
