"""Pictures of denoisers that take more than a prompt, against diffusers' own calls on the same noise.

Inpainting models, ControlNets, the refiner of Stable Diffusion XL, sizes that the UNet's levels do not divide, and
embeddings longer than one context.
"""

import dataclasses
import sys

import numpy as np
import pytest
import tiny_pipelines
import tolerances
from PIL import Image

import stepfuse as sf
from stepfuse.samplers.noise import POSTERIOR

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

PROMPTS, NEGATIVES = tiny_pipelines.PROMPTS, ["the dog", ""]
STEPS, SEED = 5, 3


def slow(name):
    """One more pipeline to export, for a case that differs little from a fast one."""
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def theirs():
    """diffusers' pipeline of a name."""
    torch.set_num_threads(1)
    made = {}

    def get(name):
        if name not in made:
            made[name] = unchecked(tiny_pipelines.tiny_pipeline(name))
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


def unchecked(pipe):
    """Without the check that sides are multiples of 8 pixels: cells of the tiny VAE have 2."""
    pipe.check_inputs = lambda *_, **__: None
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(n, shape, **options):
    return np.stack([sf.normal(SEED + i, shape, **options) for i in range(n)])


def pictures(n, height=16, width=16, seed=0):
    return np.random.default_rng(seed).uniform(0, 1, (n, height, width, 3)).astype(np.float32)


def run(pipe, *args, **arguments):
    """diffusers' pictures."""
    if "latents" in arguments:
        arguments["latents"] = torch.from_numpy(arguments["latents"])
    with torch.no_grad():
        return pipe(*args, num_inference_steps=STEPS, output_type="np", **arguments).images


def assert_same(got, want):
    assert got.shape == want.shape
    assert want.std() > 0.02  # a picture, and not clipped to one colour
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerances.PICTURE)


def assert_other(got, want):
    assert np.abs(got - want).max() > 100 * tolerances.PICTURE


@pytest.fixture
def our_noise(monkeypatch):
    """``our_noise(pipe, sampled=False)``: diffusers' noise is ours, the posterior's too if it is sampled."""

    def patch(pipe, *, sampled=False):
        def start(shape, **_):
            return torch.from_numpy(noise(shape[0], tuple(shape[1:])))

        def posterior(shape, **_):
            return torch.from_numpy(noise(shape[0], tuple(shape[1:]), stream=POSTERIOR)) * sampled

        monkeypatch.setattr(sys.modules[type(pipe).__module__], "randn_tensor", start)
        monkeypatch.setattr(sys.modules["diffusers.models.autoencoders.vae"], "randn_tensor", posterior)

    return patch


# Latents of 13 x 7 and 5 x 9 cells, which two levels do not divide.
@pytest.mark.parametrize(("width", "height"), [(26, 14), (10, 18)])
@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_sizes_that_the_levels_do_not_divide(ours, theirs, name, width, height):
    latents = noise(2, (4, height // 2, width // 2))
    arguments = {"latents": latents, "width": width, "height": height, "guidance_scale": 4.0}
    want = run(theirs(name), PROMPTS, **arguments)
    assert want.shape == (2, height, width, 3)
    assert_same(ours(name)(PROMPTS, steps=STEPS, **arguments).pixels, want)


INPAINTING = ["StableDiffusionInpaintPipeline", slow("StableDiffusionXLInpaintPipeline")]


def masks(n, height=16, width=16):
    """Values on both sides of a half, which is where they are rounded."""
    mask = np.zeros((n, height, width), dtype=np.float32)
    mask[:, :, width // 2 :] = 1
    mask[:, height // 2 :, : width // 4] = 0.6
    mask[-1, :2] = 0.4
    return mask


@pytest.mark.parametrize(
    ("strength", "sampled", "guidance_scale"),
    [(1.0, False, 4.0), (1.0, True, 1.0), (0.6, False, 4.0), (0.6, True, 4.0)],
)
@pytest.mark.parametrize("name", INPAINTING)
def test_inpainting_models(ours, theirs, our_noise, name, strength, sampled, guidance_scale):
    image, mask = pictures(2), masks(2)
    our_noise(theirs(name), sampled=sampled)
    arguments = {"image": image, "strength": strength, "guidance_scale": guidance_scale}
    want = run(theirs(name), PROMPTS, mask_image=torch.from_numpy(mask)[:, None], **arguments)
    got = ours(name)(PROMPTS, mask=mask, steps=STEPS, seed=SEED, sample_posterior=sampled, **arguments)
    assert_same(got.pixels, want)
    [one] = ours(name)(
        PROMPTS[1],
        image=image[1],
        mask=mask[1],
        steps=STEPS,
        seed=SEED + 1,
        strength=strength,
        guidance_scale=guidance_scale,
        sample_posterior=sampled,
    ).pixels
    np.testing.assert_allclose(one, got.pixels[1], rtol=0, atol=tolerances.PICTURE)


def test_an_inpainting_model_of_another_size(ours, theirs, our_noise):
    name = INPAINTING[0]
    image, mask = pictures(1, 14, 26), masks(1, 14, 26)
    our_noise(theirs(name))
    arguments = {"image": image, "strength": 1.0, "guidance_scale": 3.0}
    want = run(theirs(name), PROMPTS[:1], mask_image=torch.from_numpy(mask)[:, None], width=26, height=14, **arguments)
    assert_same(ours(name)(PROMPTS[:1], mask=mask, steps=STEPS, seed=SEED, **arguments).pixels, want)
    future = ours(name).submit(
        sf.PromptRequest(PROMPTS[0], image=image[0], mask=mask[0], steps=STEPS, seed=SEED, guidance_scale=3.0)
    )
    assert_same(future.result(timeout=60).pixels, want)


@pytest.mark.parametrize("levels", [[0, 255], [0, 60, 127, 128, 200, 255]])
def test_pictures_and_masks_of_other_sizes_are_scaled(ours, theirs, our_noise, levels):
    name, values = INPAINTING[0], np.random.default_rng(1)
    image = Image.fromarray(values.integers(0, 256, (37, 29, 3), dtype=np.uint8))
    mask = Image.fromarray(values.choice(np.uint8(levels), (21, 45)))
    our_noise(theirs(name))
    size = {"width": 16, "height": 16}
    want = run(theirs(name), PROMPTS[:1], image=image, mask_image=mask, strength=1.0, guidance_scale=3.0, **size)
    got = ours(name)(PROMPTS[:1], image=image, mask=mask, steps=STEPS, seed=SEED, guidance_scale=3.0, **size)
    assert_same(got.pixels, want)


@pytest.mark.parametrize(("strength", "sampled", "width", "height"), [(1.0, True, 20, 12), (0.6, False, 16, 16)])
def test_the_fill_model_of_flux(ours, theirs, our_noise, strength, sampled, width, height):
    name = "FluxFillPipeline"
    image, mask = pictures(2, height, width), masks(2, height, width)
    our_noise(theirs(name), sampled=sampled)
    arguments = {"image": image, "strength": strength, "guidance_scale": 7.0}
    size = {"width": width, "height": height}
    want = run(theirs(name), PROMPTS, mask_image=torch.from_numpy(mask)[:, None], **size, **arguments)
    call = {"steps": STEPS, "seed": SEED, "sample_posterior": sampled, **arguments}
    assert_same(ours(name)(PROMPTS, mask=mask, **call).pixels, want)
    assert_other(ours(name)(PROMPTS, mask=1 - mask, **call).pixels, want)


def test_an_inpainting_model_needs_image_and_mask(ours):
    pipe = ours(INPAINTING[0])
    with pytest.raises(ValueError, match=r"image and mask must be given for this model, .* got no image"):
        pipe("a cat")
    with pytest.raises(ValueError, match="got no mask: a mask of ones repaints all of it"):
        pipe("a cat", image=pictures(1))
    with pytest.raises(ValueError, match="strength must be above 0 and at most 1, got 2"):
        pipe("a cat", image=pictures(1), mask=masks(1), strength=2)
    with pytest.raises(ValueError, match=r"denoising_end must be left out for this model, which repaints .* got 0.8"):
        pipe("a cat", image=pictures(1), mask=masks(1), denoising_end=0.8)


def test_the_service_warms_an_inpainting_model_up(ours):
    from stepfuse.server import PromptModel

    pipe = ours(INPAINTING[0])
    before = pipe.totals()["samples"]
    PromptModel("mine", pipe).warm_up()
    assert pipe.totals()["samples"] == before + 1


CONTROLNETS = ["StableDiffusionControlNetPipeline", slow("StableDiffusionXLControlNetPipeline")]


@pytest.mark.parametrize("name", CONTROLNETS)
@pytest.mark.parametrize(
    ("scale", "begin", "end"), [(None, 0.0, 1.0), (0.5, 0.0, 0.6), (1.5, 0.4, 1.0), (-1.0, 0.2, 0.8)]
)
def test_a_controlnet(ours, theirs, name, scale, begin, end):
    latents, image = noise(2, (4, 8, 8)), pictures(2)
    arguments = {"latents": latents, "guidance_scale": 3.0, "negative_prompt": NEGATIVES}
    want = run(
        theirs(name),
        PROMPTS,
        image=torch.from_numpy(image.transpose(0, 3, 1, 2)),
        controlnet_conditioning_scale=1.0 if scale is None else scale,
        control_guidance_start=begin,
        control_guidance_end=end,
        **arguments,
    )
    whole = (begin, end) == (0.0, 1.0)
    got = ours(name)(
        PROMPTS,
        control={"controlnet": image},
        control_scale=scale,
        control_range=None if whole else {"controlnet": (begin, end)},
        steps=STEPS,
        **arguments,
    )
    assert_same(got.pixels, want)
    assert_other(ours(name)(PROMPTS, steps=STEPS, **arguments).pixels, want)


CONTROLNETS_3 = ["StableDiffusion3ControlNetPipeline", slow("StableDiffusion3ControlNetPipeline-textless")]


@pytest.mark.parametrize("name", CONTROLNETS_3)
@pytest.mark.parametrize(
    ("scale", "begin", "end", "sampled"), [(None, 0.0, 1.0, False), (0.5, 0.0, 0.6, True), (-1.0, 0.2, 0.8, False)]
)
def test_a_controlnet_of_a_transformer(ours, theirs, our_noise, name, scale, begin, end, sampled):
    latents, image = noise(2, (16, 6, 8)), pictures(2, 12, 16)
    arguments = {"latents": latents, "guidance_scale": 3.0, "negative_prompt": NEGATIVES}
    if sampled:  # guided, diffusers samples a posterior for each pass
        arguments = {"latents": latents, "guidance_scale": 1.0}
    our_noise(theirs(name), sampled=sampled)
    want = run(
        theirs(name),
        PROMPTS,
        height=12,
        width=16,
        control_image=image,
        controlnet_conditioning_scale=1.0 if scale is None else scale,
        control_guidance_start=begin,
        control_guidance_end=end,
        **arguments,
    )
    pictures_of = ours(name)(
        PROMPTS,
        control={"controlnet": image},
        control_scale=scale,
        control_range=(begin, end),
        sample_posterior=sampled,
        steps=STEPS,
        seed=SEED,
        **arguments,
    )
    assert_same(pictures_of.pixels, want)
    assert_other(ours(name)(PROMPTS, steps=STEPS, width=16, height=12, **arguments).pixels, want)
    made = pictures_of.provenance[0]
    assert (made.sample_posterior, made.control["controlnet"]["range"]) == (sampled, [begin, end])


def test_two_controlnets_of_a_transformer(our_noise, tmp_path):
    name = "StableDiffusion3Pipeline"
    nets = {"edges": tiny_pipelines.sd3_controlnet(1), "depth": tiny_pipelines.sd3_controlnet(2)}
    own = diffusers.StableDiffusion3ControlNetPipeline(
        **tiny_pipelines.tiny_pipeline(name).components, controlnet=list(nets.values())
    )
    our_noise(unchecked(own))
    arguments = {"latents": noise(1, (16, 6, 8)), "guidance_scale": 3.0}
    edges, depth = pictures(1, 12, 16, 5), pictures(1, 12, 16, 6)
    want = run(
        own,
        PROMPTS[:1],
        height=12,
        width=16,
        control_image=[edges, depth],
        controlnet_conditioning_scale=[0.7, 1.2],
        control_guidance_start=[0.0, 0.4],
        control_guidance_end=[0.6, 1.0],
        **arguments,
    )
    arguments |= {
        "control": {"depth": depth, "edges": edges},
        "control_range": {"edges": (0, 0.6), "depth": (0.4, 1)},
        "steps": STEPS,
    }
    with sf.TextToImage.load(exported_with(nets, name, tmp_path), threads=1) as pipe:
        got = pipe(PROMPTS[:1], control_scale={"edges": 0.7, "depth": 1.2}, **arguments)
        assert_same(got.pixels, want)
        assert_other(pipe(PROMPTS[:1], control_scale={"edges": 1.2, "depth": 0.7}, **arguments).pixels, want)


def test_a_transformer_s_controlnet_without_a_picture_does_not_act(ours, theirs):
    name = CONTROLNETS_3[0]
    parts = {part: one for part, one in theirs(name).components.items() if part != "controlnet"}
    plain = unchecked(diffusers.StableDiffusion3Pipeline(**parts))
    arguments = {"latents": noise(1, (16, 8, 8)), "guidance_scale": 3.0}
    assert_same(
        ours(name)(PROMPTS[:1], steps=STEPS, **arguments).pixels,
        run(plain, PROMPTS[:1], height=16, width=16, **arguments),
    )


def test_a_controlnet_without_a_picture_does_not_act(ours, exported, theirs):
    pipe = theirs("StableDiffusionPipeline")
    latents = noise(1, (4, 8, 8))
    want = run(pipe, PROMPTS[:1], latents=latents)
    assert_same(ours(CONTROLNETS[0])(PROMPTS[:1], latents=latents, steps=STEPS).pixels, want)


def exported_with(nets, name, folder):
    """The bundle of a tiny pipeline with ControlNets beside it, by name."""
    from stepfuse.export import from_diffusers

    for own, net in nets.items():
        net.save_pretrained(folder / own)
    source = tiny_pipelines.save_tiny(name, folder / "pipe")
    return from_diffusers(source, folder / "bundle", controlnets={own: folder / own for own in nets})


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Stable Diffusion with two ControlNets: ours, and diffusers'."""
    name = "StableDiffusionPipeline"
    nets = {"edges": tiny_pipelines.controlnet(16, 1), "depth": tiny_pipelines.controlnet(16, 2)}
    bundle = exported_with(nets, name, tmp_path_factory.mktemp("two"))
    parts = tiny_pipelines.tiny_pipeline(name).components
    own = diffusers.StableDiffusionControlNetPipeline(
        **parts, controlnet=list(nets.values()), requires_safety_checker=False
    )
    unchecked(own)
    with sf.TextToImage.load(bundle, threads=1) as pipe:
        yield pipe, own


@pytest.mark.parametrize(("width", "height"), [(16, 16), (26, 14)])
def test_two_controlnets(two, width, height):
    pipe, own = two
    latents = noise(1, (4, height // 2, width // 2))
    edges, depth = pictures(1, height, width, 5), pictures(1, height, width, 6)
    given = [torch.from_numpy(one.transpose(0, 3, 1, 2)) for one in (edges, depth)]
    arguments = {"latents": latents, "guidance_scale": 3.0}
    want = run(
        own,
        PROMPTS[:1],
        image=given,
        controlnet_conditioning_scale=[0.7, 1.2],
        control_guidance_start=[0.0, 0.4],
        control_guidance_end=[0.6, 1.0],
        **arguments,
    )
    control = {"depth": depth, "edges": edges}
    settings = {
        "control": control,
        "control_scale": {"edges": 0.7, "depth": 1.2},
        "control_range": {"edges": (0, 0.6), "depth": (0.4, 1)},
    }
    assert_same(pipe(PROMPTS[:1], steps=STEPS, **settings, **arguments).pixels, want)
    one = {name: given[0] for name, given in control.items()}
    request = sf.PromptRequest(
        PROMPTS[0], steps=STEPS, guidance_scale=3.0, latents=latents[0], **{**settings, "control": one}
    )
    picture = pipe.submit(request).result(timeout=60)
    assert_same(picture.pixels, want)
    recorded = picture.provenance[0].control
    assert recorded["edges"]["scale"] == 0.7
    assert recorded["depth"]["range"] == [0.4, 1.0]
    assert sf.Provenance.from_json(picture.provenance[0].to_json()) == picture.provenance[0]


def test_a_controlnet_from_an_image_on(two):
    pipe, own = two
    image, edges = pictures(1), pictures(1, seed=5)
    parts = {name: part for name, part in own.components.items() if name != "controlnet"}
    theirs = diffusers.StableDiffusionControlNetImg2ImgPipeline(
        **parts, controlnet=own.controlnet.nets[0], requires_safety_checker=False
    )
    unchecked(theirs)
    module = sys.modules[type(theirs).__module__]
    vae = sys.modules["diffusers.models.autoencoders.vae"]
    kept = module.randn_tensor, vae.randn_tensor
    try:
        module.randn_tensor = lambda shape, **_: torch.from_numpy(noise(shape[0], tuple(shape[1:])))
        vae.randn_tensor = lambda shape, **_: torch.zeros(shape)
        want = run(
            theirs,
            PROMPTS[:1],
            image=torch.from_numpy(image.transpose(0, 3, 1, 2)),
            control_image=torch.from_numpy(edges.transpose(0, 3, 1, 2)),
            strength=0.8,
            guidance_scale=3.0,
            control_guidance_end=0.5,
            controlnet_conditioning_scale=1.0,
        )
    finally:
        module.randn_tensor, vae.randn_tensor = kept
    got = pipe(
        PROMPTS[:1],
        image=image,
        strength=0.8,
        steps=STEPS,
        seed=SEED,
        guidance_scale=3.0,
        control={"edges": edges},
        control_range=(0, 0.5),
    )
    assert_same(got.pixels, want)


REFUSED = {
    "no dict": ({"control": pictures(1)}, TypeError, "control must be a dict of pictures by the ControlNet's name"),
    "name": ({"control": {"pose": 1}}, ValueError, "control must have names among edges, depth, got pose"),
    "scale alone": ({"control_scale": 1.0}, ValueError, "control_scale needs control, got control=None"),
    "scale": ({"control_scale": float("nan")}, ValueError, "control_scale must be finite, got nan"),
    "scale's name": (
        {"control_scale": {"depth": 1}},
        ValueError,
        "control_scale must have names among edges, got depth",
    ),
    "range": ({"control_range": (0.5, 0.5)}, ValueError, "0 <= begin < end <= 1, got"),
    "no step": ({"control_range": (0.21, 0.3)}, ValueError, "must hold at least one of 5 steps"),
    "size": (
        {"control": {"edges": pictures(1, 16, 18)}, "width": 16},
        ValueError,
        r"control\['edges'\] must have shape",
    ),
    "values": ({"control": {"edges": pictures(1) + 1}}, ValueError, r"control\['edges'\] must be between 0 and 1"),
    "many": ({"control": {"edges": pictures(3)}}, ValueError, r"control\['edges'\] must be one, or one for each"),
    "guess mode": ({"guess_mode": True}, TypeError, "guess_mode .*not done"),
    "another's name": ({"controlnet_conditioning_scale": 1}, TypeError, "here: control_scale"),
    "shared timestep": ({"sampler": "heun", "control_range": (0, 2 / 9)}, ValueError, "share a timestep"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_controlnet_cannot_follow_is_refused(two, case):
    arguments, kind, match = REFUSED[case]
    given = {} if case == "scale alone" else {"control": {"edges": pictures(1)}}
    with pytest.raises(kind, match=match):
        two[0](PROMPTS, steps=STEPS, **{**given, **arguments})


def test_a_bundle_without_controlnets_says_how_one_is_made(ours):
    with pytest.raises(ValueError, match=r"control needs a bundle with ControlNets.* --controlnet NAME=FOLDER"):
        ours("StableDiffusionPipeline")("a cat", control={"edges": pictures(1)})


@pytest.mark.parametrize("negative_prompt", [None, NEGATIVES])
def test_the_refiner(ours, theirs, our_noise, negative_prompt):
    name = "StableDiffusionXLImg2ImgPipeline"
    our_noise(theirs(name))
    arguments = {"image": pictures(2), "strength": 0.6, "guidance_scale": 4.0, "negative_prompt": negative_prompt}
    want = run(theirs(name), PROMPTS, **arguments)
    got = ours(name)(PROMPTS, steps=STEPS, seed=SEED, **arguments).pixels
    assert_same(got, want)
    assert_other(run(theirs(name), PROMPTS, aesthetic_score=2.5, **arguments), want)


BASE, REFINER = "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"
SCHEDULERS = {
    "euler": "EulerDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "heun": "HeunDiscreteScheduler",
}


@pytest.mark.parametrize("share", [0.3, 0.8])
@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_the_refiner_goes_on_where_the_base_ends(ours, theirs, monkeypatch, sampler, share):
    for name in (BASE, REFINER):
        scheduler = getattr(diffusers, SCHEDULERS[sampler]).from_config(theirs(name).scheduler.config)
        monkeypatch.setattr(theirs(name), "scheduler", scheduler)
    start, call = noise(2, (4, 7, 13)), {"guidance_scale": 4.0, "negative_prompt": NEGATIVES}
    with torch.no_grad():
        half = theirs(BASE)(
            PROMPTS,
            width=26,
            height=14,
            latents=torch.from_numpy(start),
            num_inference_steps=STEPS,
            denoising_end=share,
            output_type="latent",
            **call,
        ).images
    want = run(theirs(REFINER), PROMPTS, image=half, denoising_start=share, **call)
    call |= {"steps": STEPS, "sampler": sampler}
    latents = ours(BASE)(PROMPTS, latents=start, denoising_end=share, **call).latents
    # DDIM's latents shrink from 2.9 to 1.0, and keep what was rounded where they were largest: diffusers' own float32
    # is up to 2.5e-5 from its float64 here.
    largest = max(float(half.abs().max()), float(np.abs(start).max()))
    np.testing.assert_allclose(latents, half, rtol=0, atol=tolerances.PICTURE * largest)
    assert_same(ours(REFINER)(PROMPTS, latents=latents, denoising_start=share, **call).pixels, want)
    request = sf.PromptRequest(PROMPTS[0], latents=latents[0], denoising_start=share, **call)
    request = dataclasses.replace(request, negative_prompt=NEGATIVES[0])
    assert_same(ours(REFINER).submit(request).result(timeout=60).pixels, want[:1])


@pytest.mark.slow
@pytest.mark.parametrize(("begin", "end"), [(0.0, 0.6), (0.2, 1.0)])
def test_a_controlnet_s_steps_are_those_of_a_run_that_does_not_end_early(ours, theirs, begin, end):
    name = "StableDiffusionXLControlNetPipeline"
    latents, image = noise(1, (4, 8, 8)), pictures(1)
    arguments = {"guidance_scale": 3.0, "denoising_end": 0.6}
    with torch.no_grad():
        want = theirs(name)(
            PROMPTS[:1],
            image=torch.from_numpy(image.transpose(0, 3, 1, 2)),
            latents=torch.from_numpy(latents),
            num_inference_steps=STEPS,
            control_guidance_start=begin,
            control_guidance_end=end,
            output_type="latent",
            **arguments,
        ).images
    got = ours(name)(
        PROMPTS[:1],
        control={"controlnet": image},
        control_range=(begin, end),
        latents=latents,
        steps=STEPS,
        **arguments,
    )
    np.testing.assert_allclose(got.latents, want, rtol=0, atol=tolerances.PICTURE * float(want.abs().max()))


def chunks(pipe, parts):
    """Embeddings of several contexts side by side."""
    found = [pipe.encode_prompt(part) for part in parts]
    return {
        name: np.concatenate([one[name] for one in found], axis=1) if name == LONG else found[0][name]
        for name in found[0]
    }


LONG = "encoder_hidden_states"


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_embeddings_of_several_contexts(ours, theirs, name):
    pipe, latents = ours(name), noise(1, (4, 8, 8))
    prompt = chunks(pipe, ["a red cat", "in the rain", "blue"])
    prompt[LONG] = prompt[LONG] * np.linspace(0.7, 1.3, prompt[LONG].shape[1], dtype=np.float32)[:, None]  # weighted
    assert prompt[LONG].shape[1] == 3 * tiny_pipelines.LENGTH
    negative = chunks(pipe, ["the dog", "", ""])
    given = {"prompt_embeds": prompt[LONG], "negative_prompt_embeds": negative[LONG]}
    if name == "StableDiffusionXLPipeline":
        given |= {
            "pooled_prompt_embeds": prompt["text_embeds"],
            "negative_pooled_prompt_embeds": negative["text_embeds"],
        }
    given = {key: torch.from_numpy(value) for key, value in given.items()}
    want = run(theirs(name), latents=latents, guidance_scale=4.0, **given)
    arguments = {"latents": latents, "guidance_scale": 4.0, "steps": STEPS}
    got = pipe(prompt_embeds=prompt, negative_prompt_embeds=negative, **arguments).pixels
    assert_same(got, want)
    again = pipe(prompt_embeds=prompt, negative_prompt="the dog", **arguments).pixels  # empty contexts follow it
    np.testing.assert_array_equal(again, got)
    request = sf.PromptRequest(prompt_embeds=prompt, negative_prompt="the dog", **{**arguments, "latents": latents[0]})
    np.testing.assert_allclose(pipe.submit(request).result(60).pixels, want, rtol=0, atol=tolerances.PICTURE)


def test_zeros_follow_where_a_missing_negative_prompt_means_zeros(ours, theirs):
    name = "StableDiffusionXLPipeline"
    pipe, latents = ours(name), noise(1, (4, 8, 8))
    prompt = chunks(pipe, ["a red cat", "in the rain"])
    given = {"prompt_embeds": prompt[LONG], "pooled_prompt_embeds": prompt["text_embeds"]}
    want = run(theirs(name), latents=latents, guidance_scale=4.0, **{k: torch.from_numpy(v) for k, v in given.items()})
    assert_same(pipe(prompt_embeds=prompt, latents=latents, guidance_scale=4.0, steps=STEPS).pixels, want)


def test_embeddings_that_do_not_go_together_are_refused(ours):
    pipe = ours("StableDiffusionPipeline")
    two, one = chunks(pipe, ["a", "b"]), pipe.encode_prompt("a")
    with pytest.raises(ValueError, match=r"negative_prompt_embeds must have as many tokens .* 24, got 12"):
        pipe(prompt_embeds=two, negative_prompt_embeds=one)
    with pytest.raises(ValueError, match="followed by empty contexts where that is a multiple of 12"):
        pipe(prompt_embeds={LONG: two[LONG][:, :20]})
    with pytest.raises(ValueError, match=r"must have shape \(12, 16\) or \(n, \*\(12, 16\)\), with 1 to 65536 tokens"):
        pipe(prompt_embeds={LONG: two[LONG][..., :3]})
