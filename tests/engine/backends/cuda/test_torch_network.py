"""A torch module as a network, with torch's CUDA calls answered by the recording driver: capture, memory, fallback."""

import contextlib
import logging

import numpy as np
import pytest
import support
from recording_driver import forward_arguments
from tolerances import ADAPTED_SAMPLES

import stepfuse as sf
from stepfuse._core import cuda

torch = pytest.importorskip("torch")

from stepfuse.backends.cuda import torch as cuda_torch  # noqa: E402
from stepfuse.backends.cuda import trajectories as backend  # noqa: E402
from stepfuse.errors import CaptureError  # noqa: E402

MODEL = {"shape": support.SHAPE, "schedule": support.SCHEDULE, "cond": support.COND}
ARGUMENTS = {"cond": 3, "steps": 4, "guidance_scale": 2.0, "eta": 1.0, "seed": 5}


class Gpu:
    """What of torch.cuda is used, in the host's memory. ``log`` holds what was asked for, in order."""

    def __init__(self, fake):
        self.context, self.log, self.peak = fake.open(), [], 1000
        stream = cuda.Stream(self.context)
        log = self.log

        class Stream:
            cuda_stream = stream.address

            def __init__(self, device=None):
                pass

            def wait_stream(self, other):
                pass

            synchronize = staticmethod(stream.synchronize)

        class Graph:
            def __init__(self, keep_graph):
                assert keep_graph

            def capture_begin(self, pool, capture_error_mode):
                assert capture_error_mode == "thread_local"
                log.append(f"begin {pool}")
                self.capture = cuda.Capture(stream)

            def capture_end(self):
                log.append("end")
                capture, self.capture = self.capture, None
                self.graph = capture.end()

            def raw_cuda_graph(self):
                return self.graph.address

        self.stream, self.Stream, self.CUDAGraph = stream, Stream, Graph
        self.pools = 0

    def graph_pool_handle(self):
        self.pools += 1
        return self.pools

    def patch(self, patch):
        for name in ("Stream", "CUDAGraph", "graph_pool_handle"):
            patch.setattr(torch.cuda, name, getattr(self, name))
        patch.setattr(torch.cuda, "init", lambda: None)
        patch.setattr(torch.cuda, "current_stream", lambda device: self.Stream())
        patch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        patch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
        patch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.peak)
        for name in ("reset_peak_memory_stats", "empty_cache"):
            patch.setattr(torch.cuda, name, lambda *arguments: None)
        patch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
        patch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: self.log.append("clear"), raising=False)
        end = lambda device, pool: self.log.append(f"leave {pool}")  # noqa: E731
        patch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
        patch.setattr(cuda, "open", lambda device: self.context)
        patch.setattr(cuda_torch, "_where", lambda module: (torch.device("cpu"), torch.float32))


@pytest.fixture
def gpu(fake, monkeypatch):
    gpu = Gpu(fake)
    gpu.patch(monkeypatch)
    yield gpu
    vars(gpu).clear()  # pytest keeps it until all is released, which is to be checked before


@pytest.fixture
def made(gpu, step_on, monkeypatch):
    """``made(module=..., **options)``: Trajectories.from_torch of a module that launches the engine's test network."""

    def make(before=lambda rows: None, **options):
        labels = np.zeros(0, np.int64)

        def network(x, t):
            shaped = x.reshape(len(x), *support.SHAPE)
            return support.rowwise(shaped, t, {"class_labels": labels[: len(x)]}).reshape(x.shape)

        steps, forward = step_on(gpu.context, network)

        class Kernels:
            @classmethod
            def of(cls, network, cubins):
                assert (network.storage, cubins) == ("float32", None)
                return cls()

            def get(self, slots, n, **kind):
                return steps.get(slots, n, **kind)

            def named(self, name):
                return steps.named(name)

        def module(sample, timestep, class_labels):
            nonlocal labels
            rows = len(sample)
            before(rows)
            # A view of all rows: what the captured forward reads at its launch is the memory, not a copy.
            labels = np.lib.stride_tricks.as_strided(class_labels.numpy(), (options.get("max_rows", 16),))
            prediction = networks[-1]._prediction[:rows]
            at = [tensor.data_ptr() for tensor in (sample, timestep, prediction)]
            forward.launch(gpu.stream, rows, forward_arguments(rows, support.ELEMENTS, *at))
            return prediction

        networks = []

        class Network(cuda_torch.TorchNetwork):
            def __init__(self, *arguments, **options):
                networks.append(self)
                super().__init__(*arguments, **options)

        monkeypatch.setattr(backend, "StepKernels", Kernels)
        monkeypatch.setattr(cuda_torch, "TorchNetwork", Network)
        return backend.Trajectories.from_torch(module, **MODEL, **options)

    return make


def engine_s(n, **arguments):
    with support.make_engine() as engine:
        return engine.sample(n, **arguments)


@pytest.mark.parametrize("options", [{}, {"form": "loop"}, {"eager": True}, {"buckets": [4, 16]}], ids=str)
def test_a_module_s_samples_are_the_engine_s(made, options):
    trajectories = made(**options)
    for n in (1, 3, 9):
        np.testing.assert_array_equal(trajectories.sample(n, **ARGUMENTS).numpy(), engine_s(n, **ARGUMENTS))


@pytest.mark.parametrize("options", [{}, {"form": "loop"}, {"eager": True}], ids=str)
def test_parts_of_images_are_kept(made, options):
    trajectories = made(**options)
    kept = {"image": np.full(support.SHAPE, 0.5, np.float32), "mask": np.float32([[1, 1, 0.5, 0, 0]] * 4)}
    for rescale in (0.0, 0.5):
        arguments = {**ARGUMENTS, **kept, "guidance_rescale": rescale}
        want = engine_s(3, **arguments)
        bound = ADAPTED_SAMPLES * np.abs(want).max() if rescale else 0
        np.testing.assert_allclose(trajectories.sample(3, **arguments).numpy(), want, rtol=0, atol=bound)


def test_the_largest_is_captured_first_and_all_work_in_one_pool(made, gpu):
    trajectories = made(max_rows=6)
    assert trajectories.rows == [6, 4, 3, 2, 1]
    assert gpu.log == ["clear", "begin 1", "end", "clear"] * 5


def test_the_memory_needed_is_logged_before_anything_is_captured(made, gpu, caplog):
    with caplog.at_level(logging.INFO, logger="stepfuse"):
        made(buckets=[8, 2])
    assert "capturing forwards of [8, 2] rows: about 2.0 MiB of 1024.0 MiB free" in caplog.text


def test_a_budget_gives_up_the_largest_and_says_so(made, caplog):
    trajectories = made(buckets=[8, 4, 2], memory_bytes=(2 << 20) + 1000)
    assert trajectories.rows == [4, 2]
    assert "forwards of [8] rows are given up: memory suffices for [4, 2]" in caplog.text
    # Three guided samples are six rows: two launches.
    np.testing.assert_array_equal(trajectories.sample(3, **ARGUMENTS).numpy(), engine_s(3, **ARGUMENTS))


@pytest.mark.parametrize("while_capturing", [False, True])
def test_out_of_memory_gives_up_the_largest(made, gpu, caplog, while_capturing):
    def before(rows):
        if rows > 4 and any(line.startswith("begin") for line in gpu.log) == while_capturing:
            raise torch.OutOfMemoryError("CUDA out of memory")

    trajectories = made(before, buckets=[8, 6, 4, 2])
    assert trajectories.rows == [4, 2]
    assert "forwards of [8, 6] rows are given up: memory suffices for [4, 2]" in caplog.text
    np.testing.assert_array_equal(trajectories.sample(2, **ARGUMENTS).numpy(), engine_s(2, **ARGUMENTS))


def test_no_memory_at_all_is_refused(made):
    with pytest.raises(CaptureError, match=r"no forward can be captured: .*smaller network"):
        made(memory_bytes=10)


def test_a_module_that_waits_is_refused_and_torch_s_allocator_is_restored(made, gpu, caplog):
    def before(rows):
        if any(line.startswith("begin") for line in gpu.log):
            gpu.stream.synchronize()

    with pytest.raises(CaptureError, match=r"of 2 rows cannot be captured: cuStreamSynchronize .*must neither"):
        made(before, buckets=[2, 1])
    assert gpu.log == ["clear", "begin 1", "end", "leave 1", "clear"]
    gpu.log.clear()
    with caplog.at_level(logging.WARNING, logger="stepfuse"):
        trajectories = made(before, buckets=[2, 1], eager=None)
    assert trajectories.eager
    assert "the network runs eagerly, a launch a kernel: a forward of 2 rows cannot be captured" in caplog.text
    gpu.log.clear()
    np.testing.assert_array_equal(trajectories.sample(2, **ARGUMENTS).numpy(), engine_s(2, **ARGUMENTS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"max_rows": 0}, "max_rows must be at least 1, got 0", id="max-rows"),
        pytest.param({"buckets": [0, 2]}, r"buckets must be row counts from 1 to 16, got \[0, 2\]", id="none"),
        pytest.param({"buckets": [17]}, r"buckets must be row counts from 1 to 16, got \[17\]", id="large"),
    ],
)
def test_arguments_out_of_bounds_are_refused(made, options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)


@pytest.mark.parametrize("device", ["cuda", "cuda:0", sf.Cuda(buckets=[4, 16], eager=False)], ids=str)
def test_the_module_s_own_gpu_may_be_named(made, device):
    trajectories = made(device=device)
    np.testing.assert_array_equal(trajectories.sample(3, **ARGUMENTS).numpy(), engine_s(3, **ARGUMENTS))


@pytest.mark.parametrize(
    ("device", "message"),
    [
        pytest.param("cuda:1", "the module must be on the device named, cuda:1, got cpu", id="another"),
        pytest.param(sf.Cuda(backend="tensorrt"), "backend must be left out for a torch module", id="backend"),
        pytest.param(sf.Cuda(options={"use_tf32": "1"}), "options must be left out for a torch module", id="options"),
    ],
)
def test_a_device_that_a_module_cannot_have_is_refused(made, device, message):
    with pytest.raises(ValueError, match=message):
        made(device=device)


def test_a_module_that_is_not_on_one_gpu_is_refused():
    with pytest.raises(ValueError, match=r"must be on one GPU, got cpu: module.to\('cuda'\)"):
        backend.Trajectories.from_torch(torch.nn.Linear(1, 1), **MODEL)
    with pytest.raises(ValueError, match="must have floating-point parameters"):
        backend.Trajectories.from_torch(lambda sample, timestep: sample, **MODEL)
