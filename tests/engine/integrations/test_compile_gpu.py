"""A compiled pipeline on a GPU, in Triton's interpreter: the host's states, no copies to the host, what is refused."""

import logging
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import tolerances

diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")
pytest.importorskip("triton", reason="Triton is not installed: it comes for x86-64 Linux")

import tiny_pipelines  # noqa: E402
import torch  # noqa: E402

import stepfuse as sf  # noqa: E402
from stepfuse.backends.cuda.capture import WARM_UPS  # noqa: E402
from stepfuse.integrations.diffusers import compile  # noqa: E402
from stepfuse.integrations.diffusers.batches import Start  # noqa: E402
from stepfuse.integrations.diffusers.network_inputs import NetworkInputs  # noqa: E402
from stepfuse.integrations.diffusers.placement import runs_on_gpu  # noqa: E402
from stepfuse.integrations.diffusers.predictors import ModulePredictor  # noqa: E402
from stepfuse.integrations.diffusers.scheduler_table import settings_of, table_from_row, table_of  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning", "ignore::FutureWarning")

STABLE = tiny_pipelines.STABLE_DIFFUSION
SHAPE = (4, 5, 7)
SCHEDULERS = {
    "ddim": ("DDIMScheduler", {}, {"eta": 0.7}),
    "ddim-thresholded": ("DDIMScheduler", {"thresholding": True, "sample_max_value": 1.5}, {}),
    "ddpm": ("DDPMScheduler", {}, {}),
    "dpm": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, {}),
    "dpm-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
    "heun": ("HeunDiscreteScheduler", {}, {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}, {}),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 3}, {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}, {}),
    "tcd": ("TCDScheduler", {}, {}),
    "flow": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, {}),
}


class Network(torch.nn.Module):
    """Each element by itself, so that rows do not depend on their number."""

    def __init__(self, returns):
        super().__init__()
        self.scale, self.returns = torch.nn.Parameter(torch.tensor(0.7)), returns

    def forward(self, sample, timestep, text, return_dict=False):
        shaped = (len(sample), *[1] * (sample.ndim - 1))
        shift = 0.001 * timestep.reshape(shaped) + text.reshape(shaped)
        return ((torch.tanh(self.scale * sample + shift.to(sample.dtype)) - 0.1).to(self.returns),)


def start_of(name, config, options, *, guided, dtype=torch.float32, returns=None, rescale=0.0, images=3):
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(5)
    scale = 3.0 if guided else 1.0
    table = table_of(scheduler, {}, guidance_scale=scale, guidance_rescale=rescale, **options)
    table, noise_scales = table_from_row(table, 0, settings_of(scheduler).schedule)
    rows = images * (1 + guided)
    generator = torch.Generator().manual_seed(0)
    timestep = torch.tensor(1.0) if settings_of(scheduler).schedule.is_flow else torch.tensor(1)
    inputs = NetworkInputs(
        (torch.zeros(rows, *SHAPE, dtype=dtype), timestep), {"text": torch.randn(rows, generator=generator)}
    )
    return Start(
        module=Network(returns or dtype).to(dtype).eval(),
        inputs=inputs,
        chunks=1,
        settings=settings_of(scheduler),
        table=table,
        noise_scales=noise_scales,
        states=torch.randn(images, *SHAPE, generator=generator),
        cond=np.arange(images) + images * guided,
        uncond=np.arange(images) if guided else None,
    )


def begun(start, *, on_gpu):
    predictor = ModulePredictor()
    predictor.is_on_gpu = on_gpu
    return predictor.begin(start)


def drawing(seed, like):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(like.shape, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("case", SCHEDULERS.values(), ids=SCHEDULERS)
def test_states_are_those_of_the_host_to_the_bit(case, guided, dtype, gpu):
    """Also where a callback replaces them, and after the network's calls have become a graph."""
    start = start_of(*case, guided=guided, dtype=dtype)
    with torch.no_grad():
        batches = [begun(start, on_gpu=on_gpu) for on_gpu in (False, True)]
        draws = [drawing(7, start.states) for _ in batches]
        for step in range(len(start.table)):
            noisy = start.noise_scales[step] != 0
            want, got = (
                batch.step(draw if noisy else lambda: None) for batch, draw in zip(batches, draws, strict=True)
            )
            torch.testing.assert_close(got, want, rtol=0, atol=0)
            if step == 1:
                for batch in batches:
                    batch.put(0.5 * want)
        for batch in batches:
            batch.check()
            batch.stop()
    assert gpu.log.count("replay") == len(start.table) - WARM_UPS


def last_states(start):
    """Those of the host, and those of the GPU."""
    with torch.no_grad():
        batches = [begun(start, on_gpu=on_gpu) for on_gpu in (False, True)]
        for _ in range(len(start.table)):
            states = [batch.step(lambda: None) for batch in batches]
        batches[0].stop()
    return states


@pytest.mark.parametrize(
    ("takes", "returns"),
    [(torch.float16, torch.float32), (torch.float32, torch.float16), (torch.float64, torch.float64)],
    ids=str,
)
def test_dtypes_may_be_mixed(takes, returns, gpu):
    want, got = last_states(start_of("DDIMScheduler", {}, {}, guided=True, dtype=takes, returns=returns))
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_rescaled_guidance_is_that_of_the_host(gpu):
    want, got = last_states(start_of("DDIMScheduler", {}, {}, guided=True, rescale=0.7))
    assert (got - want).abs().max() <= tolerances.ADAPTED_SAMPLES * want.abs().max()


def pipeline(name="StableDiffusionPipeline", scheduler=None):
    torch.set_num_threads(1)
    pipe = tiny_pipelines.tiny_pipeline(name)
    if scheduler is not None:
        pipe.scheduler = getattr(diffusers, scheduler)(**STABLE)
    return pipe


def call(pipe, **given):
    options = {
        "prompt": tiny_pipelines.PROMPTS,
        "height": 16,
        "width": 16,
        "guidance_scale": 5.0,
        "num_inference_steps": 6,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(3),
    }
    return pipe(**{**options, **given}).images


@contextmanager
def counted_copies_to_the_host():
    """Names of calls that would wait for a GPU's values; the interpreter's own, in launches, are left out."""
    from torch.overrides import TorchFunctionMode

    import stepfuse.kernels.step as kernel

    waiting = (
        "cpu",
        "numpy",
        "item",
        "tolist",
        "__array__",
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
        "nonzero",
    )
    found, launch = [], kernel.fused_step_kernel

    class Counting(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if getattr(function, "__name__", "") in waiting:
                found.append(function.__name__)
            return function(*args, **(kwargs or {}))

    class Launch:
        def __getitem__(self, grid):
            def launched(**arguments):
                with torch._C.DisableTorchFunction():
                    return launch[grid](**arguments)

            return launched

    kernel.fused_step_kernel = Launch()
    try:
        with Counting():
            yield found
    finally:
        kernel.fused_step_kernel = launch


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerAncestralDiscreteScheduler", "UniPCMultistepScheduler"])
def test_nothing_is_copied_to_the_host_from_step_to_step(scheduler, gpu):
    """The first step reads the timesteps, and what comes after the last may read the latents."""
    compiled = compile(pipeline(scheduler=scheduler))
    ends = []
    with counted_copies_to_the_host() as found:
        call(compiled, callback_on_step_end=lambda *_: ends.append(len(found)) or {})
    assert ends[0] > 0  # it does count
    assert ends[1:] == ends[:1] * 5


def test_a_network_is_captured_in_the_first_call_and_replayed_in_all_others(gpu, caplog):
    caplog.set_level(logging.INFO, logger="stepfuse")
    compiled = compile(pipeline())
    for _ in range(3):
        call(compiled)
    assert gpu.log.count("replay") == 3 * 6 - WARM_UPS
    assert [record.getMessage() for record in caplog.records if "captured" in record.getMessage()] == [
        "compile: captured a call of UNet2DConditionModel on (4, 4, 8, 8)"
    ]


@pytest.mark.parametrize(
    ("family", "label", "captured"),
    [
        ("video_pipelines", "WanPipeline with two networks", ["WanTransformer3DModel"] * 2),
        ("stable_pipelines", "StableDiffusionControlNetPipeline", ["ControlNetModel", "UNet2DConditionModel"]),
    ],
    ids=["wan", "controlnet"],
)
def test_all_networks_of_a_step_are_captured(family, label, captured, gpu, caplog):
    caplog.set_level(logging.INFO, logger="stepfuse")
    torch.set_num_threads(1)
    [case] = [case for case in sys.modules[family].CASES if case.label == label]
    pipe = case.pipeline()
    compiled = compile(pipe)
    for _ in range(2):
        want, got = (case.call(one, num_inference_steps=16) for one in (pipe, compiled))
        assert np.abs(got - want).max() <= tolerances.COMPILED * max(1.0, np.abs(want).max())
    logged = [record.getMessage() for record in caplog.records]
    assert sorted(line.split()[5] for line in logged if "captured a call" in line) == captured
    assert not [line for line in logged if "kernel by kernel" in line or "captured anew" in line]


def test_what_a_callback_changes_of_the_network_takes_effect(gpu):
    """Settings too, which a graph would not see."""

    def change(pipe, step, timestep, tensors):
        if step == 4:
            pipe.unet.enable_freeu(s1=0.2, s2=0.1, b1=2.0, b2=3.0)
        return {}

    pipe = pipeline()
    compiled, images = compile(pipe), []
    for one in (pipe, compiled):
        images.append(call(one, callback_on_step_end=change))
        pipe.unet.disable_freeu()
    want, got = images
    assert (got - want).abs().max() <= tolerances.COMPILED * want.abs().max()
    assert (got - call(compiled)).abs().max() > 1e-3


def test_a_lora_that_is_fused_in_place_leaves_the_graph(gpu):
    pytest.importorskip("peft")
    pipe = pipeline()
    compiled = compile(pipe)
    before = call(compiled)
    weights = {}
    for name, layer in pipe.unet.named_modules():
        if name.endswith("to_v"):
            weights[f"unet.{name}.lora_A.weight"] = 0.5 * torch.eye(2, layer.in_features)
            weights[f"unet.{name}.lora_B.weight"] = 0.5 * torch.eye(layer.out_features, 2)
    compiled.load_lora_weights(weights)
    compiled.fuse_lora()
    compiled.unload_lora_weights()
    want, got = call(pipe), call(compiled)
    assert (got - want).abs().max() <= tolerances.COMPILED * want.abs().max()
    assert (got - before).abs().max() > 1e-3
    assert sum(line.startswith("begin") for line in gpu.log) == 1


def test_states_that_are_not_finite_are_reported_after_the_call(gpu):
    compiled = compile(pipeline())

    def spoil(pipe, step, timestep, tensors):
        return {"latents": tensors["latents"].index_fill(0, torch.tensor(1), torch.nan)} if step == 1 else {}

    with pytest.raises(sf.DenoiserError, match=r"picture 1 went non-finite at step 2 of 6 \(plms|ddim\): .* The step"):
        call(compiled, callback_on_step_end=spoil)
    call(compiled)


def part(device, **attributes):
    """A network on a device, as far as it is asked where it is."""
    parameter = SimpleNamespace(device=torch.device(device))
    one = SimpleNamespace(parameters=lambda: [parameter], **attributes)
    one.modules = lambda: [one]
    return one


def placed(unet, device="cuda:0"):
    return SimpleNamespace(unet=unet, _execution_device=torch.device(device))


def test_a_pipeline_that_is_on_one_gpu_is_taken():
    assert runs_on_gpu(placed(part("cuda:0")), "unet")
    assert runs_on_gpu(placed(part("cuda:1"), "cuda"), "unet")
    assert not runs_on_gpu(placed(part("cpu"), "cpu"), "unet")
    assert not runs_on_gpu(placed(None), None)


def test_a_pipeline_that_accelerate_offloads_is_refused():
    hooks = pytest.importorskip("accelerate.hooks")
    pipe = pipeline()
    hooks.add_hook_to_module(pipe.unet.down_blocks[0], hooks.AlignDevicesHook("cpu"))
    with pytest.raises(ValueError, match=r"unet must stay on cuda:0 .* \(AlignDevicesHook\), as of enable_model"):
        runs_on_gpu(placed(pipe.unet), "unet")
    hooks.remove_hook_from_module(pipe.unet, recurse=True)
    with pytest.raises(ValueError, match=r"unet must be on cuda:0 as a whole, where the .* got cpu: pipe\.to"):
        runs_on_gpu(placed(pipe.unet), "unet")


def test_all_its_networks_must_be_on_the_gpu():
    pipe = SimpleNamespace(unet=part("cuda:0"), controlnet=part("cpu"), _execution_device=torch.device("cuda:0"))
    with pytest.raises(ValueError, match="controlnet must be on cuda:0 as a whole, where the pipeline runs, got cpu: "):
        runs_on_gpu(pipe, "unet")


def test_a_pipeline_that_is_spread_over_devices_is_refused():
    spread = part("cuda:0")
    spread.parameters = lambda: [SimpleNamespace(device=torch.device("cuda", index)) for index in (0, 1)]
    with pytest.raises(ValueError, match=r"as a whole, where the pipeline runs, got cuda:0, cuda:1: .*pipe\.original"):
        runs_on_gpu(placed(spread), "unet")
    with pytest.raises(ValueError, match="unet must be on cuda:0 as a whole, where the pipeline runs, got cuda:1: "):
        runs_on_gpu(placed(part("cuda:1")), "unet")


def test_the_refusal_comes_before_anything_is_encoded(monkeypatch):
    from stepfuse.integrations.diffusers import predictors

    def refuse(pipe, network):
        raise ValueError(f"not {network}")

    compiled = compile(pipeline())
    monkeypatch.setattr(predictors, "runs_on_gpu", refuse)
    monkeypatch.setattr(type(compiled), "encode_prompt", None)
    with pytest.raises(ValueError, match="not unet"):
        call(compiled)


def test_a_missing_triton_is_named_with_its_extra(monkeypatch):
    import sys

    import stepfuse.kernels

    monkeypatch.delitem(vars(stepfuse.kernels), "fused_step", raising=False)
    for name in [name for name in sys.modules if name.startswith("stepfuse.kernels.step")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs triton: pip install 'stepfuse\[kernels\]'"):
        runs_on_gpu(placed(part("cuda:0")), "unet")
