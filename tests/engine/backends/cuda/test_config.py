"""Which device an engine runs on, and the errors where there is none."""

import types
from dataclasses import replace

import numpy as np
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


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        pytest.param({"threads": 2}, "threads", id="threads"),
        pytest.param({"spinning": False}, "spinning", id="spinning"),
        pytest.param({"threads": 2, "spinning": False}, "threads and spinning", id="both"),
    ],
)
def test_what_a_gpu_does_not_use_is_refused(arguments, named):
    with pytest.raises(ValueError, match=rf"^{named} must be left out for an engine on 'cuda:1', where nothing would"):
        sf.Engine.load("fashion", device="cuda:1", **arguments)


@pytest.mark.parametrize(
    ("device", "rule"), [("cuda:1", r"an OpenedNetwork on Cuda\(index=1"), ("cpu", "of open_network or open_session")]
)
def test_a_session_is_on_the_device(device, rule):
    for session in (object(), types.SimpleNamespace(device=sf.Cuda(index=0))):
        with pytest.raises(ValueError, match=f"^session must be {rule}.*, got"):
            sf.Engine.load("fashion", device=device, session=session)


def test_threads_and_spinning_are_a_session_s_own():
    with pytest.raises(ValueError, match=r"^threads and spinning must be left out for a session of its own"):
        sf.Engine.load("fashion", session=object(), threads=1, spinning=False)


def test_a_torch_module_on_the_cpu_is_a_network():
    torch = pytest.importorskip("torch")

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.full((1,), 0.25))

        def forward(self, sample, timestep, class_labels):
            shift = (class_labels.float() + timestep / 1000).reshape(-1, 1, 1, 1)
            return (self.weight * sample + 0.01 * shift,)

    def function(x, t, cond):
        shift = (cond["class_labels"].astype("float32") + t / 1000).reshape(-1, 1, 1, 1)
        return 0.25 * x + np.float32(0.01) * shift.astype("float32")

    shared = {"shape": support.SHAPE, "schedule": support.SCHEDULE, "cond": support.COND}
    arguments = {"cond": [1, "bag", None], "steps": 5, "guidance_scale": 2.0, "seed": 3}
    with (
        sf.Engine.from_torch(Module(), device="cpu", **shared) as ours,
        sf.Engine.from_callable(function, **shared) as its,
    ):
        np.testing.assert_allclose(ours.sample(3, **arguments), its.sample(3, **arguments), rtol=1e-5, atol=1e-5)
        assert ours.serving.max_rows == HOST_ROWS


def test_a_module_elsewhere_than_the_device_named_is_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="must be on the CPU for device='cpu', got meta"):
        sf.Engine.from_torch(
            torch.nn.Linear(1, 1, device="meta"), shape=support.SHAPE, schedule=support.SCHEDULE, device="cpu"
        )


@pytest.mark.parametrize(
    ("named", "message"),
    [
        pytest.param({"index": 1}, "must be on the device named, cuda:1, got cuda:0", id="index"),
        pytest.param({"backend": "tensorrt"}, "backend must be left out.*got 'tensorrt'", id="backend"),
        pytest.param({"options": {"use_tf32": "1"}}, "options must be left out for a torch module", id="options"),
    ],
)
def test_a_device_that_does_not_fit_a_module_is_refused(named, message):
    torch = pytest.importorskip("torch")
    from stepfuse.backends.cuda.torch import _require_device

    with pytest.raises(ValueError, match=message):
        _require_device(sf.Cuda(**named), torch.device("cuda:0"))
