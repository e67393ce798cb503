"""Pictures asked for over HTTP are those that the engine draws, and say how they were drawn."""

import handmade
import http_service
import numpy as np
import pytest
from http_service import as_levels, image_of, levels_of

import stepfuse as sf

pytest.importorskip("fastapi", reason="needs the extra serve")

from stepfuse.server import create_app


@pytest.fixture(scope="module")
def engine():
    with sf.Engine.load("fashion", deterministic=True, max_rows=4, threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    with sf.TextToImage.load(handmade.write_bundle(tmp_path_factory.mktemp("http") / "bundle"), threads=1) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def service(engine, pipe):
    with http_service.served(create_app({"fashion": engine, "cats": pipe}, warm_up=False)) as service:
        yield service


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [
        ({"num_inference_steps": 3}, {"steps": 3}),
        ({"steps": 4, "guidance_scale": 1.0}, {"steps": 4, "guidance_scale": 1}),
        ({"steps": 3, "sampler": "ddim", "eta": 0.7}, {"steps": 3, "sampler": "ddim", "eta": 0.7}),
        ({"sampler_options": {"karras": True}}, {"karras": True}),
        ({"steps": 3, "negative_prompt": "bag"}, {"steps": 3, "negative_cond": "bag"}),
    ],
    ids=["defaults", "unguided", "noise", "options", "negative"],
)
def test_images_are_those_of_the_engine(service, engine, fields, arguments):
    rest = {"sampler": "dpmpp_2m", "steps": 3} if "sampler_options" in fields else {}
    answer = service.generate("ankle boot", n=2, seed=11, **fields, **rest)
    assert answer.status == 200
    expected = engine.sample(2, cond="ankle boot", seed=11, **arguments, **rest)
    for one, sample in zip(answer.json["data"], expected, strict=True):
        np.testing.assert_array_equal(levels_of(one["b64_json"]), as_levels(sample))


@pytest.mark.parametrize(("prompt", "cond"), [("7", 7), ("", None), ("Ankle-Boot", "ankle boot")])
def test_a_prompt_is_a_class(service, engine, prompt, cond):
    [one] = service.generate(prompt, seed=1, steps=2).json["data"]
    np.testing.assert_array_equal(
        levels_of(one["b64_json"]), as_levels(engine.sample(1, cond=cond, seed=1, steps=2)[0])
    )


def test_a_prompt_is_drawn_as_the_pipeline_draws_it(service, pipe):
    fields = {"negative_prompt": "a dog", "steps": 3, "size": "16x8", "seed": 4}
    answer = service.generate("a red cat", model="cats", n=2, **fields).json
    pictures = pipe("a red cat", num_images=2, negative_prompt="a dog", steps=3, width=16, height=8, seed=4)
    assert answer["size"] == "16x8"
    for one, picture in zip(answer["data"], pictures, strict=True):
        np.testing.assert_array_equal(levels_of(one["b64_json"]), np.asarray(picture))


def test_an_answer_says_what_of_a_prompt_is_not_read(service):
    rule = "a prompt is cut after 6 tokens: 'IN the rain' is not read"
    fields = {"model": "cats", "steps": 2}
    assert service.generate("a red  cat Dog IN the rain", **fields).json["warnings"] == [rule]
    assert service.generate("a cat", negative_prompt="a red  cat Dog IN the rain", **fields).json["warnings"] == [rule]
    [completed] = service.generate("a red  cat Dog IN the rain", **fields, stream=True).events
    assert completed["warnings"] == [rule]
    assert "warnings" not in service.generate("a red cat", **fields).json
    [completed] = service.generate("a red cat", **fields, stream=True).events
    assert "warnings" not in completed


def test_an_answer_says_how_its_pictures_were_drawn(service, engine):
    answer = service.ask(
        "POST", http_service.GENERATIONS, {"prompt": "bag", "n": 2, "steps": 3}, X_Request_ID="order-1"
    )
    first, second = (one["drawn"] for one in answer.json["data"])
    assert answer.headers["x-request-id"] == "order-1"
    assert (first["id"], second["id"]) == ("order-1-0", "order-1-1")
    assert first["seed"] + 1 == second["seed"] < 2**53
    defaults = engine.info.defaults
    assert (first["sampler"], first["steps"], first["guidance_scale"]) == (
        defaults["sampler"],
        3,
        defaults["guidance_scale"],
    )
    assert (first["model"], first["digest"]) == ("fashion", engine.model.weights)
    again = service.generate("bag", steps=3, seed=second["seed"]).json["data"][0]
    np.testing.assert_array_equal(levels_of(again["b64_json"]), levels_of(answer.json["data"][1]["b64_json"]))


def test_a_png_says_how_it_was_drawn(service, engine):
    [one] = service.generate("coat", sampler="dpmpp_2m", steps=3, seed=8).json["data"]
    picture = image_of(one["b64_json"])
    made = sf.Provenance.from_json(picture.text["stepfuse"])
    assert picture.text["seed"] == "8"
    assert made.cond == ["coat"]
    sample = engine.sample(1, cond=made.cond[0], seed=made.seed, **made.sampler_arguments)[0]
    np.testing.assert_array_equal(np.asarray(picture), as_levels(sample))


@pytest.mark.parametrize(("kind", "format"), [("jpeg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_every_format_is_a_file_of_it(service, kind, format):
    [one] = service.generate(steps=2, seed=1, output_format=kind).json["data"]
    picture = image_of(one["b64_json"])
    assert (picture.format, picture.size) == (format, (28, 28))
    if kind != "png":
        [small] = service.generate(steps=2, seed=1, output_format=kind, output_compression=5).json["data"]
        assert len(small["b64_json"]) < len(one["b64_json"])


def test_a_request_as_web_interfaces_make_it(service):
    body = {"model": "cats", "prompt": "a cat", "n": 1, "size": "8x8", "response_format": "b64_json"}
    assert image_of(service.ask("POST", http_service.GENERATIONS, body).json["data"][0]["b64_json"]).size == (8, 8)


def test_fields_that_are_null_are_left_out(service):
    names = (
        "model",
        "n",
        "size",
        "quality",
        "response_format",
        "output_format",
        "user",
        "stream",
        "seed",
        "background",
    )
    assert service.generate(steps=1, **dict.fromkeys(names)).status == 200


def test_openai_s_defaults_of_what_is_none_here_are_taken(service):
    """As LibreChat's tool for DALL-E 3 sends them."""
    assert service.generate(steps=1, style="vivid", quality="standard", n=1).status == 200


def test_the_openai_client_generates(service, engine):
    openai = pytest.importorskip("openai", reason="needs OpenAI's client")
    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["fashion", "cats"]
    assert client.models.retrieve("fashion").classes == list(engine.info.cond["class_labels"].names)
    own = {"seed": 5, "num_inference_steps": 3}
    images = client.images.generate(model="fashion", prompt="bag", n=2, output_format="png", extra_body=own)
    expected = engine.sample(2, cond="bag", steps=3, seed=5)
    for one, sample in zip(images.data, expected, strict=True):
        np.testing.assert_array_equal(levels_of(one.b64_json), as_levels(sample))
    with pytest.raises(openai.NotFoundError, match="there is no model 'fashio' \\(did you mean fashion\\?\\)"):
        client.images.generate(model="fashio", prompt="bag")
    with pytest.raises(openai.BadRequestError, match="n must be at most 10, got 11") as refused:
        client.images.generate(prompt="bag", n=11)
    assert (refused.value.param, refused.value.type) == ("n", "invalid_request_error")


def test_the_schema_names_every_field_with_its_bounds_and_examples(service):
    schema = service.ask("GET", "/openapi.json").json
    fields = schema["components"]["schemas"]["Generation"]["properties"]
    assert all("description" in field for field in fields.values())
    post = schema["paths"][http_service.GENERATIONS]["post"]
    example = post["requestBody"]["content"]["application/json"]["example"]
    assert service.ask("POST", http_service.GENERATIONS, example).status == 200
    assert {"200", "400", "401", "404", "413", "429", "500", "503", "504"} <= post["responses"].keys()
    assert post["responses"]["429"]["content"]["application/json"]["schema"]["$ref"].endswith("/Failure")
