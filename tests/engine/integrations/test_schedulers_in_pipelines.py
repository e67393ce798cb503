"""diffusers' pipelines with our schedulers in the place of its own: the same pictures."""

import numpy as np
import pytest
import tolerances

diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

import tiny_pipelines  # noqa: E402
import torch  # noqa: E402

from stepfuse.integrations import diffusers as ours  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array_:DeprecationWarning",  # diffusers, or numpy for it
    "ignore::FutureWarning",
)

IMAGE = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(2))
MASK = (torch.arange(16) < 8).float().expand(1, 1, 16, 16)
TEXT = {"prompt": "a red cat", "guidance_scale": 5.0, "num_inference_steps": 4}
SIZED = {**TEXT, "height": 16, "width": 16}
FROM_IMAGE = {**TEXT, "image": IMAGE, "strength": 0.6, "num_inference_steps": 5}
INPAINT = {**SIZED, "image": IMAGE, "mask_image": MASK, "strength": 0.8}
EMBEDDED = {
    "prompt_embeds": torch.ones(1, 3, 16),
    "pooled_prompt_embeds": torch.ones(1, 8),
    "height": 16,
    "width": 16,
    "num_inference_steps": 4,
    "output_type": "latent",
}
FLOW = "FlowMatchEulerDiscreteScheduler"


@pytest.fixture(scope="module")
def components():
    """Those of a tiny pipeline, made once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = flux() if name == "FluxPipeline" else tiny_pipelines.tiny_pipeline(name).components
        return dict(made[name])

    torch.set_num_threads(1)
    return get


def flux():
    """A transformer of random weights, whose prompts are given as embeddings."""
    torch.manual_seed(0)
    sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
    embedded = {"joint_attention_dim": 16, "pooled_projection_dim": 8, "axes_dims_rope": (4, 4, 8)}
    network = diffusers.FluxTransformer2DModel(in_channels=16, **sizes, **embedded).eval()
    absent = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    return {"transformer": network, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(), **absent}


@pytest.mark.parametrize(
    ("of", "pipeline", "name", "config", "given"),
    [
        ("StableDiffusionPipeline", "StableDiffusionPipeline", "EulerDiscreteScheduler", {}, SIZED),
        ("StableDiffusionPipeline", "StableDiffusionPipeline", "PNDMScheduler", {"skip_prk_steps": True}, SIZED),
        ("StableDiffusionPipeline", "StableDiffusionPipeline", "UniPCMultistepScheduler", {}, SIZED),
        ("StableDiffusionPipeline", "StableDiffusionPipeline", "TCDScheduler", {}, {**SIZED, "eta": 0.3}),
        ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "HeunDiscreteScheduler", {}, FROM_IMAGE),
        (
            *("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "PNDMScheduler"),
            *({"skip_prk_steps": True}, FROM_IMAGE),
        ),
        ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "LMSDiscreteScheduler", {}, FROM_IMAGE),
        ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline", "EulerAncestralDiscreteScheduler", {}, INPAINT),
        ("StableDiffusionXLPipeline", "StableDiffusionXLPipeline", "DPMSolverSinglestepScheduler", {}, SIZED),
        ("StableDiffusionXLPipeline", "StableDiffusionXLPipeline", "DEISMultistepScheduler", {}, SIZED),
        ("StableDiffusion3Pipeline", "StableDiffusion3Pipeline", FLOW, {"shift": 3.0}, SIZED),
        ("StableDiffusion3Pipeline", "StableDiffusion3Pipeline", "FlowMatchHeunDiscreteScheduler", {}, SIZED),
        ("FluxPipeline", "FluxPipeline", FLOW, {"use_dynamic_shifting": True}, EMBEDDED),
    ],
    ids=lambda one: one.removesuffix("Pipeline") if isinstance(one, str) else "",
)
def test_pictures_are_those_of_diffusers(of, pipeline, name, config, given, components):
    parts, pictures = components(of), []
    if pipeline.endswith("InpaintPipeline"):
        parts["requires_safety_checker"] = False
    for library in (diffusers, ours):
        base = {} if name.startswith("FlowMatch") else tiny_pipelines.STABLE_DIFFUSION
        base = {key: value for key, value in base.items() if name != "DPMSolverSinglestepScheduler" or "beta" in key}
        parts["scheduler"] = getattr(library, name)(**{**base, **config})
        pipe = getattr(diffusers, pipeline)(**parts)
        pipe.set_progress_bar_config(disable=True)
        torch.manual_seed(5)
        options = {"output_type": "np", **given, "generator": torch.Generator().manual_seed(3)}
        pictures.append(np.asarray(pipe(**options).images))
    assert pictures[0].std() > 0.01
    assert np.abs(pictures[1] - pictures[0]).max() <= tolerances.COMPILED * max(1.0, np.abs(pictures[0]).max())
