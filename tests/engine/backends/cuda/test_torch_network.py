"""A torch module as a network, with torch's CUDA calls answered by the recording driver: capture, memory, fallback."""

import gc
import logging

import numpy as np
import pytest
import support
from recording_driver import forward_arguments
from recording_torch import Gpu
from tolerances import ADAPTED_SAMPLES

import stepfuse as sf
from stepfuse._core import cuda

torch = pytest.importorskip("torch")

from stepfuse.backends.cuda import torch as cuda_torch  # noqa: E402
from stepfuse.backends.cuda import trajectories as backend  # noqa: E402
from stepfuse.errors import CaptureError  # noqa: E402

MODEL = {"shape": support.SHAPE, "schedule": support.SCHEDULE, "cond": support.COND}
ARGUMENTS = {"cond": 3, "steps": 4, "guidance_scale": 2.0, "eta": 1.0, "seed": 5}


@pytest.fixture
def gpu(fake, monkeypatch):
    gpu = Gpu(fake)
    gpu.patch(monkeypatch)
    monkeypatch.setattr(cuda_torch, "_where", lambda module: (torch.device("cpu"), torch.float32))
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


def begun(gpu):
    """Whether a capture has begun."""
    return any(line.startswith("begin") for line in gpu.log)


def test_a_module_that_waits_is_refused_and_torch_is_as_it_was(made, gpu, caplog):
    def before(rows):
        if begun(gpu):
            gpu.stream.synchronize()

    with pytest.raises(CaptureError, match=r"of 2 rows cannot be captured: cuStreamSynchronize .*must neither"):
        made(before, buckets=[2, 1])
    assert gpu.log == ["clear", "begin 1", "end", "leave 1", "release 1", "begin 2", "end", "clear"]
    assert (gpu.directed, gpu.capturing, gpu.users[1]) == (None, False, 0)
    gpu.randn()
    gpu.log.clear()
    with caplog.at_level(logging.WARNING, logger="stepfuse"):
        trajectories = made(before, buckets=[2, 1], eager=None)
    assert trajectories.eager
    assert "the network runs eagerly, a launch a kernel: a forward of 2 rows cannot be captured" in caplog.text
    gc.collect()
    assert len(gpu.filters) == 2  # of the graphs that failed, which are kept
    assert all(graph() is not None for graph in gpu.filters)
    gpu.log.clear()
    np.testing.assert_array_equal(trajectories.sample(2, **ARGUMENTS).numpy(), engine_s(2, **ARGUMENTS))


def test_what_a_replay_cannot_repeat_is_refused(made, gpu, caplog):
    """torch's own copies do not wait where the host's memory is pageable and non_blocking is asked for."""
    values, memory = np.zeros(4, np.float32), cuda.DeviceBuffer(gpu.context, 16)

    def before(rows):
        memory.upload(gpu.stream, values)

    with pytest.raises(CaptureError, match=r"cannot repeat: copy from pageable memory \(1\)\. A captured module must"):
        made(before, buckets=[2])
    assert (gpu.directed, gpu.capturing) == (None, False)
    assert made(before, buckets=[2], eager=None).eager


@pytest.mark.parametrize("collected", [False, True], ids=["let go", "collected"])
def test_memory_that_is_let_go_of_in_a_capture_is_freed_after_it(made, gpu, collected):
    kept = [cuda.DeviceBuffer(gpu.context, 16)]
    if collected:
        kept.append(kept)

    def before(rows):
        nonlocal kept
        if begun(gpu) and kept:
            kept = None
            _ = [[] for _ in range(2000)]  # so many that Python collects

    used = gpu.context.memory[0]
    trajectories = made(before, buckets=[2])
    np.testing.assert_array_equal(trajectories.sample(2, **ARGUMENTS).numpy(), engine_s(2, **ARGUMENTS))
    del trajectories
    gc.collect()
    assert gpu.context.memory[0] >= used


def test_a_module_that_draws_random_numbers_is_not_captured(made, gpu, caplog):
    with pytest.raises(CaptureError, match="of 2 rows cannot be captured: it draws random numbers, which every replay"):
        made(lambda rows: gpu.randn(), buckets=[2])
    with caplog.at_level(logging.WARNING, logger="stepfuse"):
        assert made(lambda rows: gpu.randn(), buckets=[2], eager=None).eager
    assert "it draws random numbers" in caplog.text


def test_a_module_in_training_mode_is_refused(gpu):
    module = torch.nn.Dropout()
    with pytest.raises(ValueError, match=r"must be in evaluation mode.*: module\.eval\(\)"):
        backend.Trajectories.from_torch(module, **MODEL)


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
