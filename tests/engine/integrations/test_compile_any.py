"""Compiled pipelines that keep their own loop, with the fused step in it, against the same pipelines of diffusers."""

import logging
import sys

import numpy as np
import peers
import pytest
import tolerances

diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

import tiny_pipelines  # noqa: E402
import torch  # noqa: E402

from stepfuse.integrations import diffusers as ours  # noqa: E402
from stepfuse.integrations.diffusers import compile  # noqa: E402
from stepfuse.integrations.diffusers.torch_step import warn_once  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning", "ignore::FutureWarning")

STABLE = {**tiny_pipelines.STABLE_DIFFUSION, "skip_prk_steps": True}
PLAIN = "StableDiffusionPipeline"
FROM_IMAGE, INPAINT = "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"
IMAGE = np.random.default_rng(0).random((2, 16, 16, 3), dtype=np.float32)
MASK = np.repeat(np.arange(16)[None, None, :, None] < 8, 16, axis=1).repeat(2, axis=0).astype(np.float32)
SIZED = {"height": 16, "width": 16}
STRENGTH = {"image": IMAGE, "strength": 0.5}


@pytest.fixture(scope="module")
def components():
    """Those of a tiny pipeline, made once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = tiny_pipelines.tiny_pipeline(name).components
        return dict(made[name])

    torch.set_num_threads(1)
    return get


@pytest.fixture(autouse=True)
def path(monkeypatch):
    """One Brownian path for ``DPMSolverSDEScheduler``, whose own package need not be here."""
    module = sys.modules[peers.scheduler_class("DPMSolverSDEScheduler").__module__]

    def new(like, *_):
        seeds = iter(range(100, 1000))
        draw = lambda: torch.randn(like.shape, generator=torch.Generator().manual_seed(next(seeds)))  # noqa: E731
        return peers.BrownianPath(lambda: draw().to(like.dtype))

    monkeypatch.setattr(module, "BrownianTreeNoiseSampler", new, raising=False)


def pipeline(components, kind, scheduler=None, **config):
    """A pipeline with the components of the text pipeline of its family, and this scheduler."""
    family = kind[: kind.index("Pipeline")].removesuffix("Img2Img").removesuffix("Inpaint")
    parts = components(f"{family}Pipeline")
    if family == "StableDiffusion":
        parts["requires_safety_checker"] = False
    if scheduler is not None:
        parts["scheduler"] = peers.scheduler_class(scheduler).from_config({**STABLE, **config})
    pipe = getattr(diffusers, kind)(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe, **given):
    torch.manual_seed(5)
    options = {"prompt": tiny_pipelines.PROMPTS, "guidance_scale": 5.0, "num_inference_steps": 6, "output_type": "np"}
    return np.asarray(pipe(**{**options, **given}, generator=torch.Generator().manual_seed(3)).images)


def require_same(pipe, compiled=None, **given):
    want, got = generate(pipe, **given), generate(compiled or compile(pipe), **given)
    assert want.std() > 0.01
    assert np.abs(got - want).max() <= tolerances.COMPILED * max(1.0, np.abs(want).max())


@pytest.mark.parametrize(
    ("kind", "scheduler", "given"),
    [
        (PLAIN, "SASolverScheduler", SIZED),
        (PLAIN, "DPMSolverSDEScheduler", SIZED),
        (PLAIN, "CMStochasticIterativeScheduler", SIZED),
        (PLAIN, "IPNDMScheduler", SIZED),
        (FROM_IMAGE, "SASolverScheduler", STRENGTH),
        (FROM_IMAGE, "PNDMScheduler", STRENGTH),  # steps from other levels than its state has: as diffusers does
        (FROM_IMAGE, "LMSDiscreteScheduler", STRENGTH),
        (
            "StableDiffusionInpaintPipeline",
            "EulerAncestralDiscreteScheduler",
            {**SIZED, **STRENGTH, "mask_image": MASK},
        ),
        ("StableDiffusion3Pipeline", None, {**SIZED, "skip_guidance_layers": [0], "skip_layer_guidance_stop": 0.9}),
    ],
)
def test_pictures_are_those_of_diffusers(kind, scheduler, given, components):
    require_same(pipeline(components, kind, scheduler), **given)


def test_the_first_call_logs_what_is_done(components, caplog):
    caplog.set_level(logging.INFO, logger="stepfuse")
    compiled = compile(pipeline(components, PLAIN, "SASolverScheduler"))
    for _ in range(2):
        generate(compiled, **SIZED)
    compiled.scheduler = diffusers.DDIMScheduler.from_config(STABLE)
    generate(compiled, **SIZED)
    assert [record.getMessage() for record in caplog.records] == [
        f"compile: {PLAIN} runs its own loop, with the fused step of SASolverScheduler",
        f"compile: the engine runs the loop of {PLAIN}, guidance in the fused step of DDIMScheduler",
    ]


def test_a_scheduler_is_left_as_diffusers_leaves_it(components):
    pipes = [pipeline(components, PLAIN, "SASolverScheduler") for _ in range(2)]
    compiled, own = compile(pipes[1]), pipes[1].scheduler
    generate(pipes[0], **SIZED)
    generate(compiled, **SIZED)
    assert compiled.scheduler is own
    assert vars(own).keys() <= vars(pipes[0].scheduler).keys()  # nothing of ours
    torch.testing.assert_close(own.timesteps, pipes[0].scheduler.timesteps, rtol=0, atol=0)
    require_same(*pipes, **SIZED)  # now by diffusers' step again


def test_one_of_our_schedulers_stays_what_it_is(components):
    pipe = pipeline(components, PLAIN, "SASolverScheduler")
    other = pipeline(components, PLAIN)
    other.scheduler = ours.SASolverScheduler.from_config(pipe.scheduler.config)
    require_same(pipe, compile(other), **SIZED)


def test_a_callback_s_changes_take_effect(components):
    def halved(pipe, step, timestep, tensors):
        return {"latents": 0.5 * tensors["latents"]} if step == 2 else {}

    pipe = pipeline(components, PLAIN, "SASolverScheduler")
    require_same(pipe, **SIZED, callback_on_step_end=halved)
    assert np.abs(generate(pipe, **SIZED, callback_on_step_end=halved) - generate(pipe, **SIZED)).max() > 0.01


@pytest.fixture(scope="module")
def bundle(networks):
    """The network of the tiny Stable Diffusion."""
    return networks / PLAIN


def test_a_bundle_predicts_in_the_pipeline_s_own_loop(components, bundle):
    pipe = pipeline(components, PLAIN, "SASolverScheduler")
    compiled = compile(pipe, bundle=bundle)
    handle = pipe.unet.register_forward_hook(lambda *_: pytest.fail("the module has run"))
    got = [generate(compiled, **SIZED, guidance_scale=scale) for scale in (5.0, 1.0)]
    handle.remove()
    for scale, images in zip((5.0, 1.0), got, strict=True):
        assert np.abs(images - generate(pipe, **SIZED, guidance_scale=scale)).max() < tolerances.COMPILED
    with pytest.raises(ValueError, match="must pass nothing but conditioning to a bundle's network, got scale"):
        generate(compiled, **SIZED, cross_attention_kwargs={"scale": 0.5})
    velocity = pipeline(components, PLAIN, "SASolverScheduler", prediction_type="v_prediction")
    with pytest.raises(ValueError, match="prediction_type must be the scheduler's, 'v_prediction', got 'epsilon'"):
        generate(compile(velocity, bundle=bundle))


def test_what_is_not_covered_is_refused(components, bundle):
    with pytest.raises(ValueError, match="must be a pipeline of diffusers with a scheduler that steps, got UNet2D"):
        compile(object.__new__(diffusers.UNet2DModel))
    pipe = pipeline(components, INPAINT)
    pipe.scheduler = diffusers.DDIMParallelScheduler.from_config(STABLE)
    with pytest.raises(ValueError, match=r"DDIMParallelScheduler"):
        generate(compile(pipe, bundle=bundle), **SIZED, **STRENGTH, mask_image=MASK)


def test_what_no_table_holds_is_stepped_by_diffusers(components, caplog):
    warn_once.cache_clear()
    require_same(pipeline(components, PLAIN, "SASolverScheduler", tau_func=lambda t: 0.5), **SIZED)
    assert "SASolverScheduler steps by diffusers' own code: SASolverScheduler: tau_func must be" in caplog.text


def test_a_bundle_needs_a_network_to_stand_in_for(components, bundle):
    pipe = pipeline(components, PLAIN)
    pipe.unet = None
    with pytest.raises(ValueError, match="stands in for a pipeline's unet or transformer, got StableDiffusionPipeline"):
        compile(pipe, bundle=bundle)
