"""What a pipeline's parts compute, in torch, against diffusers' own; exporting compares each graph with its part."""

import copy
import json
import shutil

import numpy as np
import onnxruntime
import pytest
import tiny_pipelines
import tolerances

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

from stepfuse.bundle.model_info import GUIDANCE_INPUT  # noqa: E402
from stepfuse.export import ExportError  # noqa: E402
from stepfuse.export.onnx.inputs import Input  # noqa: E402
from stepfuse.export.onnx.onnx_file import write_onnx  # noqa: E402
from stepfuse.export.onnx.translation import translate  # noqa: E402
from stepfuse.export.onnx.validate import TOLERANCES  # noqa: E402
from stepfuse.export.pipelines import (  # noqa: E402
    dit,
    flux,
    pixels,
    positions,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
)
from stepfuse.export.pipelines.conditioned_unet import ConditionedUNet  # noqa: E402
from stepfuse.export.pipelines.export_plan import sample_inputs  # noqa: E402
from stepfuse.export.pipelines.pipeline_folder import PipelineFolder  # noqa: E402

MODULES = {
    "DDPMPipeline": pixels,
    "DDIMPipeline": pixels,
    "DiTPipeline": dit,
    "StableDiffusionPipeline": stable_diffusion,
    "StableDiffusionPipeline-v": stable_diffusion,
    "StableDiffusionXLPipeline": stable_diffusion_xl,
    "StableDiffusion3Pipeline": stable_diffusion_3,
    "StableDiffusion3Pipeline-3.5": stable_diffusion_3,
    "FluxPipeline": flux,
    "FluxPipeline-schnell": flux,
    "FluxFillPipeline": flux,
    "LatentConsistencyModelPipeline": stable_diffusion,
    "StableDiffusionXLPipeline-lcm": stable_diffusion_xl,
}
TEXTS = ["a red cat in the rain", "", "Blue DOG 🐕 — l'été", "overlong " * 20]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """``saved(name, **changes)``: the folder of a tiny pipeline."""
    made = {}

    def save(name, **changes):
        key = name, *changes
        if key not in made:
            made[key] = tiny_pipelines.save_tiny(name, tmp_path_factory.mktemp("saved") / name, **changes)
        return made[key]

    return save


def plan_of(path, size=None):
    folder = PipelineFolder(path)
    return MODULES[path.name].plan(folder, size)


def module_of(path, file):
    """A part's module, its weights loaded."""
    folder = PipelineFolder(path)
    [part] = [one for one in plan_of(path).parts if one.file == file]
    return part.build(*(folder.load(name, kinds) for name, kinds in part.components.items())).eval()


def run(module, *inputs):
    with torch.no_grad():
        found = module(*inputs)
    return found if isinstance(found, tuple) else (found,)


def token_ids(plan, text):
    """Ids for each prompt input, by the files that a bundle gets."""
    from tokenizers import Tokenizer

    found = []
    for one in plan.pipeline.prompts:
        tokenizer = Tokenizer.from_str(plan.tokenizers[one.tokenizer])
        tokenizer.enable_truncation(one.length)
        ids = tokenizer.encode(text).ids
        found.append(torch.tensor([ids + [one.pad_id] * (one.length - len(ids))]))
    return found


def encoded(pipe, text):
    """diffusers' own: the states, and the summary where there is one."""
    with torch.no_grad():
        if isinstance(pipe, diffusers.StableDiffusionPipeline | diffusers.LatentConsistencyModelPipeline):
            return pipe.encode_prompt(text, "cpu", 1, False)[:1]
        if isinstance(pipe, diffusers.StableDiffusionXLPipeline):
            return pipe.encode_prompt(text, do_classifier_free_guidance=False)[::2][:2]
        if isinstance(pipe, diffusers.FluxPipeline):
            return pipe.encode_prompt(text)[:2]
        return pipe.encode_prompt(text, None, None, do_classifier_free_guidance=False)[::2]


TEXT_CASES = {name: {} for name in tiny_pipelines.NAMES if name.startswith(("Stable", "Flux", "Latent"))}
TEXT_CASES["without T5"] = {"text_encoder_3": None, "tokenizer_3": None}


@pytest.mark.parametrize("case", TEXT_CASES)
def test_prompts_become_what_the_pipeline_makes_of_them(saved, case):
    name, changes = "StableDiffusion3Pipeline" if case == "without T5" else case, TEXT_CASES[case]
    path, pipe = saved(name, **changes), tiny_pipelines.tiny_pipeline(name, **changes)
    plan, module = plan_of(path), module_of(path, "text_encoder.onnx")
    for text in TEXTS:
        found = run(module, *token_ids(plan, text))
        for ours, theirs in zip(found, encoded(pipe, text), strict=True):
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerances.SAME_MODULE)
    assert [tuple(one.shape) for one in found] == [
        (1, *spec.shape) for key, spec in plan.cond.items() if key not in (plan.pipeline.size_input, GUIDANCE_INPUT)
    ]


UNITS = [
    {"scaling_factor": 0.3},
    {"scaling_factor": 1.5, "shift_factor": 0.2},
    {"scaling_factor": 0.5, "latents_mean": [0.1, 0.2, -0.3, 0.4], "latents_std": [1.1, 0.9, 1.2, 2.0]},
]


@pytest.mark.parametrize("units", UNITS, ids=["scale", "shift", "channels"])
def test_scale_and_shift_are_in_the_vae(saved, units, tmp_path):
    path = tiny_pipelines.save_tiny(
        "StableDiffusionPipeline", tmp_path / "StableDiffusionPipeline", vae=tiny_pipelines.vae(**units)
    )
    vae = PipelineFolder(path).load("vae", ["AutoencoderKL"])
    scale = torch.tensor(units["scaling_factor"]) / torch.tensor(units.get("latents_std", 1.0)).reshape(1, -1, 1, 1)
    shift = torch.tensor(units.get("latents_mean", units.get("shift_factor", 0.0))).reshape(1, -1, 1, 1)
    image = torch.rand(2, 3, 8, 12) * 2 - 1
    posterior = vae.encode(image).latent_dist
    latent, std = run(module_of(path, "vae_encoder.onnx"), image)
    torch.testing.assert_close(latent, (posterior.mean - shift) * scale)
    torch.testing.assert_close(std, posterior.std * scale)
    [back] = run(module_of(path, "vae_decoder.onnx"), latent)
    with torch.no_grad():
        torch.testing.assert_close(back, vae.decode(posterior.mean).sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("most", [11, 12])
def test_position_embeddings_are_cropped_as_diffusers_crops_them(most):
    from diffusers.models.embeddings import PatchEmbed

    embedding = PatchEmbed(height=8, width=8, patch_size=2, in_channels=4, embed_dim=16, pos_embed_max_size=most)
    ours = copy.deepcopy(embedding)
    positions.crop_positions(ours)
    for height in range(2, 2 * most + 1, 2):
        for width in (2, 8, 2 * most):
            assert torch.equal(ours.cropped_pos_embed(height, width), embedding.cropped_pos_embed(height, width))


@pytest.mark.slow
def test_a_transformer_of_single_latents_takes_every_size_up_to_its_table(tmp_path):
    """``patch_size=1``: sizes are free without a multiple, and the table of positions bounds them."""
    torch.manual_seed(0)
    config = {"sample_size": 8, "patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 1}
    config |= {"attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 16, "qk_norm": "rms_norm"}
    config |= {"caption_projection_dim": 16, "pooled_projection_dim": 16, "pos_embed_max_size": 11}
    network = diffusers.SD3Transformer2DModel(**config).eval()
    rows, text, pooled = 2, torch.randn(2, 5, 16), torch.randn(2, 16)
    x = {size: torch.randn(rows, 4, *size) for size in ((2, 3), (8, 8), (11, 11), (11, 2))}
    t = torch.tensor([10.0, 900.0])
    with torch.no_grad():
        want = {size: network(one, text, pooled, t).sample.numpy() for size, one in x.items()}
    inputs = [*sample_inputs(4, 1, max_size=11), Input("text", (5, 16)), Input("pooled", (16,))]
    path = tmp_path / "denoiser.onnx"
    module = stable_diffusion_3.SD3Module(network, [one.name for one in inputs], {}, 0.0)
    model = translate(module, inputs, ["prediction"], {"height": 8, "width": 8}, 18)
    write_onnx(model, path)
    session = onnxruntime.InferenceSession(path)
    for size, one in x.items():
        feeds = {"sample": one.numpy(), "timestep": t.numpy(), "text": text.numpy(), "pooled": pooled.numpy()}
        [got] = session.run(None, feeds)
        assert np.abs(got - want[size]).max() < TOLERANCES["float32"] * np.abs(want[size]).max()


def test_the_variance_that_a_transformer_learned_is_left_out(saved):
    path = saved("DiTPipeline")
    transformer = PipelineFolder(path).load("transformer", ["DiTTransformer2DModel"])
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0]), torch.tensor([1, 1000])
    with torch.no_grad():
        whole = transformer(x, timestep=t, class_labels=y).sample
    assert whole.shape[1] == 8
    assert torch.equal(run(module_of(path, "denoiser.onnx"), x, t, y)[0], whole[:, :4])


def test_classes_have_names(saved, tmp_path):
    names = plan_of(saved("DiTPipeline")).cond["class_labels"].names
    assert names[:2] == ("thing 0", "thing 1")
    assert len(names) == 1000
    path = tiny_pipelines.save_tiny("DiTPipeline", tmp_path / "DiTPipeline")
    index = path / "model_index.json"
    labels = {"0": "tench, fish", "1": "crane, bird", "2": "crane, machine", "3": "twin", "4": "twin"}
    index.write_text(json.dumps({**json.loads(index.read_text()), "id2label": labels}))
    names = plan_of(path).cond["class_labels"].names
    assert names[:6] == ("tench", "crane, bird", "crane, machine", "twin (3)", "twin (4)", "5")
    index.write_text(
        json.dumps({key: value for key, value in json.loads(index.read_text()).items() if key != "id2label"})
    )
    assert plan_of(path).cond["class_labels"].names == ()


@pytest.mark.parametrize("clip_skip", [0, 1])
@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_layers_of_text_encoders_that_are_left_out_are_those_of_diffusers(saved, name, clip_skip):
    path, pipe = saved(name), tiny_pipelines.tiny_pipeline(name)
    if not hasattr(pipe.text_encoder, "text_model"):  # which older transformers have, and diffusers 0.42 looks for
        pipe.text_encoder.__dict__["text_model"] = pipe.text_encoder
    with torch.no_grad():
        given = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        want = pipe.encode_prompt(TEXTS[:1], **given, clip_skip=clip_skip or None)[0]
    folder = PipelineFolder(path)
    plan = MODULES[name].plan(folder, None, (), clip_skip)
    [part] = [one for one in plan.parts if one.file == "text_encoder.onnx"]
    module = part.build(*(folder.load(one, kinds) for one, kinds in part.components.items())).eval()
    found = run(module, *token_ids(plan, TEXTS[0]))[0]
    torch.testing.assert_close(found, want, rtol=0, atol=tolerances.EMBEDDING)
    other = run(module_of(path, "text_encoder.onnx"), *token_ids(plan, TEXTS[0]))[0]
    assert torch.equal(found, other) == (clip_skip == 0)


FACTS = {
    "DDPMPipeline": ((3, 16, 16), {"steps": 1000}),
    "DDIMPipeline": ((3, 16, 16), {"steps": 50}),
    "DiTPipeline": ((4, 8, 8), {"steps": 50, "guidance_scale": 4.0}),
    "StableDiffusionPipeline": ((4, 8, 8), {"steps": 50, "guidance_scale": 7.5}),
    "StableDiffusionXLPipeline": ((4, 8, 8), {"steps": 50, "guidance_scale": 5.0}),
    "StableDiffusion3Pipeline": ((16, 8, 8), {"steps": 28, "guidance_scale": 7.0}),
    "LatentConsistencyModelPipeline": ((4, 8, 8), {"steps": 4, "guidance_scale": 8.5}),
    "FluxPipeline": ((16, 128, 128), {"steps": 28, "guidance_scale": 3.5, "spacing": "trailing"}),
    "FluxFillPipeline": ((16, 128, 128), {"steps": 50, "guidance_scale": 30.0, "spacing": "trailing"}),
}


@pytest.mark.parametrize("name", FACTS)
def test_size_and_defaults_are_those_of_the_pipelines_call(saved, name):
    import inspect

    plan = plan_of(saved(name))
    assert (plan.shape, plan.defaults) == FACTS[name]
    parameters = inspect.signature(getattr(diffusers, name).__call__).parameters
    assert plan.defaults["steps"] == parameters["num_inference_steps"].default
    assert plan.defaults.get("guidance_scale") == getattr(parameters.get("guidance_scale"), "default", None)


@pytest.mark.parametrize(("width", "scales"), [(8, [1.0, 8.5]), (9, [0.0, 4.25, 7.3])])
def test_the_embedding_of_a_scale_is_that_of_a_latent_consistency_model(width, scales):
    pipe = diffusers.LatentConsistencyModelPipeline
    network = tiny_pipelines.unet(16, time_cond_proj_dim=width)
    found = ConditionedUNet(network).timestep_cond(torch.tensor(scales))
    want = pipe.get_guidance_scale_embedding(None, torch.tensor(scales) - 1, width)
    assert found.shape == (len(scales), width)
    torch.testing.assert_close(found, want, rtol=0, atol=tolerances.SAME_MODULE)


def test_a_latent_consistency_model_must_take_the_scale(tmp_path):
    path = tmp_path / "LatentConsistencyModelPipeline"
    tiny_pipelines.save_tiny(path.name, path, unet=tiny_pipelines.unet(16))
    with pytest.raises(ExportError, match="time_cond_proj_dim must be a number, got None"):
        plan_of(path)


def test_schnell_has_no_guidance_scale_to_choose(saved):
    plan = plan_of(saved("FluxPipeline-schnell"))
    assert plan.guidance == "none"
    assert plan.defaults == {"steps": 28, "spacing": "trailing"}
    assert list(plan.cond) == ["encoder_hidden_states", "pooled_projections"]
    assert plan_of(saved("FluxPipeline")).guidance == "embedded"


@pytest.mark.parametrize("shape", [(4, 6), (64, 66)])
def test_a_transformer_on_patches_predicts_as_on_packed_latents(saved, shape):
    """The module against diffusers' own, whose pipeline packs latents and numbers the patches."""
    path = saved("FluxPipeline")
    transformer = PipelineFolder(path).load("transformer", ["FluxTransformer2DModel"])
    pipe = tiny_pipelines.tiny_pipeline("FluxPipeline")
    x, t, scale = torch.randn(2, 16, *shape), torch.tensor([30.0, 980.0]), torch.tensor([1.0, 5.0])
    text, pooled = torch.randn(2, 512, 48), torch.randn(2, 16)
    height, width = shape
    ids = pipe._prepare_latent_image_ids(2, height // 2, width // 2, "cpu", torch.float32)
    with torch.no_grad():
        want = transformer(
            pipe._pack_latents(x, 2, 16, height, width),
            text,
            pooled,
            t / 1000,
            ids,
            torch.zeros(512, 3),
            scale,
            return_dict=False,
        )[0]
        want = pipe._unpack_latents(want, 2 * height, 2 * width, 2)
    [found] = run(module_of(path, "denoiser.onnx"), x, t, text, pooled, scale)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize(
    ("component", "change", "match"),
    [
        ("transformer", {"in_channels": 128}, "in_channels must be 64, 4 times .*, or 144 of the fill model, got 128"),
        ("transformer", {"in_channels": 144}, "out_channels must be 64, got None"),
        ("transformer", {"out_channels": 32}, "out_channels must be 64, got 32"),
        (
            "transformer",
            {"joint_attention_dim": 64},
            "d_model must be 64, the transformer's joint_attention_dim, got 48",
        ),
        ("transformer", {"pooled_projection_dim": 24}, "hidden_size must be 24, the transformer's, got 16"),
        ("transformer", {"patch_size": 2}, "patch_size must be 1, got 2"),
    ],
)
def test_a_flux_of_other_parts_is_refused(saved, tmp_path, component, change, match):
    path = shutil.copytree(saved("FluxPipeline"), tmp_path / "FluxPipeline")
    file = path / component / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ExportError, match=match):
        plan_of(path)


def test_a_fill_model_takes_the_scale(saved, tmp_path):
    path = shutil.copytree(saved("FluxFillPipeline"), tmp_path / "FluxFillPipeline")
    file = path / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "guidance_embeds": False}))
    with pytest.raises(ExportError, match="guidance_embeds must be true, as the fill model takes the scale, got False"):
        plan_of(path)


@pytest.mark.parametrize(
    "name", ["DDPMPipeline", "StableDiffusionPipeline", "StableDiffusion3Pipeline", "FluxPipeline"]
)
def test_another_size_to_begin_with(saved, name):
    plan = plan_of(saved(name), (24, 16))
    cell = plan.pipeline.pixels_per_latent
    assert plan.shape[1:] == (16 // cell, 24 // cell)
    multiple = plan.pipeline.size_multiple
    with pytest.raises(ExportError, match=f"width must be a multiple of {multiple} pixels .* got 25"):
        plan_of(saved(name), (25, 16))


def test_a_transformer_with_one_size_refuses_others(saved):
    assert plan_of(saved("DiTPipeline"), (16, 16)).shape == (4, 8, 8)
    with pytest.raises(ExportError, match="size must be 16 x 16, all that this model draws, got 24 x 16"):
        plan_of(saved("DiTPipeline"), (24, 16))


def test_conditioning_of_xl_beside_the_prompt(saved, tmp_path):
    plan = plan_of(saved("StableDiffusionXLPipeline"))
    assert plan.pipeline.size_input == "time_ids"
    assert plan.pipeline.zeros_without_negative
    path = tiny_pipelines.save_tiny(
        "StableDiffusionXLPipeline", tmp_path / "StableDiffusionXLPipeline", force_zeros_for_empty_prompt=False
    )
    assert not plan_of(path).pipeline.zeros_without_negative


def test_what_overflows_in_float16_stays_float32(saved, tmp_path):
    """XL's VAE says so with ``force_upcast``, which its pipeline heeds and the others do not; and T5."""
    parts = {name: plan_of(saved(name)).parts for name in FACTS if name.startswith(("Stable", "Flux"))}
    kept = {name: [part.file for part in found if part.float32] for name, found in parts.items()}
    assert kept == {
        "StableDiffusionPipeline": [],
        "StableDiffusionXLPipeline": ["vae_decoder.onnx", "vae_encoder.onnx"],
        "StableDiffusion3Pipeline": ["text_encoder.onnx"],
        "FluxPipeline": ["text_encoder.onnx"],
        "FluxFillPipeline": ["text_encoder.onnx"],
    }
    assert not any(
        part.float32 for part in plan_of(saved("StableDiffusion3Pipeline", **TEXT_CASES["without T5"])).parts
    )
    vae = tiny_pipelines.vae(scaling_factor=0.13025, force_upcast=False)
    path = tiny_pipelines.save_tiny("StableDiffusionXLPipeline", tmp_path / "StableDiffusionXLPipeline", vae=vae)
    assert not any(part.float32 for part in plan_of(path).parts)
