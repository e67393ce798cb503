"""Which device an engine runs on, and the errors where there is none."""

from dataclasses import replace

import pytest
import support

import stepfuse as sf
from stepfuse.backends.cuda.config import device_of, gpu_of
from stepfuse.backends.cuda.trajectories import Trajectories
from stepfuse.engine import _serving
from stepfuse.serving.config import GPU_ROWS, HOST_ROWS


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("cpu", None), ("cuda", sf.Cuda()), ("cuda:0", sf.Cuda(0)), ("cuda:12", sf.Cuda(12)), (sf.Cuda(3), sf.Cuda(3))],
)
def test_a_device_is_a_name_or_a_cuda(given, wanted):
    assert device_of(given) == wanted


@pytest.mark.parametrize("given", ["gpu", "cuda:", "cuda:one", "cuda:-1", "CUDA", "", 0, None])
def test_other_devices_are_refused(given):
    with pytest.raises(ValueError, match=r"device must be 'cpu', 'cuda', 'cuda:N' or stepfuse.Cuda\(...\), got"):
        sf.Engine.load("fashion", device=given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"index": -1}, "index must be at least 0, got -1", id="index"),
        pytest.param(
            {"backend": "tvm"},
            "backend must be one of onnxruntime, .*, tensorrt, got .tvm",
            id="tvm",
        ),
    ],
)
def test_arguments_out_of_bounds_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sf.Cuda(**arguments)


@pytest.mark.parametrize(
    ("given", "wanted"), [(0, sf.Cuda()), (2, sf.Cuda(2)), ("cuda", sf.Cuda()), ("cuda:3", sf.Cuda(3))]
)
def test_a_gpu_is_an_index_or_a_name_with_options(given, wanted):
    assert gpu_of(given) == wanted
    assert gpu_of(given, buckets=[2], eager=False) == replace(wanted, buckets=[2], eager=False)
    assert gpu_of(wanted) is wanted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"device": "cpu"}, "device must be a GPU, got 'cpu': stepfuse.Engine", id="cpu"),
        pytest.param({"device": "gpu"}, "device must be 'cpu', 'cuda', 'cuda:N' or", id="name"),
        pytest.param({"device": -1}, "index must be at least 0, got -1", id="index"),
        pytest.param(
            {"device": sf.Cuda(1), "cubins": "folder", "eager": None},
            "must hold all options of the GPU, got cubins='folder', eager=None beside it",
            id="both",
        ),
    ],
)
def test_trajectories_refuse_other_devices_and_options_given_twice(arguments, message):
    with pytest.raises(ValueError, match=message):
        Trajectories.load("fashion", **arguments)
    pytest.importorskip("torch")
    with pytest.raises(ValueError, match=message):
        Trajectories.from_torch(None, shape=support.SHAPE, schedule=support.SCHEDULE, **arguments)


def test_an_onnx_runtime_without_gpus_is_refused_with_the_package_to_install():
    with pytest.raises(sf.GpuError, match=r"must have CUDAExecutionProvider, .*pip install onnxruntime-gpu"):
        sf.Engine.load("fashion", device="cuda")


def test_a_module_on_the_cpu_is_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match=r"must be on one GPU, got cpu: module.to\('cuda'\)"):
        sf.Engine.from_torch(torch.nn.Linear(1, 1), shape=support.SHAPE, schedule=support.SCHEDULE)


def test_rows_are_fewer_on_a_gpu_by_default():
    assert _serving(None, None, None, GPU_ROWS).max_rows == GPU_ROWS
    assert _serving(None, 5, None, GPU_ROWS).max_rows == 5
    assert _serving(sf.Serving(max_rows=7), None, None, GPU_ROWS).max_rows == 7
    assert _serving(sf.Serving(max_queue=3), None, True, GPU_ROWS) == sf.Serving(
        max_rows=GPU_ROWS, max_queue=3, deterministic=True
    )
    assert _serving(None, None, None, HOST_ROWS).row_limit == sf.Serving().row_limit


def test_slots_take_three_states_each():
    from stepfuse._core import cuda

    one, many = cuda.slot_bytes(1, 1 << 16), cuda.slot_bytes(64, 1 << 16)
    assert 3 * 4 * (1 << 16) < one < 3.01 * 4 * (1 << 16)
    assert many == pytest.approx(64 * one, rel=1e-2)
