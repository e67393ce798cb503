"""Pictures that begin as another one, and pictures that are kept under a url."""

import io
import re

import handmade
import http_service
import numpy as np
import pytest
from http_service import as_levels, bomb, image_of, levels_of, png
from PIL import Image

import stepfuse as sf

pytest.importorskip("fastapi", reason="needs the extra serve")

from stepfuse.server import Limits, create_app
from stepfuse.server.store import Store

LEVELS = np.random.default_rng(0).integers(0, 256, (28, 28))
MASK = np.where(np.arange(28) < 14, 255, 0) * np.ones((28, 1), int)
IMAGE = np.float32(LEVELS[None]) / np.float32(255) * 2 - 1


@pytest.fixture(scope="module")
def engine():
    with sf.Engine.load("fashion", deterministic=True, max_rows=2, threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    with sf.TextToImage.load(handmade.write_bundle(tmp_path_factory.mktemp("edits") / "bundle"), threads=1) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def service(engine, pipe):
    limits = Limits(pixels=28 * 28, upload_bytes=100_000, stored_bytes=4000)
    with http_service.served(create_app({"fashion": engine, "cats": pipe}, limits=limits, warm_up=False)) as service:
        yield service


@pytest.mark.parametrize("form", ["white", "opaque", "transparent", "none"])
def test_an_edit_is_that_of_the_engine(service, engine, form):
    masks = {
        "white": [("mask", png(MASK))],
        "opaque": [("mask", png(np.dstack([MASK] * 3 + [np.full((28, 28), 255)])))],
        "transparent": [("mask", png(np.dstack([np.zeros((28, 28, 3)), 255 - MASK])))],
        "none": [],
    }[form]
    arguments = {"steps": 4, "seed": 3, "strength": 0.75}
    answer = service.edit([("image", png(LEVELS)), *masks], prompt="bag", **arguments)
    given = {"mask": MASK[None] / 255} if masks else {}
    [expected] = engine.sample(1, cond="bag", image=IMAGE, **given, **arguments)
    [one] = answer.json["data"]
    np.testing.assert_array_equal(levels_of(one["b64_json"]), as_levels(expected))
    made = sf.Provenance.from_json(image_of(one["b64_json"]).text["stepfuse"])
    assert (made.strength, made.steps_done) == (0.75, 3)


def test_an_edit_of_a_prompt_is_that_of_the_pipeline(service, pipe):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (8, 12, 3), dtype=np.uint8))
    answer = service.edit([("image", png(image))], prompt="a red cat", model="cats", steps=4, seed=1, strength=0.5)
    [expected] = pipe("a red cat", image=image, steps=4, seed=1, strength=0.5)
    assert answer.json["size"] == "12x8"
    np.testing.assert_array_equal(levels_of(answer.json["data"][0]["b64_json"]), np.asarray(expected))


def test_an_image_of_another_size_is_scaled_where_the_size_is_said(service):
    twice = png(np.kron(LEVELS[:14, :14], np.ones((1, 1))))
    answer = service.edit([("image", twice)], prompt="bag", steps=2)
    assert (answer.status, answer.error["param"]) == (400, "image")
    assert answer.error["message"] == "image must be 28 x 28 pixels for this model, got 14 x 14"
    assert service.edit([("image", twice)], prompt="bag", steps=2, size="28x28").status == 200


def test_an_edit_may_be_watched(service):
    answer = service.edit([("image", png(LEVELS))], prompt="bag", steps=3, stream="true", partial_images=1)
    assert answer.events[-1]["type"] == "image_edit.completed"


@pytest.mark.parametrize(
    ("files", "fields", "param", "message"),
    [
        ([], {}, "image", "image must be given"),
        ([("image", b"GIF89a")], {}, "image", "image must be a PNG, JPEG or WebP file, got 6 bytes that are none"),
        ([("image", png(LEVELS)[:200])], {}, "image", "image must be a PNG, JPEG or WebP file, got 200 bytes"),
        ([("image", png(np.zeros((29, 28))))], {}, "image", "image must have at most 784 pixels, got 28 x 29"),
        ([("image", bomb())], {}, "image", "image must"),
        ([("image", png(LEVELS)), ("image[]", png(LEVELS))], {}, "image", "image must be given once"),
        ([("image", png(LEVELS)), ("mask", png(MASK, np.uint16, transparency=0))], {}, "mask", "mask must not be"),
        ([("image", png(LEVELS)), ("mask", png(MASK[:14]))], {}, "mask", "mask must be 28 x 28 pixels for this model"),
        ([("image", png(LEVELS))], {"strength": 1.5}, "strength", "strength must be at most 1, got '1.5'"),
        ([("image", png(LEVELS))], {"n": "two"}, "n", "n must be a valid integer.*, got 'two'"),
        ([("image", png(LEVELS))], {"markup": 1}, "markup", "markup is no field of this request"),
        ([("image", bytes(200_000))], {}, None, "a body must be at most 100 kB here, got 200 kB"),
    ],
)  # fmt: skip
def test_what_cannot_be_edited(service, files, fields, param, message):
    answer = service.edit(files, **{"prompt": "bag", "steps": 2, **fields})
    assert (answer.status, answer.error["param"]) == (413 if param is None else 400, param)
    assert re.match(message, answer.error["message"]), answer.error["message"]


def test_an_edit_is_a_form(service):
    answer = service.ask("POST", http_service.EDITS, {"prompt": "bag"})
    assert (answer.status, answer.error["code"]) == (400, "no_form")


def test_the_openai_client_edits(service, engine):
    openai = pytest.importorskip("openai", reason="needs OpenAI's client")
    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)
    own = {
        "num_inference_steps": 4,
        "seed": 6,
        "sampler": "dpmpp_2m",
        "sampler_options": {"karras": True},
        "strength": 0.5,
    }
    transparent = png(np.dstack([np.zeros((28, 28, 3)), 255 - MASK]))
    images = client.images.edit(
        image=("image.png", png(LEVELS)), mask=("mask.png", transparent), prompt="bag", extra_body=own
    )
    arguments = {"steps": 4, "seed": 6, "sampler": "dpmpp_2m", "karras": True, "strength": 0.5}
    [expected] = engine.sample(1, cond="bag", image=IMAGE, mask=MASK[None] / 255, **arguments)
    np.testing.assert_array_equal(levels_of(images.data[0].b64_json), as_levels(expected))


def test_a_url_has_the_file_until_it_is_dropped(service, engine):
    urls = []
    for seed in range(4):  # of which the store holds two or three
        [one] = service.generate("bag", steps=2, seed=seed, response_format="url").json["data"]
        assert one["url"].startswith(f"{service.url}/v1/images/")
        urls.append(one["url"].removeprefix(service.url))
    last = service.ask("GET", urls[-1])
    assert (last.status, last.headers["content-type"]) == (200, "image/png")
    assert last.headers["x-content-type-options"] == "nosniff"
    picture = Image.open(io.BytesIO(last.body))
    np.testing.assert_array_equal(np.asarray(picture), as_levels(engine.sample(1, cond="bag", steps=2, seed=3)[0]))
    gone = service.ask("GET", urls[0])
    assert (gone.status, gone.error["code"]) == (404, "not_found")
    assert service.ask("GET", "/v1/images/../content").status == 404


def test_a_store_is_bounded_in_bytes_and_time():
    now = [0.0]
    store = Store(10, 5.0, clock=lambda: now[0])
    first, second = store.put(b"12345", "image/png"), store.put(b"1234", "image/jpeg")
    assert store.get(first)[0].data == b"12345"
    now[0] = 1.0
    third = store.put(b"12", "image/png")  # the oldest makes room
    assert store.get(first) is None
    found, left = store.get(second)
    assert (found.media_type, left) == ("image/jpeg", 4.0)
    now[0] = 5.0
    assert store.get(second) is None
    assert store.get(third) is not None
    with pytest.raises(ValueError, match="response_format must be b64_json for a file above 10 bytes, got 11"):
        store.put(bytes(11), "image/png")
