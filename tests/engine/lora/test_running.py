"""LoRAs that requests choose of a running engine: the results of bundles with the same LoRAs fused in."""

import gc
import threading

import lora_files
import numpy as np
import pytest
import tolerances

import stepfuse as sf
from stepfuse.export import fuse_lora

NAME = "StableDiffusionPipeline"
FREE = 1 << 30  # bytes, more than enough
STEPS = 3
LAYERS = {
    "one": {"unet": lora_files.UNET},
    "two": {"unet": lora_files.ATTENTION},
    "text": {"text_encoder": lora_files.CLIP},
}


@pytest.fixture(scope="module")
def bundle(exported):
    return exported(NAME)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """LoRAs of all the UNet's layers, of its attention with another rank, and of the text encoder."""
    folder = tmp_path_factory.mktemp("loras")
    return {
        name: lora_files.write_random_lora(folder / f"{name}.safetensors", NAME, layers, seed=seed, rank=2 + seed)
        for seed, (name, layers) in enumerate(LAYERS.items())
    }


@pytest.fixture(scope="module")
def engine(bundle, files):
    with sf.Engine.load(bundle, threads=1, max_rows=4, lora_bytes=FREE) as found:
        for name in ("one", "two"):
            found.add_lora(name, files[name])
        yield found


def arguments(engine, **more):
    """Of one sample, conditioned at random."""
    [(name, spec)] = engine.info.cond.items()
    cond = {name: sf.normal(7, (1, *spec.shape))}
    return {"cond": cond, "steps": STEPS, "guidance_scale": 3.0, "seed": 5, **more}


def request(engine, **more):
    given = arguments(engine, **more)
    return sf.Request(**{**given, "cond": {name: value[0] for name, value in given["cond"].items()}})


@pytest.fixture(scope="module")
def fused_bundle(bundle, files, tmp_path_factory):
    """``fused_bundle({"one": 0.8})``: the bundle with these LoRAs fused in."""
    made = {(): bundle}

    def fuse(lora):
        if (key := tuple(lora.items())) not in made:
            *others, (name, scale) = key
            folder = tmp_path_factory.mktemp("fused") / "bundle"
            made[key] = fuse_lora(fuse(dict(others)), files[name], folder, scale=scale)
        return made[key]

    return fuse


@pytest.fixture(scope="module")
def fused(fused_bundle):
    """``fused({"one": 0.8})``: a sample of that bundle."""
    found = {}

    def sample(lora):
        key = tuple(lora.items())
        if key not in found:
            with sf.Engine.load(fused_bundle(lora), threads=1) as engine:
                found[key] = engine.sample(1, **arguments(engine))[0]
        return found[key]

    return sample


def assert_same(found, expected):
    assert np.abs(found - expected).max() < tolerances.LORA * np.abs(expected).max()


SETS = [{"one": 0.8}, {"two": 1.0}, {"one": -0.4}, {"one": 0.5, "two": 0.7}, {"two": -1.0, "one": 2.0}]


@pytest.mark.parametrize("lora", SETS, ids=str)
def test_samples_are_those_of_the_bundle_with_the_loras_fused_in(engine, fused, lora):
    found = engine.sample(1, **arguments(engine), lora=lora)[0]
    assert_same(found, fused(lora))
    assert np.abs(found - fused({})).max() > 100 * tolerances.LORA * np.abs(found).max()


def test_without_loras_an_engine_draws_what_the_plain_bundle_does(engine, fused):
    plain = engine.sample(1, **arguments(engine))[0]
    assert np.abs(plain - fused({})).max() < 1e-5 * np.abs(plain).max()
    for lora in ({}, {"one": 0.0}, {"one": 0, "two": -0.0}):
        np.testing.assert_array_equal(engine.sample(1, **arguments(engine), lora=lora)[0], plain)


def test_a_scale_of_zero_leaves_a_lora_out_of_its_set(engine):
    both = engine.sample(1, **arguments(engine), lora={"one": 0.0, "two": 0.7})
    np.testing.assert_array_equal(both, engine.sample(1, **arguments(engine), lora={"two": 0.7}))


def test_the_noise_of_an_image_is_that_of_the_bundle_with_the_lora_fused_in(engine, fused_bundle):
    [image] = engine.sample(1, **arguments(engine), lora={"one": 0.8})
    call = {"cond": arguments(engine)["cond"], "steps": STEPS}
    with sf.Engine.load(fused_bundle({"one": 0.8}), threads=1) as other:
        expected = other.encode(image[None], **call)
    assert_same(engine.encode(image[None], **call, lora={"one": 0.8}), expected)
    assert np.abs(engine.encode(image[None], **call) - expected).max() > 100 * tolerances.LORA * np.abs(expected).max()


def test_samples_of_one_call_may_each_choose(engine, fused):
    sets = [{"one": 0.8}, None, {"two": 1.0}, {"one": 0.8}]
    given = arguments(engine, seed=[5] * 4)
    before = engine.stats().forwards
    found = engine.sample(
        4, **{**given, "cond": {name: np.repeat(value, 4, 0) for name, value in given["cond"].items()}}, lora=sets
    )
    assert engine.stats().forwards - before == 3 * STEPS  # a forward a set and step
    for image, lora in zip(found, sets, strict=True):
        assert_same(image, fused(lora or {}))


def test_requests_with_different_sets_are_drawn_beside_each_other(engine, fused):
    sets = [*SETS, {}, *SETS[:2]]
    futures = [engine.submit(request(engine, lora=lora)) for lora in sets]
    for future, lora in zip(futures, sets, strict=True):
        assert_same(future.result(60), fused(lora))


def test_the_order_of_names_makes_no_other_set(engine):
    adapters = engine._service.adapters
    one = adapters.choose({"one": 0.5, "two": 0.7})
    assert adapters.choose({"two": 0.7, "one": 0.5}) is one
    assert adapters.choose({"two": 0.7, "one": 0.6}) is not one


BAD = [
    (
        {"tow": 1.0},
        ValueError,
        r"lora must be of the LoRAs that are registered \(one, two\), got 'tow' \(did you mean two\?\)",
    ),
    ({"tow": 0.0}, ValueError, "got 'tow'"),
    ({"one": float("nan")}, ValueError, "lora must have finite scales, at most 3.40282e.38, got nan for one"),
    ({"one": float("inf")}, ValueError, "lora must have finite scales"),
    ({"one": 1e300}, ValueError, "lora must have finite scales"),
    ({"one": "0.8"}, TypeError, "lora's scales must be a number, got '0.8'"),
    ({"one": True}, TypeError, "lora's scales must be a number, got True"),
    ({1: 0.8}, ValueError, "lora must be of the LoRAs that are registered"),
    ("one", TypeError, "lora must be a dict of scales by name, got 'one'"),
]


@pytest.mark.parametrize(("lora", "error", "message"), BAD, ids=str)
def test_what_is_no_choice_is_refused_at_submit(engine, lora, error, message):
    with pytest.raises(error, match=message):
        engine.submit(request(engine, lora=lora))
    with pytest.raises(error, match=message):
        engine.sample(1, **arguments(engine), lora=lora)


def test_an_engine_without_memory_for_loras_refuses_them(bundle, files):
    with sf.Engine.load(bundle, threads=1) as engine:
        assert engine.loras == {}
        for call in (lambda: engine.add_lora("one", files["one"]), lambda: engine.remove_lora("one")):
            with pytest.raises(ValueError, match="load it with lora_bytes"):
                call()
        with pytest.raises(ValueError, match=r"lora must be left out where LoRAs have no memory, got \{'one': 0.8\}"):
            engine.submit(request(engine, lora={"one": 0.8}))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"lora_bytes": -1}, ValueError, "lora_bytes must be at least 0, got -1"),
        ({"lora_bytes": 1.5}, TypeError, "lora_bytes must be a whole number, got 1.5"),
        ({"lora_bytes": 1, "backend": "openvino"}, ValueError, "lora_bytes must be left out for backend 'openvino'"),
        ({"lora_bytes": 1, "backend": "auto"}, ValueError, "lora_bytes must be left out for backend 'auto'"),
        ({"lora_bytes": 1, "device": "cuda"}, ValueError, "lora_bytes must be left out for an engine on 'cuda'"),
        ({"lora_bytes": 1, "session": object()}, ValueError, "lora_bytes must be left out for a session of its own"),
    ],
)
def test_memory_for_loras_that_nothing_would_use_is_refused(bundle, given, error, message):
    with pytest.raises(error, match=message):
        sf.Engine.load(bundle, **given)


def test_a_graph_of_another_exporter_is_refused():
    with pytest.raises(sf.LoraError, match=r"denoiser\.onnx takes no LoRA while it runs: .*export it with stepfuse"):
        sf.Engine.load("fashion", lora_bytes=1)


def test_names_are_new_and_printable(engine, files):
    for name, error, message in (
        ("one", ValueError, "name must be new, got 'one', which is registered: remove it first"),
        ("", ValueError, "name must have 1 to 200 printable characters"),
        ("a\nb", ValueError, "name must have 1 to 200 printable characters"),
        (1, TypeError, "name must be a text, got 1"),
    ):
        with pytest.raises(error, match=message):
            engine.add_lora(name, files["two"])
    with pytest.raises(ValueError, match=r"name must be of the LoRAs that are registered \(one, two\), got 'three'"):
        engine.remove_lora("three")


def test_a_lora_of_the_text_encoder_is_refused_by_an_engine(engine, files):
    with pytest.raises(
        sf.LoraError, match="an Engine runs no text encoder; load the pipeline with TextToImage, or fuse"
    ):
        engine.add_lora("text", files["text"])


def test_a_lora_of_another_network_is_refused(engine, tmp_path):
    other = lora_files.write_random_lora(
        tmp_path / "xl.safetensors", "StableDiffusion3Pipeline", {"transformer": ["to_q"]}
    )
    with pytest.raises(sf.LoraError, match=r"xl must fit .*: 0 of \d+ pairs do; this pipeline has no"):
        engine.add_lora("xl", other)
    assert list(engine.loras) == ["one", "two"]


def test_what_is_registered_is_listed(engine, files):
    import hashlib

    infos = engine.loras
    assert list(infos) == ["one", "two"]
    assert infos["two"].sha256 == hashlib.sha256(files["two"].read_bytes()).hexdigest()
    assert 0 < infos["two"].weights < infos["one"].weights
    assert 0 < infos["two"].nbytes < infos["one"].nbytes


def test_adding_one_changes_nothing_for_what_runs(bundle, files):
    with sf.Engine.load(bundle, threads=1, lora_bytes=FREE) as engine:
        expected = engine.sample(1, **arguments(engine, steps=30))[0]
        future = engine.submit(request(engine, steps=30))
        engine.add_lora("one", files["one"])
        with_lora = engine.submit(request(engine, steps=30, lora={"one": 0.5}))
        np.testing.assert_array_equal(future.result(60), expected)
        assert np.abs(with_lora.result(60) - expected).max() > 0


def test_a_lora_that_is_removed_is_kept_for_those_that_have_chosen_it(bundle, files, fused):
    started, proceed = threading.Event(), threading.Event()
    with sf.Engine.load(bundle, threads=1, lora_bytes=FREE) as engine:
        engine.add_lora("style", files["one"])

        def pause(step, total, preview):
            started.set()
            assert proceed.wait(60)

        found = []
        thread = threading.Thread(
            target=lambda: found.append(engine.sample(1, **arguments(engine), lora={"style": 0.8}, callback=pause)[0])
        )
        thread.start()
        assert started.wait(60)
        engine.remove_lora("style")
        assert engine.loras == {}
        with pytest.raises(ValueError, match=r"registered \(none\), got 'style'"):
            engine.submit(request(engine, lora={"style": 0.8}))
        engine.add_lora("style", files["two"])  # the name is free
        assert_same(engine.sample(1, **arguments(engine), lora={"style": 1.0})[0], fused({"two": 1.0}))
        proceed.set()
        thread.join(60)
        assert_same(found[0], fused({"one": 0.8}))


def test_memory_is_bounded_and_freed_with_the_last_request(bundle, files, engine):
    one, two = (engine.loras[name].nbytes for name in ("one", "two"))
    with sf.Engine.load(bundle, threads=1, lora_bytes=one + two - 1) as small:
        small.add_lora("one", files["one"])
        with pytest.raises(
            sf.LoraError, match=r"the factors of two must fit lora_bytes=\d+ .* remove one, or load with"
        ):
            small.add_lora("two", files["two"])
        future = small.submit(request(small, steps=200, lora={"one": 1.0}))
        small.remove_lora("one")
        with pytest.raises(sf.LoraError, match=r"and .* of removed ones that requests use"):
            small.add_lora("two", files["two"])
        future.cancel()
        small.sample(1, **arguments(small))  # the loop has let go of it
        del future
        gc.collect()
        small.add_lora("two", files["two"])
        assert list(small.loras) == ["two"]


def test_a_closed_engine_takes_none(bundle, files):
    engine = sf.Engine.load(bundle, threads=1, lora_bytes=FREE)
    engine.close()
    with pytest.raises(sf.EngineClosed):
        engine.add_lora("one", files["one"])
