"""A compiled pipeline of diffusers on a GPU: diffusers' pictures, a graph a forward, no wait between steps."""

import logging
from collections import Counter

import pytest
import tolerances

diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

import tiny_pipelines  # noqa: E402

from stepfuse.integrations.diffusers import compile  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning", "ignore::FutureWarning")

STEPS = 8
PROMPTED = {"prompt": tiny_pipelines.PROMPTS, "height": 16, "width": 16, "guidance_scale": 5.0}
CALLS = {
    "DDIMPipeline": {"batch_size": 2, "eta": 0.7},
    "DiTPipeline": {"class_labels": [3, 700], "guidance_scale": 4.0},
    "StableDiffusionPipeline": PROMPTED,
    "StableDiffusionXLPipeline": PROMPTED,
    "StableDiffusion3Pipeline": PROMPTED,
    "FluxPipeline": {name: value for name, value in PROMPTED.items() if name != "guidance_scale"},
}


@pytest.fixture
def made(torch):
    def make(name):
        if "prompt" in CALLS[name]:
            pytest.importorskip("transformers")
        return tiny_pipelines.tiny_pipeline(name).to("cuda")

    return make


@pytest.fixture
def drawn(torch):
    def draw(pipe, **given):
        generator = torch.Generator("cuda").manual_seed(3)
        options = {**CALLS[type(pipe).__name__], "num_inference_steps": STEPS, "output_type": "np", **given}
        return pipe(**options, generator=generator).images

    return draw


@pytest.mark.parametrize("name", CALLS)
def test_pictures_are_those_of_diffusers(name, made, drawn, near, caplog):
    caplog.set_level(logging.INFO, logger="stepfuse")
    pipe = made(name)
    want, compiled = drawn(pipe), compile(pipe)
    for _ in range(2):  # the second time all forwards are replayed
        near(drawn(compiled), want, tolerances.GPU_IMAGES)
    assert "compile: captured a call of" in caplog.text
    assert "runs kernel by kernel" not in caplog.text


def test_weights_that_change_in_place_act_and_others_are_captured_anew(torch, made, drawn, near, caplog):
    caplog.set_level(logging.INFO, logger="stepfuse")
    pipe = made("DDIMPipeline")
    compiled = compile(pipe)
    drawn(compiled)
    with torch.no_grad():
        for parameter in pipe.unet.parameters():
            parameter.mul_(0.9)
    near(drawn(compiled), drawn(pipe), tolerances.GPU_IMAGES)
    assert "captured anew" not in caplog.text
    pipe.to("cpu").to("cuda")
    near(drawn(compiled), drawn(pipe), tolerances.GPU_IMAGES)
    assert "captured anew: it has tensors that are others" in caplog.text


def test_a_forward_is_one_launch_and_nothing_waits_between_steps(made, drawn, traced):
    compiled = compile(made("StableDiffusionPipeline"))
    drawn(compiled, output_type="latent")
    trace = traced(lambda: drawn(compiled, output_type="latent"))
    steps = trace.kernels_named("fused_step")
    assert len(steps) == STEPS
    launched = {call.launch: call.began for call in trace.calls}
    first, last = (launched[step.launch] for step in (steps[0], steps[-1]))
    assert not [wait for wait in trace.waits if first < wait.began < last]
    replayed = [
        launch for launch, kernels in Counter(kernel.launch for kernel in trace.kernels).items() if kernels > 20
    ]
    assert len(replayed) == STEPS


def test_a_network_that_waits_runs_kernel_by_kernel_and_torch_is_as_it_was(torch, made, drawn, near, caplog):
    pipe = made("DDIMPipeline")

    class Waiting(type(pipe.unet)):
        def forward(self, sample, *args, **kwargs):
            return super().forward(sample * (sample.sum().item() * 0 + 1), *args, **kwargs)

    want = drawn(pipe)
    pipe.unet.__class__ = Waiting
    near(drawn(compile(pipe)), want, tolerances.GPU_IMAGES)
    assert "runs kernel by kernel" in caplog.text
    assert torch.randn(2, device="cuda").isfinite().all()
