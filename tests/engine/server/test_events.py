"""Pictures as they come into being: the stream's events against the engine's own previews."""

import handmade
import http_service
import numpy as np
import pytest
from http_service import as_levels, levels_of

import stepfuse as sf

pytest.importorskip("fastapi", reason="needs the extra serve")

from stepfuse.server import create_app
from stepfuse.server.events import preview_steps


@pytest.fixture(scope="module")
def engine():
    with sf.Engine.load("fashion", deterministic=True, max_rows=4, threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    with sf.TextToImage.load(handmade.write_bundle(tmp_path_factory.mktemp("events") / "bundle"), threads=1) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def service(engine, pipe):
    with http_service.served(create_app({"fashion": engine, "cats": pipe}, warm_up=False)) as service:
        yield service


@pytest.mark.parametrize(
    ("number", "total", "steps"),
    [(0, 8, []), (1, 8, [4]), (3, 8, [2, 4, 6]), (3, 3, [1, 2]), (100, 4, [1, 2, 3]), (2, 1, [])],
)
def test_previews_come_at_even_steps(number, total, steps):
    assert preview_steps(number, total) == steps


def test_previews_are_the_clean_estimates_and_the_end_the_image(service, engine):
    arguments = {"steps": 6, "seed": 3}
    answer = service.generate("bag", stream=True, partial_images=5, **arguments)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *previews, completed = answer.events
    estimates = {}
    engine.sample(1, cond="bag", callback=lambda step, total, x0: estimates.update({step: x0[0]}), **arguments)
    assert previews  # a reader misses those that came too fast
    assert [one["partial_image_index"] for one in previews] == list(range(len(previews)))
    for event in previews:
        assert event["type"] == "image_generation.partial_image"
        np.testing.assert_array_equal(levels_of(event["b64_json"]), as_levels(estimates[event["step"]]))
    assert completed["type"] == "image_generation.completed"
    image = engine.sample(1, cond="bag", **arguments)[0]
    np.testing.assert_array_equal(levels_of(completed["b64_json"]), as_levels(image))
    assert completed["drawn"]["seed"] == 3


def test_previews_of_latents_are_decoded_at_half_the_size(service, pipe):
    arguments = {"steps": 240, "seed": 5}  # so many that even a slow reader sees some before the last
    fields = {"model": "cats", "stream": True, "partial_images": 3, **arguments}
    *previews, completed = service.generate("a cat", **fields).events
    estimates = {}
    pipe("a cat", **arguments, callback=lambda step, total, x0: estimates.update({step: x0.copy()}))
    assert previews
    for event in previews:
        whole = estimates[event["step"]]
        halved = (whole[..., ::2, ::2] + whole[..., 1::2, ::2] + whole[..., ::2, 1::2] + whole[..., 1::2, 1::2]) / 4
        expected = np.round(handmade.decode(halved)[0] * 255)
        assert event["size"] == "4x4"
        assert np.abs(levels_of(event["b64_json"]) - expected).max() <= 1  # a half is rounded either way
    np.testing.assert_array_equal(levels_of(completed["b64_json"]), np.asarray(pipe("a cat", **arguments)[0]))


def test_several_pictures_share_a_stream(service, engine):
    events = service.generate("coat", n=3, stream=True, steps=2, seed=9).events
    assert {event["type"] for event in events} == {"image_generation.completed"}
    samples = engine.sample(3, cond="coat", steps=2, seed=9)
    assert sorted(event["image_index"] for event in events) == [0, 1, 2]
    for event in events:
        np.testing.assert_array_equal(levels_of(event["b64_json"]), as_levels(samples[event["image_index"]]))


def test_what_is_refused_is_no_stream(service):
    answer = service.generate("cats and dogs", stream=True)
    assert (answer.status, answer.error["param"]) == (400, "prompt")


def test_a_failure_ends_the_stream_with_an_error(service):
    answer = service.generate("bag", stream=True, steps=250, timeout_ms=40)
    assert answer.status == 200
    assert answer.body.decode().rstrip().splitlines()[-2] == "event: error"
    assert answer.events[-1]["error"]["code"] == "timeout"


def test_the_openai_client_streams(service, engine):
    openai = pytest.importorskip("openai", reason="needs OpenAI's client")
    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)
    own = {"seed": 2, "num_inference_steps": 8}
    stream = client.images.generate(prompt="bag", stream=True, partial_images=2, extra_body=own)
    *previews, completed = stream
    assert {one.type for one in previews} <= {"image_generation.partial_image"}
    assert completed.type == "image_generation.completed"
    assert (completed.output_format, completed.size, completed.usage.total_tokens) == ("png", "28x28", 0)
    image = engine.sample(1, cond="bag", steps=8, seed=2)[0]
    np.testing.assert_array_equal(levels_of(completed.b64_json), as_levels(image))
    with pytest.raises(openai.APIError, match="was not finished within its timeout"):
        list(client.images.generate(prompt="bag", stream=True, extra_body={"steps": 250, "timeout_ms": 40}))
