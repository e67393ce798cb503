"""ONNX Runtime on a GPU, as far as none is needed: on the stand-in of ``fake_onnxruntime``."""

import logging

import numpy as np
import onnxruntime as ort
import pytest
import support
import tolerances
from fake_onnxruntime import MIB

import stepfuse as sf
from stepfuse._core import cuda
from stepfuse.backends.cuda.bundle_network import OpenedNetwork
from stepfuse.backends.cuda.onnxruntime import CPU, CUDA, TENSORRT, ProviderError
from stepfuse.errors import CaptureError, DenoiserError

ARGUMENTS = {"cond": 3, "steps": 4, "guidance_scale": 2.0, "eta": 1.0, "seed": 5}


@pytest.fixture
def gpu(onnxruntime_gpu):
    return onnxruntime_gpu


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return support.write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def load(bundle, **options):
    return sf.backends.cuda.Trajectories.load(bundle, **{"max_rows": 8, **options})


def engine_s(bundle, n, **arguments):
    with sf.Engine.load(bundle) as engine:
        return engine.sample(n, **arguments)


@pytest.mark.parametrize(
    "options", [{}, {"form": "loop"}, {"eager": True}, {"buckets": [3]}, {"backend": "onnxruntime-tensorrt"}], ids=str
)
def test_a_bundle_s_samples_are_the_engine_s(gpu, tiny, options):
    trajectories = load(tiny.path, **options)
    assert trajectories.eager == options.get("eager", False)
    for n in (1, 3, 9):
        want = engine_s(tiny, n, **ARGUMENTS)
        got = trajectories.sample(n, **ARGUMENTS)
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerances.BATCH_ONNXRUNTIME)
    mixed = {"cond": ["bag", None], "steps": [3, 5], "guidance_scale": [3.0, 1.0], "seed": [1, 2]}
    want = engine_s(tiny, 2, **mixed)
    np.testing.assert_allclose(trajectories.sample(2, **mixed), want, rtol=0, atol=tolerances.BATCH_ONNXRUNTIME)


def test_the_embedded_model_s_samples_are_the_engine_s(gpu):
    trajectories = load("fashion", max_rows=4)
    arguments = {"cond": "sneaker", "steps": 3, "guidance_scale": 3.0, "seed": 0}
    want = engine_s("fashion", 2, **arguments)
    np.testing.assert_allclose(trajectories.sample(2, **arguments), want, rtol=0, atol=tolerances.BATCH_ONNXRUNTIME)


def test_nothing_waits_but_for_the_result(gpu, tiny, fake):
    trajectories = load(tiny)
    trajectories.sample(2, **ARGUMENTS)
    fake.log()
    gpu.ran.clear()
    trajectories.sample(2, **ARGUMENTS)
    names = fake.names()
    assert (names.count("cuGraphLaunch"), names.count("cuLaunchKernel")) == (1, 0)
    assert [name for name in names if name == "cuStreamSynchronize"] == names[-1:]
    assert gpu.ran == []  # ONNX Runtime is not called again


def test_options_of_the_execution_providers(gpu, tiny):
    device = sf.Cuda(backend="onnxruntime-tensorrt", options={"trt_fp16_enable": "1"})
    network = OpenedNetwork(tiny, device).network(tiny.info, 6)
    [options] = gpu.sessions
    assert list(options) == [TENSORRT, CUDA]
    assert options[TENSORRT] == {
        "device_id": "0",
        "user_compute_stream": str(network.stream.address),
        "trt_profile_min_shapes": "sample:1x1x4x5,timestep:1,class_labels:1",
        "trt_profile_opt_shapes": "sample:6x1x4x5,timestep:6,class_labels:6",
        "trt_profile_max_shapes": "sample:6x1x4x5,timestep:6,class_labels:6",
        "trt_fp16_enable": "1",
    }
    assert options[CUDA]["user_compute_stream"] == str(network.stream.address)
    assert options[CUDA]["use_tf32"] == "0"
    assert not {"enable_cuda_graph", "trt_cuda_graph_enable"} & {*options[CUDA], *options[TENSORRT]}


def test_an_option_of_the_caller_s_comes_before_ours(gpu, tiny):
    OpenedNetwork(tiny, sf.Cuda(options={"use_tf32": "1"}))
    assert gpu.sessions[0][CUDA]["use_tf32"] == "1"


@pytest.mark.parametrize("backend_name", ["onnxruntime", "onnxruntime-tensorrt"])
def test_a_missing_provider_is_refused(gpu, tiny, backend_name):
    gpu.available = [CPU]
    missing = CUDA if backend_name == "onnxruntime" else f"{TENSORRT}, {CUDA}"
    with pytest.raises(ProviderError, match=rf"must have {missing}, it has {CPU}: .*onnxruntime-gpu\[cuda,cudnn\]"):
        load(tiny, backend=backend_name)


def test_a_provider_that_fell_back_silently_is_refused(gpu, tiny):
    gpu.libraries_missing = True
    with pytest.raises(ProviderError, match=f"has {CUDA} but could not load it, and would run on {CPU}: the CUDA and"):
        load(tiny)
    with pytest.raises(ProviderError, match=f"has {TENSORRT}, {CUDA} but .* TensorRT libraries .* tensorrt, or set"):
        load(tiny, backend="onnxruntime-tensorrt")


def test_without_a_gpu_the_real_one_is_refused(tiny, fake, monkeypatch):
    monkeypatch.setattr(cuda, "open", lambda device: fake.open())
    with pytest.raises(ProviderError, match=f"must have {CUDA}, it has .*{CPU}"):
        load(tiny)


def test_what_of_the_network_is_on_the_cpu_is_said(gpu, tiny, caplog):
    gpu.on_cpu = ["NonZero", "Gather", "Gather"]
    load(tiny)
    assert "denoiser.onnx: on the CPU, each forward: 2 Gather, 1 NonZero" in caplog.text


def test_a_forward_that_waits_is_refused_and_may_run_eagerly(gpu, tiny, caplog):
    gpu.on_cpu = ["NonZero"]
    gpu.before = lambda stream, rows: stream.synchronize()
    message = (
        r"of 8 rows cannot be captured: ONNX Runtime could not run 8 rows: cuStreamSynchronize.*are 1 NonZero; what"
    )
    with pytest.raises(CaptureError, match=message):
        load(tiny)
    with caplog.at_level(logging.WARNING, logger="stepfuse"):
        trajectories = load(tiny, eager=None)
    assert trajectories.eager
    assert "the network runs eagerly, a launch a kernel: a forward of 8 rows cannot be captured" in caplog.text
    want = engine_s(tiny, 2, **ARGUMENTS)
    np.testing.assert_allclose(trajectories.sample(2, **ARGUMENTS), want, rtol=0, atol=tolerances.BATCH_ONNXRUNTIME)


def test_a_budget_gives_up_the_largest_and_the_arena_keeps_nothing_of_it(gpu, tiny, caplog):
    free = gpu.context.memory[0]
    with caplog.at_level(logging.INFO, logger="stepfuse"):
        trajectories = load(tiny, buckets=[8, 4, 2], memory_bytes=6 * MIB)
    assert trajectories.rows == [4, 2]
    assert "capturing forwards of [4, 2] rows: about 6.0 MiB of 1024.0 MiB free" in caplog.text
    assert "forwards of [8] rows are given up: memory suffices for [4, 2]" in caplog.text
    assert 4 * MIB <= free - gpu.context.memory[0] < 5 * MIB


def test_out_of_memory_gives_up_the_largest(gpu, tiny, fake, caplog):
    fake.set(memory=5 * MIB)
    trajectories = load(tiny, buckets=[8, 4, 2])
    assert trajectories.rows == [2]  # the graph of one of four rows would need a fifth MiB
    assert "forwards of [8, 4] rows are given up: memory suffices for [2]" in caplog.text


def test_no_memory_at_all_is_refused(gpu, tiny, fake):
    fake.set(memory=MIB)
    with pytest.raises(CaptureError, match=r"no forward can be captured: .*smaller network"):
        load(tiny, buckets=[8, 4])


def test_another_interface_is_refused(gpu, tmp_path):
    bundle = support.write_tiny_bundle(tmp_path / "tiny", shape=(1, 8, 8))
    with pytest.raises(
        sf.BundleError, match=r"a row of sample must have shape \(1, 8, 8\), got float32 \(\?, 1, 4, 5\)"
    ):
        load(bundle)


def test_a_file_that_is_no_network_is_refused(gpu, tmp_path):
    (tmp_path / "text").write_bytes(b"")  # a message without fields
    bundle = support.write_tiny_bundle(tmp_path / "tiny", network=tmp_path / "text")
    with pytest.raises(sf.BundleError, match="does not load in ONNX Runtime: "):
        load(bundle)


def test_no_memory_for_the_weights_is_no_fault_of_the_bundle(gpu, tiny, monkeypatch):
    def session(*arguments, **options):
        raise RuntimeError("CUDA failure 2: out of memory")

    monkeypatch.setattr(ort, "InferenceSession", session)
    with pytest.raises(DenoiserError, match=r"the GPU has no memory for .*denoiser\.onnx: .*out of memory"):
        load(tiny)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"backend": "cuda"}, "backend must be one of onnxruntime, .*, got 'cuda'", id="backend"),
        pytest.param({"backend": "tensorrt", "options": {"a": "1"}}, "none for tensorrt, got", id="tensorrt"),
        pytest.param({"options": {"enable_cuda_graph": "1"}}, "must leave .* alone, got enable_cuda_graph", id="own"),
        pytest.param({"max_rows": 0}, "max_rows must be at least 1, got 0", id="rows"),
        pytest.param({"form": "rolled"}, "form must be one of unrolled, loop", id="form"),
    ],
)
def test_arguments_out_of_bounds_are_refused(gpu, tiny, options, message):
    with pytest.raises(ValueError, match=message):
        load(tiny, **options)
