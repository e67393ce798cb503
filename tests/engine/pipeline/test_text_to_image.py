"""From prompts to pictures, on networks whose every result numpy gives too."""

import json
import re
import sys
import threading
from dataclasses import replace

import handmade
import numpy as np
import pytest
from PIL import Image

import stepfuse as sf
from stepfuse.extras import pip_install
from stepfuse.pipeline.prompts import PromptCutWarning
from stepfuse.samplers.noise import POSTERIOR

NEAR = {"rtol": 0, "atol": 2e-6}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return handmade.write_bundle(tmp_path_factory.mktemp("pipeline") / "bundle")


@pytest.fixture(scope="module")
def pipe(bundle):
    with sf.TextToImage.load(bundle.path, threads=1) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def pipe_of(bundle, backend):
    with sf.TextToImage.load(bundle.path, backend=backend, threads=1) as pipe:
        yield pipe


def noise(*seeds, shape=handmade.SHAPE):
    return np.stack([sf.normal(seed, shape) for seed in seeds])


def expected(prompts, seeds, *, negative="", size=(8, 8), shape=handmade.SHAPE, start=None, table=None, **options):
    """What the pipeline should return: latents and pixels."""
    settings = {"guidance_scale": 3.0, **options}
    table = table or sf.samplers.ddim(handmade.SCHEDULE, settings.pop("steps", 4), **settings)
    negatives = [negative] * len(prompts) if isinstance(negative, str) else negative
    text, away = (np.stack([handmade.embed(one) for one in many]) for many in (prompts, negatives))
    width, height = size
    sizes = height, width, 0, 0, height, width
    start = noise(*seeds, shape=shape) if start is None else start
    latents = handmade.draw(table, start, text, away, sizes)
    return latents, handmade.decode(latents)


def test_a_prompt_becomes_the_picture_that_numpy_computes(pipe_of):
    got = pipe_of("a red cat", seed=5)
    latents, pixels = expected(["a red cat"], [5])
    np.testing.assert_allclose(got.latents, latents, **NEAR)
    np.testing.assert_allclose(got.pixels, pixels, **NEAR)
    assert got.pixels.shape == (1, 8, 8, 3)
    assert pixels.std() > 0.05  # clipping would hide a difference
    np.testing.assert_array_equal(np.asarray(got[0]), (pixels[0] * 255).round().astype(np.uint8))


def test_prompts_and_their_images_have_seeds_of_their_own(pipe):
    got = pipe(["a cat", "the dog in rain"], num_images=2, seed=7, negative_prompt="blue")
    prompts = ["a cat"] * 2 + ["the dog in rain"] * 2
    np.testing.assert_allclose(got.latents, expected(prompts, [7, 8, 9, 10], negative="blue")[0], **NEAR)
    assert list(got.seeds) == [7, 8, 9, 10]
    each = pipe(["a cat", "a dog"], negative_prompt=["red", "blue"], seed=[3, 3])
    np.testing.assert_allclose(each.latents, expected(["a cat", "a dog"], [3, 3], negative=["red", "blue"])[0], **NEAR)


def test_without_guidance_a_negative_prompt_is_nothing_and_a_step_is_one_pass(bundle):
    with sf.TextToImage.load(bundle, threads=1) as pipe:
        got = pipe("a cat", negative_prompt="a dog", guidance_scale=1.0, steps=3, seed=1)
        assert pipe.stats()[8, 8]["network_passes"] == 3
    np.testing.assert_allclose(got.latents, expected(["a cat"], [1], guidance_scale=1.0, steps=3)[0], **NEAR)
    assert "negative_prompt" not in got.facts[0]


def test_a_pipeline_that_takes_zeros_for_no_negative_prompt(tmp_path):
    bundle = handmade.write_bundle(tmp_path / "zeros", pipeline={"zeros_without_negative": True})
    table = sf.samplers.ddim(handmade.SCHEDULE, 4, guidance_scale=3.0)
    zeros = np.zeros((1, handmade.LENGTH, handmade.WIDTH), dtype=np.float32)
    with sf.TextToImage.load(bundle, threads=1) as pipe:
        want = handmade.draw(table, noise(2), handmade.embed("a cat")[None], zeros, (8, 8, 0, 0, 8, 8))
        np.testing.assert_allclose(pipe("a cat", seed=2).latents, want, **NEAR)
        got = pipe("a cat", negative_prompt="", seed=2).latents
        np.testing.assert_allclose(got, expected(["a cat"], [2])[0], **NEAR)


def test_any_size_by_the_rule(pipe_of):
    got = pipe_of("a cat", width=12, height=16, seed=3)
    latents, pixels = expected(["a cat"], [3], size=(12, 16), shape=(4, 8, 6))
    np.testing.assert_allclose(got.latents, latents, **NEAR)
    np.testing.assert_allclose(got.pixels, pixels, **NEAR)
    assert got[0].size == (12, 16)


def test_sizes_that_the_rule_forbids(pipe, tmp_path):
    with pytest.raises(ValueError, match=r"width must be a multiple of 4 pixels for this model: 8 or 12, got 10"):
        pipe("a cat", width=10)
    with pytest.raises(ValueError, match="height must be a multiple of 4 pixels for this model: 4, got 0"):
        pipe("a cat", height=0)
    with pytest.raises(TypeError, match=r"height must be a whole number of pixels, got 8\.0"):
        pipe("a cat", height=8.0)
    fixed = handmade.write_bundle(tmp_path / "fixed", pipeline={"fixed_size": True})
    with sf.TextToImage.load(fixed) as small, pytest.raises(ValueError, match="draws 8 x 8 pixels alone, got 12 x 8"):
        small("a cat", width=12)
    bounded = handmade.write_bundle(tmp_path / "bounded", pipeline={"max_size": 16})
    with sf.TextToImage.load(bounded) as small, pytest.raises(ValueError, match="up to 16 for this model: 16, got 20"):
        small("a cat", width=20)


def test_latents_are_the_starting_noise_and_set_the_size(pipe):
    start = noise(11, 12, shape=(4, 6, 8))
    got = pipe("a cat", num_images=2, latents=start, seed=0)
    want, _ = expected(["a cat"] * 2, [0, 1], size=(16, 12), shape=(4, 6, 8), start=start)
    np.testing.assert_allclose(got.latents, want, **NEAR)


def test_embeddings_take_the_place_of_prompts(pipe):
    text, away = pipe.encode_prompt(["a cat", "a dog"]), pipe.encode_prompt("blue")
    np.testing.assert_array_equal(text["text"], [handmade.embed("a cat"), handmade.embed("a dog")])
    got = pipe(prompt_embeds=text, negative_prompt_embeds=away, seed=4)
    np.testing.assert_array_equal(got.latents, pipe(["a cat", "a dog"], negative_prompt="blue", seed=4).latents)
    one = pipe(prompt_embeds={"text": text["text"][1]}, negative_prompt_embeds=away, seed=5)
    np.testing.assert_allclose(one.latents, got.latents[1:], **NEAR)
    # Conditioning inputs that no prompt feeds can be given, too.
    sizes = 32, 32, 4, 4, 8, 8
    cropped = pipe(prompt_embeds={**pipe.encode_prompt("a cat"), "size": np.float32(sizes)}, seed=4)
    table = sf.samplers.ddim(handmade.SCHEDULE, 4, guidance_scale=3.0)
    want = handmade.draw(table, noise(4), handmade.embed("a cat")[None], handmade.embed("")[None], sizes)
    np.testing.assert_allclose(cropped.latents, want, **NEAR)


def test_a_picture_to_begin_with(pipe):
    rng = np.random.default_rng(1)
    picture = Image.fromarray(rng.integers(0, 256, (12, 8, 3), dtype=np.uint8))
    pixels = np.asarray(picture, dtype=np.float32)[None] / 255
    mean = handmade.encode(pixels)
    np.testing.assert_allclose(pipe.encode_image(picture), mean, **NEAR)
    got = pipe("a cat", image=picture, strength=0.5, seed=6)
    np.testing.assert_array_equal(got.latents, pipe("a cat", image=pixels, strength=0.5, seed=6).latents)
    # As the engine alone, of the same latents.
    cond = {"text": handmade.embed("a cat"), "size": np.float32([12, 8, 0, 0, 12, 8])}
    with sf.Engine.load(pipe.bundle, shape=(4, 6, 4), threads=1) as engine:
        settings = {"cond": cond, "negative_cond": {**cond, "text": handmade.embed("")}, "seed": 6, "strength": 0.5}
        np.testing.assert_allclose(got.latents, engine.sample(1, image=mean, **settings), **NEAR)
    # A sample of the posterior, of each seed its own.
    sampled = pipe.encode_image([picture, picture], sample_posterior=True, seed=6)
    deviation = [handmade.STD * sf.normal(seed, (4, 6, 4), stream=POSTERIOR) for seed in (6, 7)]
    np.testing.assert_allclose(sampled, mean + np.stack(deviation), **NEAR)
    assert pipe("a cat", image=picture, width=12, height=12, strength=0.5)[0].size == (12, 12)  # scaled


def test_a_mask_keeps_its_black_part(pipe):
    rng = np.random.default_rng(2)
    pixels = rng.uniform(0, 1, (8, 8, 3)).astype(np.float32)
    mask = np.zeros((8, 8), dtype=np.float32)
    mask[:, 4:] = 1
    got = pipe("a cat", image=pixels, mask=mask, num_images=2, seed=3)
    kept = handmade.encode(pixels[None])
    np.testing.assert_allclose(got.latents[..., :2], kept.repeat(2, 0)[..., :2], **NEAR)
    assert np.abs(got.latents[..., 2:] - kept[..., 2:]).max() > 0.1
    picture = Image.fromarray((mask * 255).astype(np.uint8))
    np.testing.assert_array_equal(pipe("a cat", image=pixels, mask=picture, num_images=2, seed=3).latents, got.latents)


def test_a_long_prompt_is_cut_and_says_where(pipe, caplog):
    caplog.set_level("INFO", "stepfuse")
    with pytest.warns(PromptCutWarning, match=r"cut after 6 tokens: 'IN the rain' is not read$") as caught:
        got = pipe("a red  cat Dog IN the rain", seed=1)
    assert caught[0].filename == __file__
    assert "'IN the rain' is not read (in 'a red  cat Dog IN the rain')" in caplog.text
    np.testing.assert_array_equal(got.latents, pipe("a red cat dog", seed=1).latents)
    with pytest.warns(PromptCutWarning):  # again, although its embedding is remembered
        pipe.encode_prompt("a red  cat Dog IN the rain")


def test_calls_of_many_threads_share_forwards_and_give_what_each_gives_alone(bundle):
    with sf.TextToImage.load(bundle, threads=1) as pipe:
        alone = [pipe("a cat", seed=seed, steps=20).latents for seed in range(8)]
        before = pipe.stats()[8, 8]["forwards"]
        got = [None] * 8
        barrier = threading.Barrier(8)

        def work(seed):
            barrier.wait()
            got[seed] = pipe("a cat", seed=seed, steps=20).latents

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert pipe.stats()[8, 8]["forwards"] - before < 8 * 20
    np.testing.assert_allclose(np.concatenate(got), np.concatenate(alone), **NEAR)


def test_engines_of_many_sizes_come_and_go(bundle):
    with sf.TextToImage.load(bundle, threads=1) as pipe:
        first = pipe("a cat", seed=1).latents
        for side in range(8, 40, 4):
            assert pipe("a cat", width=side, height=8)[0].size == (side, 8)
        assert list(pipe.stats()) == [(side, 8) for side in (24, 28, 32, 36)]
        np.testing.assert_array_equal(pipe("a cat", seed=1).latents, first)


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        ({}, 4),
        ({"serving": sf.Serving(max_queue=8)}, 4),
        ({"serving": sf.Serving(max_rows=3)}, 3),
        ({"serving": sf.Serving(max_rows=3), "max_rows": 2}, 2),
    ],
    ids=["by-size", "other-serving", "serving", "max-rows"],
)
def test_rows_of_a_forward_go_by_the_size_unless_given(bundle, given, rows):
    with sf.TextToImage.load(bundle, threads=1, **given) as pipe, pipe._engines.use((4, 256, 256)) as engine:
        assert engine.serving.max_rows == rows


def test_a_callback_sees_latents_that_decode(pipe):
    seen = []
    got = pipe("a cat", seed=2, callback=lambda step, total, x0: seen.append((step, total, pipe.decode(x0))))
    assert [one[:2] for one in seen] == [(step, 4) for step in (1, 2, 3, 4)]
    np.testing.assert_allclose(seen[-1][2], got.pixels, **NEAR)
    stopped = pipe("a cat", seed=2, callback=lambda step, total, x0: step < 2)
    np.testing.assert_array_equal(stopped.pixels, seen[1][2])


def test_pictures_carry_how_they_were_made(pipe, tmp_path):
    got = pipe("a cat, naïve 猫", negative_prompt="blue", num_images=2, seed=9, sampler="dpmpp_2m", steps=3)
    paths = got.save(tmp_path / "cat.png")
    assert [path.name for path in paths] == ["cat-9.png", "cat-10.png"]
    with Image.open(paths[1]) as picture:
        facts = {
            "prompt": "a cat, naïve 猫",
            "negative_prompt": "blue",
            "seed": "10",
            "sampler": "dpmpp_2m",
            "steps": "3",
        }
        assert facts.items() <= picture.text.items()
        assert picture.text["Description"] == "handmade: dpmpp_2m, 3 steps, guidance 3, seed 10"
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(got[1]))
    assert got[0].info["seed"] == "9"
    assert pipe("a cat", seed=1).save(tmp_path / "one.png") == [tmp_path / "one.png"]
    shared = pipe("a cat", num_images=2, seed=[4, 4]).save(tmp_path / "same.png")
    assert [path.name for path in shared] == ["same-0.png", "same-1.png"]
    assert len(got) == len(list(got)) == 2
    with pytest.raises(ValueError, match=r"written as .png, .jpg, .jpeg, .webp, got cat.bmp"):
        got.save(tmp_path / "cat.bmp")


def test_a_table_takes_the_place_of_a_sampler(pipe):
    table = sf.samplers.dpmpp_2m(handmade.SCHEDULE, 3, guidance_scale=5.0)
    named = pipe("a cat", seed=2, sampler="dpmpp_2m", steps=3, guidance_scale=5.0)
    got = pipe("a cat", seed=2, table=table)
    np.testing.assert_array_equal(got.pixels, named.pixels)
    assert got.facts == named.facts
    queued = pipe.submit(sf.PromptRequest("a cat", seed=2, table=table)).result()
    np.testing.assert_array_equal(queued.pixels, named.pixels)
    changed = table.rows.copy()
    changed[:, 7] *= np.float32(0.5)
    custom = replace(table, rows=changed)
    [facts] = pipe("a cat", seed=2, table=custom).facts
    assert json.loads(facts["stepfuse"])["custom_table"] is True
    with pytest.raises(ValueError, match="table says all about the sampler: leave out steps, karras"):
        pipe("a cat", table=table, steps=3, karras=True)
    with pytest.raises(TypeError, match="table must be a StepTable, got str"):
        pipe("a cat", table="dpmpp_2m")
    with pytest.raises(ValueError, match="table's timesteps must be between 0 and 999 for this model"):
        pipe("a cat", table=sf.StepTable.from_columns({"t": [2000.0], "q_x": 1.0}))


def test_conditioning_is_that_of_a_call(pipe, bundle):
    """The denoiser by itself, given what the pipeline makes of prompts, ends at the pipeline's latents."""
    given = pipe.conditioning(["a cat", "a dog"], negative_prompt=["rain", ""])
    called = pipe(["a cat", "a dog"], negative_prompt=["rain", ""], seed=[3, 4])
    with sf.Engine.load(bundle) as engine:
        np.testing.assert_allclose(engine.sample(2, seed=[3, 4], **given), called.latents, **NEAR)


def test_a_random_seed_is_reported_and_gives_the_same_again(pipe):
    got = pipe("a cat")
    np.testing.assert_array_equal(pipe("a cat", seed=got.seeds[0]).latents, got.latents)
    assert got.facts[0]["seed"] == str(got.seeds[0])


def test_a_run_ends_with_noise_left_and_another_goes_on_from_there(pipe_of):
    call = {"num_images": 2, "seed": 5, "steps": 4}
    whole = pipe_of("a red cat", **call)
    half = pipe_of("a red cat", denoising_end=0.6, **call)
    table = sf.samplers.ddim(handmade.SCHEDULE, 4, guidance_scale=3.0)
    below = int((table["t"] < 0.4 * handmade.SCHEDULE.num_train_timesteps).sum())
    latents, pixels = expected(["a red cat"] * 2, [5, 6], table=table[:-below])
    scale = np.abs(latents).max()  # with noise left it is several times that of a picture
    np.testing.assert_allclose(half.latents / scale, latents / scale, **NEAR)
    np.testing.assert_allclose(half.pixels, pixels, **NEAR)  # with the noise that is left
    rest = pipe_of("a red cat", latents=half.latents, denoising_start=0.6, **call)
    np.testing.assert_array_equal(rest.latents, whole.latents)
    np.testing.assert_array_equal(rest.pixels, whole.pixels)
    middle = pipe_of("a red cat", latents=half.latents, denoising_start=0.6, denoising_end=0.9, **call)
    last = pipe_of("a red cat", latents=middle.latents, denoising_start=0.9, **call)
    np.testing.assert_array_equal(last.latents, whole.latents)


def test_pictures_say_which_part_of_a_run_they_are_of(pipe):
    half = pipe("a red cat", seed=5, steps=8, denoising_end=0.7)
    rest = pipe("a red cat", seed=6, steps=8, latents=half.latents, denoising_start=0.7)
    [first], [second] = half.provenance, rest.provenance
    assert (first.steps, first.steps_done, second.steps_done) == (8, 5, 3)
    assert (first.denoising_start, first.denoising_end, first.noise) == (None, 0.7, None)
    assert (second.denoising_start, second.denoising_end) == (0.7, None)
    assert second.noise["shape"] == list(half.latents.shape[1:])
    assert half.facts[0]["Description"] == "handmade: ddim, 5 of 8 steps, guidance 3, denoising_end 0.7, seed 5"
    assert rest.facts[0]["denoising_start"] == "0.7"
    assert sf.Provenance.from_json(rest.facts[0]["stepfuse"]) == second
    own = pipe("a red cat", seed=5, table=sf.samplers.ddim(handmade.SCHEDULE, 8, guidance_scale=3.0), denoising_end=0.7)
    np.testing.assert_array_equal(own.latents, half.latents)
    assert own.provenance == half.provenance


def test_the_first_state_of_a_run_that_goes_on_is_not_scaled(pipe):
    call = {"seed": 5, "steps": 8, "sampler": "euler"}
    whole, half = pipe("a red cat", **call), pipe("a red cat", denoising_end=0.6, **call)
    rest = pipe("a red cat", latents=half.latents, denoising_start=0.6, **call)
    np.testing.assert_array_equal(rest.latents, whole.latents)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({}, ValueError, "give prompt or prompt_embeds, and not both"),
        ({"prompt": "a", "prompt_embeds": {}}, ValueError, "give prompt or prompt_embeds, and not both"),
        ({"prompt": []}, ValueError, r"prompt must hold at least one text, got \[\]"),
        ({"prompt": 3}, TypeError, "prompt must be a text or a list of texts, got 3"),
        ({"prompt": ["a", None]}, TypeError, r"prompt must be a text or a list of texts, got \['a', None\]"),
        (
            {"prompt": "a", "negative_prompt": ["b", "c"]},
            ValueError,
            "negative_prompt must be one, or one for each of the 1 prompts, got 2",
        ),
        (
            {"prompt": "a", "negative_prompt": "b", "negative_prompt_embeds": {}},
            ValueError,
            "give negative_prompt or negative_prompt_embeds, and not both",
        ),
        ({"prompt": "a", "num_images": 0}, ValueError, "num_images must be at least 1, got 0"),
        ({"prompt": "a", "num_images": 2.0}, TypeError, "num_images must be a whole number, got 2.0"),
        (
            {"prompt": "a", "seed": [1, 2]},
            ValueError,
            "seed must be one value, or one for each of the 1 samples, got 2",
        ),
        ({"prompt": "a", "steps": 0}, ValueError, "steps must be between 1 and 1000, got 0"),
        ({"prompt": "a", "num_inference_steps": 5}, TypeError, "got num_inference_steps"),
        ({"prompt": "a", "output_type": "latent"}, TypeError, "here: none: Pictures have pixels and latents"),
        ({"prompt": "a", "strength": 0.5}, ValueError, "strength needs an image"),
        ({"prompt": "a", "denoising_end": 1.0}, ValueError, "denoising_end must be above 0 and below 1, got 1.0"),
        ({"prompt": "a", "denoising_end": "end"}, TypeError, "denoising_end must be a number, got 'end'"),
        (
            {"prompt": "a", "denoising_start": 0.5},
            ValueError,
            "denoising_start needs latents to go on from",
        ),
        (
            {"prompt": "a", "denoising_end": 0.5, "image": np.zeros((8, 8, 3))},
            ValueError,
            "image must be left out with denoising_end: such a run begins as noise or goes on from latents",
        ),
        (
            {"prompt": "a", "denoising_start": 0.5, "latents": np.zeros((1, 4, 4, 4)), "strength": 0.5},
            ValueError,
            "strength must be left out with denoising_start: .* got 0.5",
        ),
        (
            {"prompt": "a", "denoising_start": 0.5, "latents": np.zeros((1, 3, 4, 4))},
            ValueError,
            r"latents must have shape \(1, 4, 4, 4\), got \(1, 3, 4, 4\)",
        ),
        ({"prompt": "a", "latents": np.zeros((1, 4, 4))}, ValueError, r"latents must have shape \(1, 4, 4, 4\)"),
        (
            {"prompt": "a", "image": "cat.png"},
            ValueError,
            r"image must have shape \(8, 8, 3\) or \(n, 8, 8, 3\), got \(\)",
        ),
        ({"prompt": "a", "image": np.zeros((8, 8, 3), np.uint8)}, TypeError, "floating point from 0 to 1, got uint8"),
        ({"prompt": "a", "image": np.full((8, 8, 3), 1.5)}, ValueError, r"between 0 and 1, got 1.5 at \(0, 0, 0, 0\)"),
        (
            {"prompt": "a", "image": np.zeros((3, 8, 8, 3))},
            ValueError,
            "image must be one, .* 1 prompts or 1 pictures, got 3",
        ),
        (
            {"prompt": "a", "image": np.zeros((8, 8, 3)), "mask": np.zeros((4, 4))},
            ValueError,
            r"mask must have shape \(8, 8\)",
        ),
        ({"prompt_embeds": [1]}, TypeError, "prompt_embeds must be a dict by conditioning input, got list"),
        ({"prompt_embeds": {"size": np.zeros(6)}}, ValueError, "prompt_embeds must hold text, and .*, got size"),
        ({"prompt_embeds": {"text": np.zeros((2, 3))}}, ValueError, r"text of prompt_embeds must have shape \(6, 3\)"),
        (
            {"prompt_embeds": {"text": np.zeros((2, 6, 3)), "size": np.zeros((3, 6))}},
            ValueError,
            "prompt_embeds must hold as many rows of each input, got text 2, size 3",
        ),
    ],
)
def test_bad_arguments_say_the_rule_and_the_value(pipe, arguments, kind, message):
    with pytest.raises(kind, match=message):
        pipe(**arguments)


def test_what_is_no_text_to_image_bundle_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be a pipeline's with prompts"):
        sf.TextToImage.load("fashion")
    bundle = handmade.write_bundle(tmp_path / "bundle")
    (bundle.path / "tokenizer.json").write_text("{}")
    with pytest.raises(sf.BundleError, match=r"tokenizer.json"):
        sf.TextToImage.load(bundle.path)
    with pytest.raises(sf.BundleError, match=r"tokenizer.json is no file of the tokenizers library"):
        sf.TextToImage.load(bundle)


def test_a_device_has_a_name(bundle):
    with sf.TextToImage.load(bundle, device="cpu", threads=1) as pipe:
        assert len(pipe("a cat")) == 1
    with pytest.raises(ValueError, match=r"device must be 'cpu', 'cuda', .*, got 'tpu'"):
        sf.TextToImage.load(bundle, device="tpu")


def test_without_tokenizers_the_extra_is_named(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=re.escape(f"prompts need tokenizers: {pip_install('text')}")):
        sf.TextToImage.load(bundle)


def test_a_closed_pipeline_says_so(bundle):
    pipe = sf.TextToImage.load(bundle, threads=1)
    pipe.close()
    pipe.close()
    for call in (pipe, pipe.encode_prompt):
        with pytest.raises(sf.EngineClosed, match="the pipeline is closed"):
            call("a cat")
    with pytest.raises(sf.EngineClosed, match="the pipeline is closed"):
        pipe.decode(noise(1))
    with pytest.raises(TypeError, match="neither pickled nor copied"):
        pipe.__reduce__()


def test_closing_lets_calls_finish_and_is_refused_in_their_callbacks(bundle):
    pipe = sf.TextToImage.load(bundle, threads=1)
    got = []

    def close_from_callback(step, total, preview):
        if step == 1:
            with pytest.raises(RuntimeError, match="cannot be closed from a callback"):
                pipe.close()
        if step == 3:
            closing.start()

    closing = threading.Thread(target=pipe.close)
    calling = threading.Thread(target=lambda: got.append(pipe("a cat", seed=1, callback=close_from_callback)))
    calling.start()
    calling.join()
    closing.join()
    np.testing.assert_allclose(got[0].pixels, expected(["a cat"], [1])[1], **NEAR)
    with pytest.raises(sf.EngineClosed, match="the pipeline is closed"):
        pipe("a cat")
