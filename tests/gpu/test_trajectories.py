"""Whole trajectories of a torch module: the CPU's images, one launch, a loop on the device, and what goes wrong."""

import logging

import numpy as np
import pytest
import support
import tolerances

import stepfuse as sf
from stepfuse.backends.cuda.kernels import KernelError
from stepfuse.backends.cuda.trajectories import Trajectories

MIXED = {
    "table": [
        sf.samplers.ddim(support.SCHEDULE, 12, eta=1.0, guidance_scale=3.0),
        sf.samplers.dpmpp_2m(support.SCHEDULE, 9),
        sf.samplers.ddim(support.SCHEDULE, 14, guidance_scale=2.0, guidance_interval=(0.0, 0.5)),
        sf.samplers.ddim(support.SCHEDULE, 10, guidance_scale=0.0),
        sf.samplers.ddim(support.SCHEDULE, 8),
    ],
    "cond": [2, 4, 5, 1, None],
    "seed": [11, 1 << 63, 13, 14, (1 << 64) - 1],
}
IMAGE = np.random.default_rng(3).uniform(-1, 1, (3, 16, 16)).astype(np.float32)
KEPT = {"image": IMAGE, "mask": np.float32([[1] * 6 + [0.5] * 2 + [0] * 8] * 16)}
ADAPTED = {"guidance_rescale": 0.7, "dynamic_threshold": (0.95, 1.5)}
GUIDED = {"cond": 3, "steps": 20, "eta": 1.0, "guidance_scale": 3.0, "seed": 7}
WAYS = pytest.mark.parametrize("way", ["unrolled", "loop", "eager"])


@pytest.fixture
def make(torch, model, cubins):
    def make(module, *, dtype=None, **options):
        module = module.to("cuda", dtype or torch.float32)
        return Trajectories.from_torch(module, **{**model, "max_rows": 8, "cubins": cubins, **options})

    return make


def in_way(way):
    return {"eager": True} if way == "eager" else {"form": way}


@WAYS
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"n": 5, **MIXED}, id="mixed"),
        pytest.param({"n": 4, **GUIDED}, id="guided"),
        pytest.param({"n": 7, **GUIDED}, id="more-than-fit"),
        pytest.param({"n": 2, **GUIDED, **ADAPTED}, id="adapted"),
        pytest.param({"n": 2, **GUIDED, **KEPT, "strength": 0.7}, id="kept"),
        pytest.param({"n": 5, **MIXED, **KEPT}, id="mixed-and-kept"),
        pytest.param({"n": 3, **GUIDED, "image": IMAGE}, id="image"),
    ],
)
def test_images_are_the_cpu_s(make, make_module, on_cpu, near, way, arguments):
    want = on_cpu(make_module(), **arguments)
    trajectories = make(make_module(), **in_way(way))
    assert trajectories.eager == (way == "eager")
    for _ in range(2):
        near(trajectories.sample(**arguments), want, tolerances.GPU_IMAGES * np.abs(want).max())


def test_noise_that_is_given_is_where_it_begins(make, make_module, on_cpu, near):
    noise = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    arguments = {"cond": 1, "steps": 10, "noise": noise, "seed": 0}
    want = on_cpu(make_module(), 2, **arguments)
    near(make(make_module()).sample(2, **arguments), want, tolerances.GPU_IMAGES * np.abs(want).max())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_loop_on_the_device_is_the_unrolled_graph_to_the_bit(torch, make, make_module, dtype):
    unrolled = make(make_module(), dtype=getattr(torch, dtype), buckets=[8])
    loop = Trajectories(unrolled.info, unrolled._network, unrolled._kernels, form="loop")  # the same captured forward
    for steps in (1, 2, 20, 63, 64, 65):
        arguments = {**GUIDED, "steps": steps}
        assert torch.equal(loop.sample(4, **arguments), unrolled.sample(4, **arguments))


def test_integer_timesteps_are_rounded(torch, make, make_module, near):
    class Whole(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, sample, timestep, class_labels):
            assert timestep.dtype == torch.int64
            return self.module(sample, timestep.float(), class_labels)

    # DDIM's timesteps are whole: as float32 they say the same.
    want = make(make_module(), buckets=[4]).sample(2, **GUIDED)
    got = make(Whole(make_module()), timestep_dtype="int64", buckets=[4]).sample(2, **GUIDED)
    near(got, want.cpu().numpy(), tolerances.GPU_IMAGES * want.abs().max().item())


def test_a_batch_is_one_launch_and_nothing_waits(make, make_module, traced):
    trajectories = make(make_module(), form="unrolled")
    arguments = {**GUIDED, "steps": 30}
    trajectories.sample(4, **arguments)
    trace = traced(lambda: trajectories.sample(4, **arguments))
    steps = trace.kernels_named("fused_step")
    assert len(steps) == 30
    assert len({step.launch for step in steps}) == 1
    # What may be waited for is the copy of the frames before, whose memory on the host is about to be overwritten.
    assert len(trace.waits) <= 1
    assert all("Event" in wait.name for wait in trace.waits)
    # Beside the graph only copies of a few numbers, whatever the number of steps.
    assert len([call for call in trace.calls if "Launch" in call.name]) <= 8


@pytest.mark.parametrize("form", ["unrolled", "loop"])
def test_the_host_is_back_before_the_device_is_done(torch, make, make_module, form):
    trajectories = make(make_module(width=256), form=form)
    arguments = {**GUIDED, "steps": 500, "sampler": "ddim"}
    trajectories.sample(4, **arguments)
    torch.cuda.synchronize()
    drawn = trajectories.sample(4, **arguments)
    assert not torch.cuda.current_stream().query()
    assert torch.isfinite(drawn).all()


def test_results_of_earlier_calls_stay(torch, make, make_module):
    trajectories = make(make_module())
    first = trajectories.sample(2, **GUIDED)
    kept = first.clone()
    for seed in range(5):
        trajectories.sample(2, **{**GUIDED, "seed": seed})
    assert torch.equal(first, kept)


def test_a_budget_gives_up_the_largest_forwards_and_says_so(make, make_module, on_cpu, near, caplog):
    want = on_cpu(make_module(width=64), 4, **GUIDED)
    with caplog.at_level(logging.INFO, logger="stepfuse"):
        trajectories = make(make_module(width=64), memory_bytes=200 << 20, max_rows=2048, buckets=[2048, 8])
    # A hidden layer of 2048 rows takes 128 MiB, and two are held at once.
    assert trajectories.rows == [8]
    assert "capturing forwards of" in caplog.text
    assert "forwards of [2048] rows are given up: memory suffices for [8]" in caplog.text
    near(trajectories.sample(4, **GUIDED), want, tolerances.GPU_IMAGES * np.abs(want).max())


def test_out_of_memory_gives_up_the_largest_forward_and_not_the_process(torch, make, make_module, caplog):
    module = make_module(width=64)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved() + (256 << 20)
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    try:
        trajectories = make(module, buckets=[4096, 8, 2], max_rows=4096)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert trajectories.rows == [8, 2]
    assert "forwards of [4096] rows are given up" in caplog.text
    assert torch.isfinite(trajectories.sample(4, **GUIDED)).all()


def test_without_memory_for_any_forward_it_is_refused(make, make_module):
    with pytest.raises(RuntimeError, match=r"no forward can be captured: .*give it more memory"):
        make(make_module(), memory_bytes=1)


def test_a_module_that_waits_is_refused_and_leaves_all_usable(make, make_module, on_cpu, near, waiting, caplog):
    want = on_cpu(make_module(), 2, **GUIDED)
    with pytest.raises(RuntimeError, match=r"a forward of 8 rows cannot be captured: .*must neither wait"):
        make(make_module(spoil=waiting))
    near(make(make_module()).sample(2, **GUIDED), want, tolerances.GPU_IMAGES * np.abs(want).max())
    with caplog.at_level(logging.WARNING, logger="stepfuse"):
        fallen_back = make(make_module(spoil=waiting), eager=None)
    assert fallen_back.eager
    assert "the network runs eagerly, a launch a kernel: a forward of 8 rows cannot be captured" in caplog.text
    near(fallen_back.sample(2, **GUIDED), want, tolerances.GPU_IMAGES * np.abs(want).max())


def test_torch_s_own_work_goes_on_after_captures_that_failed(torch, make, make_module, waiting):
    for _ in range(3):
        with pytest.raises(RuntimeError, match="cannot be captured"):
            make(make_module(spoil=waiting))
    graph, x = torch.cuda.CUDAGraph(), torch.ones(8, device="cuda")
    assert (x @ x.reshape(8, 1)).item() == 8
    with torch.cuda.graph(graph):
        y = x @ x.reshape(8, 1)
    graph.replay()
    assert y.item() == 8


def test_a_prediction_of_another_shape_is_refused(torch, make, make_module):
    class Narrow(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, sample, timestep, class_labels):
            return self.module(sample, timestep, class_labels)[:, :1]

    with pytest.raises(RuntimeError, match=r"must return shape \(8, 3, 16, 16\), got \(8, 1, 16, 16\)"):
        make(Narrow(make_module()))


def test_what_a_module_raises_is_passed_on(make, make_module):
    with pytest.raises(ZeroDivisionError):
        make(make_module(spoil=lambda hidden: 1 / 0))


def test_a_module_elsewhere_and_kernels_of_another_gpu_are_refused(torch, make, make_module, model, cubins, tmp_path):
    with pytest.raises(ValueError, match=r"the module must be on one GPU, got cpu: module.to\('cuda'\)"):
        Trajectories.from_torch(make_module(), **model)
    with pytest.raises(TypeError, match="must compute in float32, float16 or bfloat16, got"):
        make(make_module(), dtype=torch.float64)
    with pytest.raises(KernelError, match="must be a folder written by"):
        make(make_module(), cubins=tmp_path).sample(1, cond=1, steps=2)
    assert torch.isfinite(make(make_module()).sample(1, cond=1, steps=2)).all()


def test_without_a_pack_triton_compiles(make, make_module, near):
    ahead, now = (made.sample(2, **GUIDED) for made in (make(make_module()), make(make_module(), cubins=None)))
    near(now, ahead.cpu().numpy(), tolerances.GPU_IMAGES * ahead.abs().max().item())


def test_a_compiled_module_is_captured(torch, make, make_module, near):
    plain = make(make_module(), buckets=[4]).sample(2, **GUIDED)
    compiled = make(torch.compile(make_module().cuda()), buckets=[4]).sample(2, **GUIDED)
    near(compiled, plain.cpu().numpy(), tolerances.GPU_IMAGES * plain.abs().max().item())
