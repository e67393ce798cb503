"""Pictures that ControlNets follow, as JSON, forms and web interfaces send them: the pipeline's own pictures."""

import base64
import json
import re

import handmade
import http_service
import numpy as np
import pytest
from http_service import bomb, levels_of, png
from PIL import Image

import stepfuse as sf

pytest.importorskip("fastapi", reason="needs the extra serve")

from stepfuse.server import Limits, create_app

EDGES, DEPTH = (np.random.default_rng(seed).integers(64, 256, (8, 12, 3)).astype(np.uint8) for seed in (1, 2))
ASKED = {"model": "controlled", "steps": 4, "seed": 5}
DRAWN = {"steps": 4, "seed": 5}


@pytest.fixture(scope="module")
def pipes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("controls")
    bundles = {"controlled": ("edges", "depth"), "one": ("edges",), "plain": ()}
    made = {name: handmade.write_bundle(folder / name, controls=controls) for name, controls in bundles.items()}
    pipes = {name: sf.TextToImage.load(bundle, threads=1) for name, bundle in made.items()}
    yield pipes
    for pipe in pipes.values():
        pipe.close()


@pytest.fixture(scope="module")
def pipe(pipes):
    return pipes["controlled"]


@pytest.fixture(scope="module")
def service(pipes):
    limits = Limits(pixels=16 * 16, body_bytes=2000, upload_bytes=100_000)
    with http_service.served(create_app(pipes, limits=limits, warm_up=False)) as service:
        yield service


def encoded(levels):
    return base64.b64encode(png(levels)).decode()


def picture(levels):
    return Image.fromarray(levels)


def shown(answer):
    return levels_of(answer.json["data"][0]["b64_json"])


CALLS = {
    "one": ({"edges": {}}, {"control": {"edges": EDGES}}),
    "scale": ({"edges": {"scale": 0.5}}, {"control": {"edges": EDGES}, "control_scale": 0.5}),
    "range": ({"depth": {"range": [0.25, 0.75]}}, {"control": {"depth": DEPTH}, "control_range": (0.25, 0.75)}),
    "both": (
        {"edges": {"scale": -0.4, "range": [0, 0.5]}, "depth": {"scale": 0.7}},
        {
            "control": {"edges": EDGES, "depth": DEPTH},
            "control_scale": {"edges": -0.4, "depth": 0.7},
            "control_range": {"edges": (0, 0.5)},
        },
    ),
}
LEVELS = {"edges": EDGES, "depth": DEPTH}


def expected(pipe, arguments, **more):
    control = {name: picture(levels) for name, levels in arguments["control"].items()}
    [found] = pipe("a red cat", **{**DRAWN, **arguments, **more, "control": control})
    return np.asarray(found)


@pytest.mark.parametrize("call", CALLS)
def test_a_picture_is_that_of_the_pipeline(service, pipe, call):
    fields, arguments = CALLS[call]
    control = {name: {"image": encoded(LEVELS[name]), **one} for name, one in fields.items()}
    got = shown(service.generate("a red cat", control=control, **ASKED))
    np.testing.assert_array_equal(got, expected(pipe, arguments))
    [plain] = pipe("a red cat", width=12, height=8, **DRAWN)
    assert (got != np.asarray(plain)).any()
    assert (got.shape, np.asarray(plain).shape) == ((8, 12, 3),) * 2


def test_several_pictures_follow_the_same(service, pipe):
    control = {"edges": {"image": f"data:image/png;base64,{encoded(EDGES)}"}}
    answer = service.generate("a red cat", n=2, size="8x8", control=control, **ASKED)
    want = pipe("a red cat", num_images=2, width=8, height=8, control={"edges": picture(EDGES)}, **DRAWN)
    for one, image in zip(answer.json["data"], want, strict=True):
        np.testing.assert_array_equal(levels_of(one["b64_json"]), np.asarray(image))


@pytest.mark.parametrize("form", ["entries", "json"])
def test_an_edit_follows_pictures_too(service, pipe, form):
    image = np.random.default_rng(3).integers(0, 256, (8, 12, 3)).astype(np.uint8)
    files, given = [("image", png(image))], {}
    one = {"image": encoded(EDGES), "scale": 0.5, "range": [0, 0.5]}
    if form == "json":
        given = {"control": json.dumps({"edges": one})}
    else:
        files.append(("control[edges][image]", png(EDGES)))
        given = {"control[edges][scale]": 0.5, "control[edges][range]": "[0, 0.5]"}
    answer = service.edit(files, prompt="a red cat", strength=0.5, **given, **ASKED)
    arguments = {"control": {"edges": EDGES}, "control_scale": 0.5, "control_range": (0, 0.5)}
    want = expected(pipe, arguments, image=picture(image), strength=0.5)
    np.testing.assert_array_equal(shown(answer), want)


def test_openai_s_client_sends_values_of_a_list_one_by_one(service, pipe):
    client = pytest.importorskip("openai").OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)
    image = np.random.default_rng(3).integers(0, 256, (8, 12, 3)).astype(np.uint8)
    own = {"control": {"edges": {"image": encoded(EDGES), "range": [0, 0.5]}}, "steps": 4, "seed": 5, "strength": 0.5}
    answer = client.images.edit(model="controlled", image=("a.png", png(image)), prompt="a red cat", extra_body=own)
    want = expected(pipe, {"control": {"edges": EDGES}, "control_range": (0, 0.5)}, image=picture(image), strength=0.5)
    np.testing.assert_array_equal(levels_of(answer.data[0].b64_json), want)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"control[edges]": '{"scale": 1}', "control[edges][scale]": 1}, "'control.edges.scale' must be given once"),
        ({"control[edges][scale]": 1, "control[edges][scale][]": 1}, "'control.edges.scale' must be given once"),
        ({"control[edges][scale][x]": 1}, r"control\[edges\]\[scale\]\[x\] is no field of this request"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(service, fields, message):
    image = png(np.zeros((8, 12, 3), np.uint8))
    answer = service.edit([("image", image)], prompt="a red cat", **fields, **ASKED)
    assert answer.status == 400
    assert re.search(message, answer.error["message"]), answer.error["message"]


def unit(levels=EDGES, **fields):
    return {"image": encoded(levels), **fields}


UNITS = {
    "named": ([unit(model="edges [0123abcd]", weight=0.5, module="none", threshold_a=64)], "scale"),
    "off": ([unit(model="edges", weight=0.5), {"enabled": False, "model": "depth"}], "scale"),
    "range": ([unit(DEPTH, model="depth", guidance_start=0.25, guidance_end=0.75, control_mode="Balanced")], "range"),
}


@pytest.mark.parametrize("case", UNITS)
def test_web_interfaces_send_units(service, pipe, case):
    units, call = UNITS[case]
    settings = {"override_settings": {"sd_model_checkpoint": "controlled"}, "alwayson_scripts": {}}
    settings["alwayson_scripts"] = {"ControlNet" if case == "off" else "controlnet": {"args": units}}
    answer = service.ask("POST", "/sdapi/v1/txt2img", {"prompt": "a red cat", "steps": 4, "seed": 5, **settings})
    assert answer.status == 200, answer.error
    np.testing.assert_array_equal(levels_of(answer.json["images"][0]), expected(pipe, CALLS[call][1]))
    assert "alwayson_scripts" not in answer.json["parameters"]


def test_the_only_controlnet_needs_no_name(service, pipes):
    settings = {"override_settings": {"sd_model_checkpoint": "one"}, "seed": 5}
    scripts = {"controlnet": {"args": [unit()]}}
    answer = service.ask(
        "POST", "/sdapi/v1/txt2img", {"prompt": "a red cat", "steps": 4, "alwayson_scripts": scripts, **settings}
    )
    want = expected(pipes["one"], {"control": {"edges": EDGES}})
    np.testing.assert_array_equal(levels_of(answer.json["images"][0]), want)


def test_models_say_which_there_are(service):
    found = {one["id"]: one["controls"] for one in service.ask("GET", "/v1/models").json["data"]}
    assert found == {"controlled": ["edges", "depth"], "one": ["edges"], "plain": []}
    assert "controls" in json.dumps(service.ask("GET", "/openapi.json").json)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"control": {"pose": {"image": "x"}}}, "control", "control must have names among edges, depth, got 'pose'"),
        ({"control": {"edges": {"image": "!"}}}, "control.edges.image", "must be a picture in base64, got '!'"),
        ({"control": {"edges": {"image": "AAAA"}}}, "control.edges.image", "must be a PNG, JPEG or WebP file, got 3 b"),
        ({"control": {"edges": {"scale": 1}}}, "control.edges.image", "control.edges.image must be given"),
        ({"control": {"edges": unit(strength=1)}}, "control.edges.strength", "is no field of this request, got 1"),
        ({"control": {"edges": unit(range=[0.5, 0.5])}}, "control.range", r"0 <= begin < end <= 1, got \(0.5, 0.5\)"),
        ({"control": {"edges": unit(range=[1])}}, "control.edges.range.1", "must be given"),
        ({"control": {"edges": unit(np.zeros((17, 16, 3)))}}, "control.edges.image", "must have at most 256 pixels"),
        (
            {"control": {"edges": {"image": base64.b64encode(bomb()).decode()}}},
            "control.edges.image",
            "control.edges.image must",
        ),
        (
            {"control": {"edges": unit()}, "model": "plain"},
            "control",
            "must be left out for 'plain', which has no ControlNets .'stepfuse export --controlnet NAME=FOLDER' makes",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_followed(service, fields, param, message):
    answer = service.generate("a red cat", **{**ASKED, **fields})
    assert (answer.status, answer.error["param"]) == (400, param)
    assert re.search(message, answer.error["message"]), answer.error["message"]


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([unit(module="canny", model="edges")], r"args.0.module Input should be 'none' or 'None', got 'canny'|must be"),
        ([unit()], "must each name a model of its own, of edges, depth, got None"),
        ([unit(model="edges"), unit(model="edges")], "must each name a model of its own, of edges, depth, got 'edges'"),
        ([{"model": "edges"}], "must each have an image, got none for 'edges'"),
        ([unit(model="pose")], "control must have names among edges, depth, got 'pose'"),
        ([unit(model="edges", guessmode=True)], "guessmode is no field of this request, got True"),
        ([unit(model="edges", control_mode=2)], "control_mode"),
    ],
)
def test_units_that_would_do_otherwise_are_refused(service, units, message):
    scripts = {"override_settings": {"sd_model_checkpoint": "controlled"}}
    scripts["alwayson_scripts"] = {"controlnet": {"args": units}}
    answer = service.ask("POST", "/sdapi/v1/txt2img", {"prompt": "a red cat", "steps": 4, **scripts})
    assert answer.status == 400
    assert re.search(message, answer.error["message"]), answer.error["message"]


def test_a_service_without_controlnets_takes_no_pictures_in_its_bodies(pipes):
    limits = Limits(body_bytes=2000)
    with http_service.served(create_app({"plain": pipes["plain"]}, limits=limits, warm_up=False)) as service:
        answer = service.generate("a red cat", control={"edges": {"image": "A" * 4000}})
    assert answer.status == 413
