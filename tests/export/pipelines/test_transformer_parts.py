"""What the parts of transformer pipelines compute, in torch, against diffusers' own, and what their plans refuse."""

import inspect
import json
import shutil

import numpy as np
import pytest
import tiny_pipelines
import tolerances

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

from stepfuse.export import ExportError, from_diffusers  # noqa: E402
from stepfuse.export.pipelines import pixart, qwen_image, sana, z_image  # noqa: E402
from stepfuse.export.pipelines.pipeline_folder import PipelineFolder  # noqa: E402
from stepfuse.pipeline.prompts import Tokens  # noqa: E402

MODULES = {
    "PixArtAlphaPipeline": pixart,
    "PixArtSigmaPipeline": pixart,
    "SanaPipeline": sana,
    "ZImagePipeline": z_image,
    "QwenImagePipeline": qwen_image,
}
NAMES = tuple(MODULES)
TEXTS = ["a red cat in the rain", "", "  Blue DOG 🐕 — l'été ", "<pad> {} the <|endoftext|> cat", "overlong " * 200]
ROWS, TIMES = 2, [30.0, 871.0]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """``saved(name)``: the folder of a tiny pipeline."""
    made = {}

    def save(name):
        if name not in made:
            made[name] = tiny_pipelines.save_tiny(name, tmp_path_factory.mktemp("saved") / name)
        return made[name]

    return save


@pytest.fixture(scope="module")
def theirs():
    """diffusers' pipeline of a name."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = tiny_pipelines.tiny_pipeline(name)
        return made[name]

    return get


def plan_of(path, size=None):
    return MODULES[path.name].plan(PipelineFolder(path), size)


def module_of(path, file):
    """A part's module, its weights loaded."""
    folder = PipelineFolder(path)
    [part] = [one for one in plan_of(path).parts if one.file == file]
    return part.build(*(folder.load(name, kinds) for name, kinds in part.components.items())).eval()


def run(module, *inputs):
    with torch.no_grad():
        return module(*inputs)


def tokens_of(plan, inputs, text):
    """The text encoder's inputs, by the tokenizer that a bundle gets."""
    from tokenizers import Tokenizer

    [one] = inputs
    tokenizer = Tokenizer.from_str(plan.tokenizers[one.tokenizer])
    tokenizer.enable_truncation(one.length)
    feeds = Tokens((one,), (tuple(tokenizer.encode(one.text(text)).ids),)).feeds
    return [torch.from_numpy(feeds[name]) for name in (one.input, one.mask)]


def encoded(pipe, text, *, negative=False):
    """diffusers' own: the states of the tokens that are read."""
    with torch.no_grad():
        if isinstance(pipe, diffusers.ZImagePipeline):
            return pipe.encode_prompt(text, "cpu", False)[0][0]
        if isinstance(pipe, diffusers.QwenImagePipeline):
            states, mask = pipe.encode_prompt(text, "cpu", max_sequence_length=512)
            return states[0] if mask is None else states[0][mask[0].bool()]
        options = {}
        if isinstance(pipe, diffusers.SanaPipeline):
            options["complex_human_instruction"] = parameter(pipe, "complex_human_instruction")
        found = pipe.encode_prompt(text, negative, negative_prompt=text, device="cpu", clean_caption=False, **options)
    states, mask = found[2:] if negative else found[:2]
    return states[0][mask[0].bool()]


def parameter(pipe, name):
    return inspect.signature(type(pipe).__call__).parameters[name].default


@pytest.mark.parametrize("name", [name for name in NAMES if name != "PixArtAlphaPipeline"])
def test_prompts_become_what_the_pipeline_makes_of_them(saved, theirs, name):
    plan, module = plan_of(saved(name)), module_of(saved(name), "text_encoder.onnx")
    pipeline = plan.pipeline
    for negative, inputs in {False: pipeline.prompts, True: pipeline.negative_prompts or pipeline.prompts}.items():
        for text in TEXTS:
            states, mask = run(module, *tokens_of(plan, inputs, text))
            assert states.shape[1:] == plan.cond["encoder_hidden_states"].shape
            assert mask.shape[1:] == plan.cond["encoder_attention_mask"].shape
            want = encoded(theirs(name), text, negative=negative)
            np.testing.assert_allclose(states[0][mask[0] > 0], want, rtol=0, atol=tolerances.EMBEDDING)


def prediction(pipe, x, t, states, count):
    """The prediction of the network as the pipeline's call has it, for captions of ``count`` tokens each."""
    network, mask = pipe.transformer, (torch.arange(states.shape[1])[None] < torch.tensor(count)[:, None]).float()
    given = {"timestep": t, "return_dict": False}
    if isinstance(pipe, diffusers.ZImagePipeline):
        captions = [one[:n] for one, n in zip(states, count, strict=True)]
        found = network(list(x.unsqueeze(2).unbind()), (1000 - t) / 1000, captions, return_dict=False)[0]
        return -torch.stack(found).squeeze(2)
    given |= {"encoder_hidden_states": states}
    if isinstance(pipe, diffusers.QwenImagePipeline):
        rows, channels, height, width = x.shape
        packed = pipe._pack_latents(x, rows, channels, height, width)
        given |= {"timestep": t / 1000, "img_shapes": [[(1, height // 2, width // 2)]] * rows}
        found = network(packed, encoder_hidden_states_mask=mask, **given)[0]
        return pipe._unpack_latents(found, height * 2, width * 2, 2).squeeze(2)
    given |= {"encoder_attention_mask": mask}
    if isinstance(pipe, diffusers.PixArtAlphaPipeline):
        size = torch.tensor([x.shape[2] * 2.0, x.shape[3] * 2.0])
        given["added_cond_kwargs"] = {
            "resolution": size.repeat(len(x), 1),
            "aspect_ratio": (size[:1] / size[1:]).repeat(len(x), 1),
        }
    elif isinstance(pipe, diffusers.PixArtSigmaPipeline):
        given["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
    return network(x, **given)[0][:, : x.shape[1]]


@pytest.mark.parametrize("size", [(8, 8), (4, 6), (10, 6)], ids=["own", "small", "odd"])
@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_those_of_diffusers(saved, theirs, name, size):
    plan, module = plan_of(saved(name)), module_of(saved(name), "denoiser.onnx")
    torch.manual_seed(0)
    x, t = torch.randn(ROWS, plan.shape[0], *size), torch.tensor(TIMES)
    states, count = torch.randn(ROWS, *plan.cond["encoder_hidden_states"].shape), [5, 40]
    mask = (torch.arange(states.shape[1])[None] < torch.tensor(count)[:, None]).float()
    with torch.no_grad():
        want = prediction(theirs(name), x, t, states, count)
    found = run(module, x, t, states, mask)
    assert want.abs().max() > 0.1
    np.testing.assert_allclose(found, want, rtol=0, atol=tolerances.EMBEDDING * float(want.abs().max()))


@pytest.mark.parametrize("name", ["SanaPipeline", "QwenImagePipeline"])
def test_autoencoders_of_other_kinds(saved, theirs, name):
    vae, path = theirs(name).vae, saved(name)
    torch.manual_seed(0)
    image = torch.rand(1, 3, 8, 12) * 2 - 1
    latent, std = run(module_of(path, "vae_encoder.onnx"), image)
    [decoded] = run(module_of(path, "vae_decoder.onnx"), latent)
    with torch.no_grad():
        if name == "SanaPipeline":
            want = vae.encode(image).latent
            scaled, spread, back = want * vae.config.scaling_factor, torch.zeros_like(want), vae.decode(want).sample
        else:
            posterior = vae.encode(image.unsqueeze(2)).latent_dist
            mean, scale = (
                torch.tensor(vae.config[key]).reshape(1, -1, 1, 1) for key in ("latents_mean", "latents_std")
            )
            scaled, spread = (posterior.mean.squeeze(2) - mean) / scale, posterior.std.squeeze(2) / scale
            back = vae.decode(posterior.mean).sample.squeeze(2)
    torch.testing.assert_close(latent, scaled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(std, spread, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(decoded, back[0], rtol=1e-4, atol=1e-5)


LENGTHS = {
    "PixArtAlphaPipeline": pixart.LENGTHS["PixArtAlphaPipeline"],
    "PixArtSigmaPipeline": pixart.LENGTHS["PixArtSigmaPipeline"],
    "SanaPipeline": sana.LENGTH,
    "ZImagePipeline": z_image.LENGTH,
    "QwenImagePipeline": qwen_image.LENGTH,
}
GUIDANCE = {
    "ZImagePipeline": lambda pipe: parameter(pipe, "guidance_scale") + 1,  # of the conditional prediction
    "QwenImagePipeline": lambda pipe: 1.0,  # without a negative prompt
}


@pytest.mark.parametrize("name", NAMES)
def test_lengths_and_defaults_are_those_of_the_pipelines_call(saved, theirs, name):
    plan, pipe = plan_of(saved(name)), theirs(name)
    guidance = GUIDANCE.get(name, lambda pipe: parameter(pipe, "guidance_scale"))(pipe)
    assert plan.defaults["steps"] == parameter(pipe, "num_inference_steps")
    assert plan.defaults["guidance_scale"] == guidance
    assert LENGTHS[name] == parameter(pipe, "max_sequence_length") == plan.cond["encoder_attention_mask"].shape[0]
    assert [part.file for part in plan.parts if part.float32] == ["text_encoder.onnx"]


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


SPOILED = {
    "the size as a condition": (
        "PixArtSigmaPipeline",
        {"transformer/config.json": {"use_additional_conditions": True}},
        "use_additional_conditions must be false in a PixArtSigmaPipeline of this sample_size, got True",
    ),
    "another width": (
        "PixArtSigmaPipeline",
        {"transformer/config.json": {"caption_channels": 24}},
        "caption_channels must be 16, the text encoder's d_model, got 24",
    ),
    "Sprint": (
        "SanaPipeline",
        {"transformer/config.json": {"guidance_embeds": True}},
        "guidance_embeds must be false, as Sana Sprint's networks have it true, got True",
    ),
    "a window": (
        "SanaPipeline",
        {"text_encoder/config.json": {"sliding_window": 64}},
        r"sliding_window must be at least \d+, got 64",
    ),
    "another VAE": (
        "SanaPipeline",
        {"model_index.json": {"vae": ["diffusers", "AutoencoderKL"]}},
        "vae must be AutoencoderDC, got AutoencoderKL",
    ),
    "stochastic flow": (
        "SanaPipeline",
        {"scheduler/scheduler_config.json": {"algorithm_type": "sde-dpmsolver++"}},
        "algorithm_type must be 'dpmsolver\\+\\+' with use_flow_sigmas, got 'sde-dpmsolver\\+\\+'",
    ),
    "a template that changes a prompt": (
        "ZImagePipeline",
        {"tokenizer/chat_template.jinja": "<|im_start|>{{ messages[0].content | trim }}<|im_end|>"},
        r"tokenizer: chat_template must write a prompt as it is, of ' ' it makes",
    ),
    "few positions": (
        "ZImagePipeline",
        {"transformer/config.json": {"axes_lens": [256, 32, 32]}},
        r"axes_lens must be three, the first at least 514, got \[256, 32, 32\]",
    ),
    "embedded guidance": (
        "QwenImagePipeline",
        {"transformer/config.json": {"guidance_embeds": True}},
        "guidance_embeds must be false, got True",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_what_is_not_covered_is_named_and_nothing_is_left(saved, tmp_path, case):
    name, changes, match = SPOILED[case]
    folder = shutil.copytree(saved(name), tmp_path / name)
    for file, content in changes.items():
        if isinstance(content, str):
            (folder / file).write_text(content)
        else:
            edit(folder / file, **content)
    with pytest.raises(ExportError, match=match):
        from_diffusers(folder, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_the_name_that_published_folders_have_for_the_transformer(saved, tmp_path):
    folder = shutil.copytree(saved("PixArtSigmaPipeline"), tmp_path / "PixArtSigmaPipeline")
    edit(folder / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    edit(folder / "transformer" / "config.json", _class_name="Transformer2DModel")
    [denoiser] = [part for part in plan_of(folder).parts if part.file == "denoiser.onnx"]
    loaded = PipelineFolder(folder).load("transformer", denoiser.components["transformer"])
    assert type(loaded) is diffusers.PixArtTransformer2DModel


@pytest.mark.slow
def test_a_picture_whose_size_is_a_condition(saved, theirs, tmp_path):
    import stepfuse as sf

    bundle = from_diffusers(saved("PixArtAlphaPipeline"), tmp_path / "alpha", size=(24, 16))
    latents = np.stack([sf.normal(3 + i, (4, 8, 12)) for i in range(2)])
    call = {"negative_prompt": ["", "a dog"], "guidance_scale": 4.0}
    with torch.no_grad():
        want = theirs("PixArtAlphaPipeline")(
            tiny_pipelines.PROMPTS,
            latents=torch.from_numpy(latents),
            num_inference_steps=4,
            output_type="np",
            **{**call, "width": 24, "height": 16, "clean_caption": False, "use_resolution_binning": False},
        ).images
    with sf.TextToImage.load(bundle, threads=1) as pipe:
        got = pipe(tiny_pipelines.PROMPTS, latents=latents, steps=4, **call).pixels
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerances.PICTURE)
