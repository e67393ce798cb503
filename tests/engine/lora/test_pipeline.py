"""LoRAs that calls and requests of a pipeline choose: the pictures of diffusers with the same adapters."""

import lora_files
import numpy as np
import pytest
import tiny_pipelines
import tolerances

import stepfuse as sf

NAME, PROMPT, STEPS = "StableDiffusionPipeline", tiny_pipelines.PROMPTS[0], 3
LAYERS = {"unet": lora_files.UNET, "text_encoder": lora_files.CLIP}
OTHER = {"StableDiffusionXLPipeline": {**LAYERS, "text_encoder_2": lora_files.CLIP}}
OTHER["StableDiffusion3Pipeline"] = {"transformer": [*lora_files.ATTENTION, "add_q_proj", "to_add_out", "ff.net.2"]}
OTHER["StableDiffusionPipeline"] = LAYERS


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """``written(name)``: two LoRAs of all parts of a pipeline."""
    made = {}

    def files(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("loras")
            made[name] = {
                key: lora_files.write_random_lora(
                    folder / f"{key}.safetensors", name, OTHER[name], seed=seed, rank=1 + seed
                )
                for seed, key in enumerate(("one", "two"), start=1)
            }
        return made[name]

    return files


@pytest.fixture(scope="module")
def pipe(exported, written):
    with sf.TextToImage.load(exported(NAME), threads=1, lora_bytes=1 << 30) as found:
        for name, file in written(NAME).items():
            found.add_lora(name, file)
        yield found


@pytest.fixture(scope="module")
def latents(pipe):
    return sf.normal(5, (1, *pipe.bundle.info.shape))


def in_diffusers(name, files, lora, latents):
    """Pictures of diffusers with these adapters set."""
    import torch

    theirs = tiny_pipelines.tiny_pipeline(name)
    for key in lora:
        theirs.load_lora_weights(files[key], adapter_name=key)
    if lora:
        theirs.set_adapters(list(lora), list(lora.values()))
    with torch.no_grad():
        given = {"latents": torch.from_numpy(latents), "num_inference_steps": STEPS, "output_type": "np"}
        return theirs(PROMPT, **given).images


@pytest.mark.parametrize("lora", [{"one": 0.7}, {"one": 0.4, "two": -0.6}], ids=str)
def test_pictures_are_those_of_diffusers_with_the_adapters_set(pipe, written, latents, lora):
    found = pipe(PROMPT, latents=latents, steps=STEPS, lora=lora).pixels
    expected = in_diffusers(NAME, written(NAME), lora, latents)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerances.PICTURE)
    plain = pipe(PROMPT, latents=latents, steps=STEPS).pixels
    assert np.abs(found - plain).max() > 10 * tolerances.PICTURE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline"])
def test_pictures_of_other_pipelines_are_those_of_diffusers(exported, written, name):
    bundle, lora = exported(name), {"one": 0.7, "two": -0.5}
    latents = sf.normal(5, (1, *bundle.info.shape))
    with sf.TextToImage.load(bundle, threads=1, lora_bytes=1 << 30) as pipe:
        for key, file in written(name).items():
            pipe.add_lora(key, file)
        found = pipe(PROMPT, latents=latents, steps=STEPS, lora=lora).pixels
    expected = in_diffusers(name, written(name), lora, latents)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerances.PICTURE)


def test_a_request_has_a_call_s_bits(pipe):
    arguments = {"steps": STEPS, "seed": 3, "lora": {"one": 0.7}}
    picture = pipe.submit(sf.PromptRequest(PROMPT, **arguments)).result(60)
    np.testing.assert_array_equal(picture.pixels, pipe(PROMPT, **arguments).pixels)


def test_prompts_are_encoded_with_the_loras_and_without_again(pipe):
    plain = pipe(PROMPT, steps=STEPS, seed=3).pixels
    styled = pipe(PROMPT, steps=STEPS, seed=3, lora={"one": 0.7}).pixels
    np.testing.assert_array_equal(pipe(PROMPT, steps=STEPS, seed=3).pixels, plain)
    np.testing.assert_array_equal(pipe(PROMPT, steps=STEPS, seed=3, lora={"one": 0.7}).pixels, styled)
    embeds = pipe.encode_prompt(PROMPT)  # by the text encoder as it is
    given = pipe(prompt_embeds=embeds, steps=STEPS, seed=3, lora={"one": 0.7}).pixels
    assert np.abs(given - styled).max() > 0


def test_a_request_that_waits_keeps_the_lora_that_it_has_chosen(pipe, exported, written):
    with sf.TextToImage.load(exported(NAME), threads=1, lora_bytes=1 << 30) as own:
        own.add_lora("one", written(NAME)["one"])
        future = own.submit(sf.PromptRequest(PROMPT, steps=STEPS, seed=3, lora={"one": 0.7}))
        own.remove_lora("one")
        np.testing.assert_array_equal(
            future.result(60).pixels, pipe(PROMPT, steps=STEPS, seed=3, lora={"one": 0.7}).pixels
        )


def test_unknown_names_are_refused_at_submit(pipe, exported):
    for call in (lambda **given: pipe(PROMPT, **given), lambda **given: pipe.submit(sf.PromptRequest(PROMPT, **given))):
        with pytest.raises(ValueError, match=r"registered \(one, two\), got 'on' \(did you mean one\?\)"):
            call(lora={"on": 1.0}, steps=STEPS)
    with sf.TextToImage.load(exported(NAME), threads=1) as plain:
        assert plain.loras == {}
        with pytest.raises(ValueError, match="lora must be left out where LoRAs have no memory"):
            plain(PROMPT, lora={"one": 1.0}, steps=STEPS)
        with pytest.raises(ValueError, match="load it with lora_bytes"):
            plain.add_lora("one", "one.safetensors")


def test_a_picture_says_its_loras(pipe, tmp_path):
    from stepfuse.pipeline.saved_entries import read_entries

    pictures = pipe(PROMPT, steps=STEPS, seed=3, lora={"two": 0.25, "one": 0.0})
    [made] = pictures.provenance
    assert made.loras == {"two": {"sha256": pipe.loras["two"].sha256, "scale": 0.25}}
    [file] = pictures.save(tmp_path / "cat.png")
    assert read_entries(file).provenance == made
    assert "two 0.25" in read_entries(file).description
    assert pipe(PROMPT, steps=STEPS, seed=3).provenance[0].loras is None
