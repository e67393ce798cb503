"""What a picture says of how it was drawn: written, read back exactly, and refused where it is damaged."""

import json
from dataclasses import replace
from pathlib import Path

import handmade
import numpy as np
import pytest
import support
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

import stepfuse as sf
from stepfuse.bundle.identity import ModelIdentity
from stepfuse.pipeline.image_files import SUFFIXES
from stepfuse.pipeline.provenance import MOST_BYTES, digest_of
from stepfuse.pipeline.saved_entries import read_entries
from stepfuse.pipeline.webui_text import plain_prompt, read_webui_text, sampler_of, unread_settings


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return support.write_tiny_bundle(tmp_path_factory.mktemp("provenance") / "tiny")


@pytest.fixture(scope="module")
def engine(bundle):
    with sf.Engine.load(bundle, threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    with sf.TextToImage.load(handmade.write_bundle(tmp_path_factory.mktemp("prompts") / "bundle"), threads=1) as pipe:
        yield pipe


def test_a_picture_of_an_engine_says_all_that_it_was_drawn_with(bundle, engine, tmp_path):
    image = np.zeros(support.SHAPE, np.float32)
    mask = np.ones(support.SHAPE[1:], np.float32)
    options = {"sampler": "ddim", "steps": 6, "spacing": "trailing", "eta": 0.5, "guidance_interval": (0.1, 0.9)}
    drawn = sf.sample_pictures(
        engine, 2, cond="bag", seed=5, guidance_scale=2.0, image=image, mask=mask, strength=0.5, **options
    )
    [path, _] = drawn.save(tmp_path / "bag.png")
    with Image.open(path) as picture:
        made = sf.Provenance.from_json(picture.text["stepfuse"])
        assert picture.text["Description"] == "tiny: bag, ddim, 3 of 6 steps, guidance 2, eta 0.5, strength 0.5, seed 5"
    assert made == drawn.provenance[0]
    assert made.model.files == {"denoiser.onnx": bundle.files["denoiser.onnx"]["sha256"]}
    table = engine.table(guidance_scale=2.0, **options)
    assert engine.table(**made.sampler_arguments) == table
    assert made.options == json.loads(json.dumps(table.options))
    assert made.table == table.digest
    assert (made.version, made.seed, made.cond) == (sf.__version__, 5, ["bag"])
    assert (made.steps, made.steps_done, made.strength) == (6, 3, 0.5)
    assert (made.image, made.mask) == (digest_of(image), digest_of(mask))
    assert made.batch == (2, 0)


def test_the_same_call_writes_the_same_bytes(engine, tmp_path):
    for name in ("a.png", "b.png"):
        sf.sample_pictures(engine, cond=1, seed=3, steps=2).save(tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_samples_of_engines_are_those_of_sample(engine):
    drawn = sf.sample_pictures(engine, 3, cond=[0, None, "bag"], seed=[4, 9, 1], steps=3)
    want = engine.sample(3, cond=[0, None, "bag"], seed=[4, 9, 1], steps=3)
    np.testing.assert_array_equal(drawn.latents, want)
    np.testing.assert_array_equal(drawn.pixels, (np.clip(want, -1, 1) + 1).transpose(0, 2, 3, 1) / 2)
    assert [one.cond for one in drawn.provenance] == [["boot"], [None], ["bag"]]
    assert [one.batch for one in drawn.provenance] == [None] * 3


def test_a_run_that_a_callback_stops_says_how_far_it_got(engine, pipe):
    stopped = sf.sample_pictures(engine, cond=1, seed=3, steps=5, callback=lambda step, *_: step < 2)
    [made] = stopped.provenance
    assert (made.steps, made.steps_done, made.stopped_after) == (5, 2, 2)
    [whole] = sf.sample_pictures(engine, cond=1, seed=3, steps=5, callback=lambda *_: True).provenance
    assert (whole.steps_done, whole.stopped_after) == (5, None)

    def interrupt(step, *_):
        if step == 3:
            raise StopIteration

    [made] = pipe("a cat", seed=1, callback=interrupt).provenance
    assert (made.steps, made.steps_done, made.stopped_after) == (4, 3, 3)


@pytest.mark.parametrize("given", ["own", "compiled"])
def test_a_table_that_no_sampler_compiles_is_said_to_be_one(engine, given):
    whole = engine.table(steps=6)
    table = whole[2:] if given == "own" else whole
    [made] = sf.sample_pictures(engine, cond=1, seed=0, table=table).provenance
    assert (made.custom_table, made.table) == (given == "own", table.digest)


def test_equal_tables_have_equal_digests(engine):
    table = engine.table(steps=4)
    assert replace(table, init_scale=1, options={}).digest == table.digest
    rows = table.rows.copy()
    rows[1, 3] = np.nextafter(rows[1, 3], 2, dtype=np.float32)
    others = [replace(table, rows=rows), table.adapt(guidance_rescale=0.5), replace(table, init_scale=2.0)]
    assert len({one.digest for one in (table, *others)}) == 4


def test_samples_that_are_no_pictures_are_refused():
    with (
        sf.Engine.from_callable(lambda x, t, c: x, shape=(2,), schedule=support.SCHEDULE) as engine,
        pytest.raises(ValueError, match=r"must have shape \(1 or 3, H, W\) to be pictures, got \(2,\): give the vae"),
    ):
        sf.sample_pictures(engine)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_is_read_back(pipe, tmp_path, suffix):
    prompt = 'a "red":,\ncat 猫'
    drawn = pipe(prompt, negative_prompt="blue, dog", seed=9, sampler="dpmpp_2m", karras=True)
    [path] = drawn.save(tmp_path / f"cat{suffix}")
    found = read_entries(path)
    assert found.provenance == drawn.provenance[0]
    assert found.webui["Prompt"] == prompt
    assert found.webui["Negative prompt"] == "blue, dog"
    wanted = {"Steps": "4", "Sampler": "DPM++ 2M", "Schedule type": "Karras", "CFG scale": "3", "Seed": "9"}
    assert {**wanted, "Size": "8x8", "Model": "handmade"}.items() <= found.webui.items()
    assert found.webui["Model hash"] == drawn.provenance[0].model.files["denoiser.onnx"][:10]
    with Image.open(path) as picture:
        assert picture.size == (8, 8)
        if suffix in (".png", ".webp"):  # without loss
            np.testing.assert_array_equal(np.asarray(picture), np.asarray(drawn[0]))


def test_a_jpeg_that_cannot_hold_its_entries_is_refused(pipe, tmp_path):
    drawn = pipe("猫" * 16_000, seed=1, steps=1)
    with pytest.raises(ValueError, match=r"cat.jpg must be a PNG or WebP: a JPEG holds 65,527 bytes"):
        drawn.save(tmp_path / "cat.jpg")
    assert not list(tmp_path.iterdir())


def test_a_slice_of_pictures_is_pictures(pipe):
    drawn = pipe("a cat", num_images=3, seed=9)
    assert (len(drawn[1:]), list(drawn[1:].seeds)) == (2, [10, 11])
    np.testing.assert_array_equal(drawn[1:].pixels, drawn.pixels[1:])


def test_records_are_what_facts_say_and_are_sliced_with_them(pipe):
    pictures = pipe(["a", "b", "c"], seed=1, steps=2)
    read = pictures.provenance
    assert [one.seed for one in read] == [1, 2, 3]
    kept = replace(pictures, records=read)
    assert kept.provenance == read
    assert kept[1:].provenance == read[1:]


def test_text_of_the_web_interface_is_read():
    text = (
        "a cat\nin rain, <lora:x:1>\nNegative prompt: dog\nblue\n"
        'Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 4, Size: 512x768, Lora hashes: "x: 1, y: 2"'
    )
    found = read_webui_text(text)
    assert found["Prompt"] == "a cat\nin rain, <lora:x:1>"
    assert found["Negative prompt"] == "dog\nblue"
    assert (found["Size"], found["Lora hashes"]) == ("512x768", "x: 1, y: 2")
    assert sampler_of(found) == ("dpmpp_2m", {"karras": True})
    assert sampler_of({"Sampler": "Euler a"}) == ("euler_ancestral", {})
    assert sampler_of({"Sampler": "Euler", "Schedule type": "Beta"}) == ("euler", {"levels": "beta"})
    assert sampler_of({"Sampler": "DPM++ 2M Exponential"}) == ("dpmpp_2m", {"levels": "exponential"})
    assert sampler_of({"Sampler": "Heun", "Schedule type": "Karras"}) == ("heun", {"karras": True})
    assert sampler_of({"Sampler": "Heun", "Schedule type": "Automatic"}) == ("heun", {})
    assert sampler_of({"Sampler": "DPM++ 2M", "Schedule type": "Automatic"}) == ("dpmpp_2m", {"karras": True})
    assert sampler_of({"Sampler": "DPM++ 3M SDE", "Schedule type": "Automatic"})[1] == {"levels": "exponential"}
    assert sampler_of({"Sampler": "DPM++ 2M", "Schedule type": "Uniform"}) == ("dpmpp_2m", {})
    assert sampler_of({"Sampler": "DPM++ 2M"}) == ("dpmpp_2m", {})  # as before their version 1.9
    assert sampler_of({"Sampler": "DDIM CFG++"}) == ("ddim", {"cfg_pp": True})
    mixed = {"Sampler": "Euler CFG++", "Schedule type": "Beta"}
    assert sampler_of(mixed) == ("euler", {"levels": "beta", "cfg_pp": True})
    assert sampler_of({"Sampler": "Restart"}) == (None, {})
    assert read_webui_text("a cat, 1: 2") == {"Prompt": "a cat, 1: 2"}


@pytest.mark.parametrize(
    ("arguments", "levels"),
    [
        ({"sampler": "dpmpp_2m"}, "Uniform"),  # what they take for "Automatic" would be Karras
        ({"sampler": "dpmpp_2m", "karras": True}, "Karras"),
        ({"sampler": "dpmpp_2m_sde", "levels": "exponential"}, "Exponential"),
        ({"sampler": "euler"}, None),
    ],
)
def test_the_web_interfaces_read_the_noise_levels_that_a_picture_was_drawn_with(pipe, arguments, levels):
    [drawn] = pipe("a cat", seed=1, steps=2, **arguments)
    settings = read_webui_text(drawn.info["parameters"])
    assert settings.get("Schedule type") == levels
    sampler, options = sampler_of(settings)
    assert {"sampler": sampler, **options} == arguments


def test_levels_that_they_do_not_have_are_not_written_as_others(pipe):
    [drawn] = pipe("a cat", seed=1, steps=2, sampler="dpmpp_2m", levels="lu")
    assert "Schedule type" not in read_webui_text(drawn.info["parameters"])


def test_levels_that_are_not_here_are_named():
    assert (
        unread_settings({"Schedule type": "SGM Uniform", "Clip skip": "2"}) == "Clip skip, Schedule type: SGM Uniform"
    )
    assert unread_settings({"Schedule type": "Automatic"}) == unread_settings({"Schedule type": "Karras"}) == ""


def test_brackets_are_written_as_text(pipe, tmp_path):
    prompt, negative = r"rain (heavy) [x] \(", "a\\b (c:1.2)"
    [path] = pipe(prompt, negative_prompt=negative, seed=1, steps=1).save(tmp_path / "rain.png")
    found = read_entries(path).webui
    assert found["Prompt"] == r"rain \(heavy\) \[x\] \\\("
    assert plain_prompt("prompt", found["Prompt"]) == prompt
    assert plain_prompt("negative_prompt", found["Negative prompt"]) == negative


def test_a_hostile_text_of_the_web_interface_is_read_in_no_time():
    for text in (
        "(" * 60_000,
        "(:" * 30_000,
        "[|" * 30_000,
        "(" + ": " * 30_000,
        "[" + "|" * 60_000,
        "(:" + "1" * 60_000,
    ):
        assert plain_prompt("prompt", text) == text
    for text in (" " * 60_000, "a:" * 30_000, 'a:"\\' * 15_000, "a " * 30_000 + ":", '"' * 60_000):
        read_webui_text(text)


def _written(tmp_path, **entries):
    info = PngInfo()
    for name, value in entries.items():
        info.add_text(name, value)
    path = tmp_path / "picture.png"
    Image.new("L", (4, 4)).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "an entry must be an object of format 1"),
        ({"seed": -1}, r"seed must be a whole number from 0 to 2\^64 - 1, got -1"),
        ({"seed": True}, "seed must be a whole number"),
        ({"steps": 1.5}, "steps must be a whole number"),
        ({"columns": 0}, r"columns must be a whole number from 1 to 2\^20, got 0"),
        ({"number": 2**31}, "number must be a whole number from 1"),
        ({"options": []}, "options must be an object, got"),
        ({"model": {"name": "x"}}, "model must be an object of name and files"),
        ({"model": {"name": "x", "files": {"a": 1}}}, "model must be an object of name and files"),
        ({"batch": [2, 2]}, "batch must be a count and a place in it"),
        ({"image": {"sha256": "x", "shape": [-1]}}, "image must be an object of sha256 and shape"),
        ({"strength": float("nan")}, "strength must be a number, got nan"),
        ({"denoising_end": "0.8"}, "denoising_end must be a number, got"),
        ({"apg": [0.5]}, "apg must be two numbers, got"),
        ({"cfg_zero_star": 1}, "cfg_zero_star must be true or false, got 1"),
        ({"guidance_rescale": 10**400}, "guidance_rescale must be a number"),
        ({"table": None}, "table must be a text, got None"),
        ({"\x1b[31m": 1}, r"entries must be among .*\\x1b"),
    ],
)
def test_a_damaged_entry_is_refused(engine, tmp_path, change, message):
    text = sf.sample_pictures(engine, seed=0, steps=1).facts[0]["stepfuse"]
    path = _written(tmp_path, stepfuse=json.dumps({**json.loads(text), **change}))
    with pytest.raises(ValueError, match=message) as caught:
        read_entries(path)
    assert str(caught.value).startswith(f"{path}: what it says of how it was made cannot be read: ")
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting"),
        ("[" * 100_000, "cannot be read"),
        ('{"format": 1, "format": 1}', "a key must be there once"),
        (" " * (MOST_BYTES + 1), "an entry must be at most 1,048,576 bytes, got 1,048,577"),
        ('{"format": 1}', "version, model, sampler, options, table, steps, steps_done, seed is missing"),
    ],
    ids=["cut", "deep", "twice", "long", "empty"],
)
def test_an_entry_that_is_none_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_entries(_written(tmp_path, stepfuse=text))


def test_a_long_text_of_the_web_interface_is_refused(tmp_path):
    with pytest.raises(ValueError, match="parameters must be at most 65,536 characters, got 70,000"):
        read_entries(_written(tmp_path, parameters="x" * 70_000))


def test_exif_of_other_programs_is_none_of_ours(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif).update(
        {ExifTags.Base.MakerNote: b"Nikon\0x", ExifTags.Base.UserComment: b"ASCII\0"}
    )
    path = tmp_path / "photo.jpg"
    Image.new("L", (4, 4)).save(path, exif=exif)
    found = read_entries(path)
    assert (found.provenance, dict(found.webui)) == (None, {})


def test_the_picture_of_the_readme_is_what_the_embedded_model_draws():
    """``make sample`` draws it: that takes seconds, so this compares what it says of itself."""
    made = read_entries(Path(__file__).parents[3] / "docs/fashion.png").provenance
    bundle = sf.Bundle.load("fashion")
    with sf.Engine.load(bundle, threads=1) as engine:
        assert made.table == engine.table().digest
    assert made.model == ModelIdentity.of(bundle)
    assert (made.version, made.number, made.seed, made.columns) == (sf.__version__, 30, 0, 10)
