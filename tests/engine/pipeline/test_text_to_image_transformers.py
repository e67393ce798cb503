"""Pictures of exported transformer pipelines, whose prompts are masked or templated, against diffusers' own calls."""

import math

import numpy as np
import pytest
import tiny_pipelines
import tiny_transformers
import tolerances

import stepfuse as sf
from stepfuse.pipeline.prompts import PromptCutWarning

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

PROMPTS, NEGATIVES = tiny_pipelines.PROMPTS, ["the dog", ""]
STEPS, SEED = 4, 3
AS_IT_IS = {"use_resolution_binning": False, "clean_caption": False}
#: What diffusers' call is given beside the prompt, to draw the size that is asked for from the prompt as it is.
ARGUMENTS = {"PixArtSigmaPipeline": AS_IT_IS, "SanaPipeline": AS_IT_IS, "ZImagePipeline": {}, "QwenImagePipeline": {}}


@pytest.fixture(scope="module")
def theirs():
    """diffusers' pipeline of a name."""
    torch.set_num_threads(1)
    made = {}

    def get(name):
        if name not in made:
            made[name] = tiny_pipelines.tiny_pipeline(name)
        return made[name]

    return get


@pytest.fixture(scope="module")
def ours(exported):
    """The same, exported."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = sf.TextToImage.load(exported(name), threads=1)
        return made[name]

    yield get
    for pipe in made.values():
        pipe.close()


def noise(n, shape):
    return np.stack([sf.normal(SEED + i, shape) for i in range(n)])


def wanted(name, pipe, prompts, latents, **arguments):
    """diffusers' pictures, with its own way to say how much it guides."""
    given = {"width": latents.shape[-1] * 2, "height": latents.shape[-2] * 2, **ARGUMENTS[name], **arguments}
    latents = torch.from_numpy(latents)
    scale = given.pop("guidance_scale", None)
    if "negative_prompt" in given:
        given["negative_prompt"] = list(given["negative_prompt"])  # Z-Image's call writes its template into the list
    if name == "QwenImagePipeline":
        latents = pipe._pack_latents(latents, *latents.shape)
        given["true_cfg_scale"] = scale or 1.0
    elif scale is not None:
        given["guidance_scale"] = scale - 1 if name == "ZImagePipeline" else scale
    with torch.no_grad():
        return pipe(list(prompts), latents=latents, num_inference_steps=STEPS, output_type="np", **given).images


def assert_same(got, want):
    assert got.shape == want.shape
    assert want.std() > 0.02  # a picture, and not clipped to one colour
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerances.PICTURE)


GUIDED, SIDES = {"guidance_scale": 4.0}, ("width", "height")
# One prompt; a batch with negative prompts; another size; no guidance.
CALLS = {
    "one": (PROMPTS[:1], {}),
    "batch": (PROMPTS, {"negative_prompt": NEGATIVES, "guidance_scale": 4.0}),
    "size": (PROMPTS[:1], {"negative_prompt": NEGATIVES[:1], "width": 24, "height": 16}),
    "unguided": (["A Red CAT  "], {"guidance_scale": 1.0}),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", tiny_transformers.NAMES)
def test_pictures_are_those_of_diffusers(ours, theirs, name, call):
    prompts, arguments = CALLS[call]
    if name == "SanaPipeline":  # its call takes multiples of 32 pixels, whatever its networks do
        sides = {key: 32 * math.ceil(arguments.get(key, 16) / 16) for key in SIDES}
        arguments = {**arguments, **sides}
    pipe = ours(name)
    channels = pipe.bundle.info.shape[0]
    latents = noise(len(prompts), (channels, arguments.get("height", 16) // 2, arguments.get("width", 16) // 2))
    want = wanted(name, theirs(name), prompts, latents, **arguments)
    assert_same(pipe(prompts, latents=latents, steps=STEPS, **arguments).pixels, want)


@pytest.mark.parametrize("name", tiny_transformers.NAMES)
def test_guidance_and_the_negative_prompt_have_an_effect(ours, name):
    latents = noise(1, ours(name).bundle.info.shape)
    pictures = [
        ours(name)(PROMPTS[0], latents=latents, steps=STEPS, **arguments).pixels
        for arguments in (GUIDED, {"guidance_scale": 1.0}, {**GUIDED, "negative_prompt": "the dog"})
    ]
    for one, other in ((0, 1), (0, 2)):
        assert np.abs(pictures[one] - pictures[other]).max() > 100 * tolerances.PICTURE


@pytest.mark.parametrize("name", tiny_transformers.NAMES)
def test_a_prompt_beyond_the_context_is_cut_where_diffusers_cuts_it(ours, theirs, name):
    prompt = "the red cat in the rain " * 60
    side = 16 if name == "SanaPipeline" else 8
    latents = noise(1, (ours(name).bundle.info.shape[0], side, side))
    want = wanted(name, theirs(name), [prompt], latents)
    with pytest.warns(PromptCutWarning, match="is not read"):
        got = ours(name)(prompt, latents=latents, steps=STEPS)
    assert_same(got.pixels, want)
