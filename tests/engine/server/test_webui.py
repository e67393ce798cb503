"""The routes of Stable Diffusion's web interfaces, as their clients use them."""

import base64
import json
import re
import threading

import handmade
import http_service
import numpy as np
import pytest
import support
from http_service import as_levels, image_of, levels_of, png, until

import stepfuse as sf

pytest.importorskip("fastapi", reason="needs the extra serve")

from stepfuse.server import create_app

#: What clients send whatever the user has chosen: SillyTavern, and the client libraries for Python and JavaScript.
SILLY_TAVERN = {
    "scheduler": "automatic",
    "restore_faces": False,
    "enable_hr": False,
    "hr_upscaler": "Latent",
    "hr_scale": 1.5,
    "hr_additional_modules": [],
    "hr_second_pass_steps": 0,
    "denoising_strength": 0.7,
    "clip_skip": 1,
    "override_settings": {"CLIP_stop_at_last_layers": 1, "sd_model_checkpoint": "cats"},
    "override_settings_restore_afterwards": True,
    "save_images": True,
    "send_images": True,
    "do_not_save_grid": False,
    "do_not_save_samples": False,
}
OF_LIBRARIES = {
    **dict.fromkeys(("hr_checkpoint_name", "hr_sampler_name", "hr_scheduler", "script_name")),
    **dict.fromkeys(("hr_prompt", "hr_negative_prompt"), ""),
    **dict.fromkeys(("hr_resize_x", "hr_resize_y", "firstphase_width", "firstphase_height"), 0),
    **dict.fromkeys(("subseed_strength", "seed_resize_from_h", "seed_resize_from_w", "s_churn", "s_tmax", "s_tmin"), 0),
    **dict.fromkeys(("tiling", "restore_faces", "do_not_save_grid", "do_not_save_samples", "save_images"), False),
    "styles": [],
    "script_args": [],
    "enable_hr": False,
    "hr_upscaler": "Latent",
    "hr_scale": 2,
    "hr_second_pass_steps": 0,
    "denoising_strength": 0.7,
    "subseed": -1,
    "eta": 1.0,
    "s_noise": 1,
    "send_images": True,
    "alwayson_scripts": {},
    "override_settings": {"sd_model_checkpoint": "cats"},
    "override_settings_restore_afterwards": True,
}


@pytest.fixture(scope="module")
def engine():
    with sf.Engine.load("fashion", deterministic=True, max_rows=2, threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    with sf.TextToImage.load(handmade.write_bundle(tmp_path_factory.mktemp("webui") / "bundle"), threads=1) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def service(engine, pipe):
    with http_service.served(create_app({"fashion": engine, "cats": pipe}, warm_up=False)) as service:
        yield service


def draw(service, route="txt2img", **fields):
    return service.ask("POST", f"/sdapi/v1/{route}", {"prompt": "bag", "steps": 3, **fields})


def encoded(levels, *options):
    return base64.b64encode(png(levels, *options)).decode()


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [
        ({}, {}),
        ({"sampler_name": "DPM++ 2M", "scheduler": "Karras"}, {"sampler": "dpmpp_2m", "karras": True}),
        ({"sampler_name": "DPM++ 2M Karras"}, {"sampler": "dpmpp_2m", "karras": True}),
        ({"sampler_index": "Euler a", "cfg_scale": 1}, {"sampler": "euler_ancestral", "guidance_scale": 1}),
        ({"sampler_name": "unipc", "scheduler": "Automatic"}, {"sampler": "unipc"}),
        ({"sampler_name": "DPM++ 2M"}, {"sampler": "dpmpp_2m", "karras": True}),
        ({"sampler_name": "DPM++ SDE", "scheduler": "automatic"}, {"sampler": "dpmpp_sde", "karras": True}),
        ({"sampler_name": "DPM++ 2M SDE"}, {"sampler": "dpmpp_2m_sde", "levels": "exponential"}),
        ({"sampler_name": "DPM++ 2M", "scheduler": "uniform"}, {"sampler": "dpmpp_2m"}),
        ({"sampler_name": "dpmpp_2m"}, {"sampler": "dpmpp_2m"}),
    ],
)
def test_images_are_those_of_the_engine(service, engine, fields, arguments):
    answer = draw(service, batch_size=2, seed=4, **fields).json
    expected = engine.sample(2, cond="bag", seed=4, steps=3, **arguments)
    for one, sample in zip(answer["images"], expected, strict=True):
        np.testing.assert_array_equal(levels_of(one), as_levels(sample))
    info = json.loads(answer["info"])
    assert (info["all_seeds"], info["sd_model_name"], info["steps"]) == ([4, 5], "fashion", 3)


@pytest.mark.parametrize(
    ("sent", "sampler", "arguments"),
    [
        (SILLY_TAVERN, "DDIM", {"sampler": "ddim"}),
        (OF_LIBRARIES, "DDIM", {"sampler": "ddim", "eta": 1.0}),
        (OF_LIBRARIES, "Euler a", {"sampler": "euler_ancestral"}),
    ],
)
def test_a_request_as_clients_make_it(service, pipe, sent, sampler, arguments):
    fields = {"negative_prompt": "a dog", "width": 8, "height": 16, "cfg_scale": 2, "seed": 9, "sampler_name": sampler}
    answer = draw(service, prompt="a red cat", **sent, **fields).json
    [expected] = pipe(
        "a red cat", negative_prompt="a dog", width=8, height=16, steps=3, guidance_scale=2, seed=9, **arguments
    )
    [one] = answer["images"]
    np.testing.assert_array_equal(levels_of(one), np.asarray(expected))
    info = json.loads(answer["info"])
    assert info["infotexts"] == [image_of(one).text["parameters"]]
    assert info["infotexts"][0].startswith(f"a red cat\nNegative prompt: a dog\nSteps: 3, Sampler: {sampler},")


def test_what_is_read_with_a_mask_may_stand_without_one(service):
    image = encoded(np.random.default_rng(0).integers(0, 256, (28, 28)))
    unread = {"mask_blur": 4, "inpainting_fill": 0, "inpaint_full_res": True, "inpaint_full_res_padding": 32}
    unread |= {"inpainting_mask_invert": 1, "image_cfg_scale": 1.5, "mask": None}
    first, second = (
        draw(service, "img2img", init_images=[image], seed=2, **fields).json["images"] for fields in ({}, unread)
    )
    assert first == second
    refused = draw(service, "img2img", init_images=[image], seed=2, **{**unread, "mask": image})
    assert (refused.status, refused.error["param"]) == (400, refused.error["message"].split()[0])
    assert re.match("(mask_blur|inpaint_full_res|inpainting_fill) must be", refused.error["message"])


@pytest.mark.parametrize("invert", [0, 1])
def test_an_image_is_begun_with(service, engine, invert):
    levels = np.random.default_rng(0).integers(0, 256, (28, 28))
    mask = np.where(np.arange(28) < 14, 255, 0) * np.ones((28, 1), int)
    lines = base64.encodebytes(png(mask)).decode()  # as the command base64 wraps them
    fields = {"init_images": [f"data:image/png;base64,{encoded(levels)}"], "mask": lines, "seed": 2}
    answer = draw(service, "img2img", **fields, inpainting_mask_invert=invert, denoising_strength=0.7).json
    known = (255 - mask if invert else mask)[None] / 255
    image = np.float32(levels[None]) / np.float32(255) * 2 - 1
    [expected] = engine.sample(1, cond="bag", steps=3, seed=2, image=image, mask=known, strength=0.7)
    np.testing.assert_array_equal(levels_of(answer["images"][0]), as_levels(expected))
    assert "init_images" not in answer["parameters"]


SOFT = np.where(np.arange(28) < 14, 255, 64) * np.ones((28, 1), int)


@pytest.mark.parametrize(
    ("levels", "options"),
    [
        (SOFT * 257, [np.uint16]),
        (np.dstack([SOFT] * 3 + [np.full((28, 28), 255)]), []),  # a canvas, opaque
        (np.dstack([np.full((28, 28, 3), 255), SOFT]), []),  # white strokes on a transparent one
        (np.dstack([np.zeros((28, 28)), SOFT]), []),
    ],
)
@pytest.mark.parametrize("invert", [0, 1])
def test_a_mask_is_white_or_opaque_where_the_image_is_drawn_anew(service, levels, options, invert):
    image = encoded(np.random.default_rng(0).integers(0, 256, (28, 28)))

    def drawn(mask):
        fields = {"init_images": [image], "mask": mask, "inpainting_mask_invert": invert, "seed": 2}
        return levels_of(draw(service, "img2img", **fields).json["images"][0])

    np.testing.assert_array_equal(drawn(encoded(levels, *options)), drawn(encoded(SOFT)))


def test_what_there_is(service, engine, pipe):
    samplers = service.ask("GET", "/sdapi/v1/samplers").json
    assert {"DPM++ 2M", "DDIM", "fitted-8"} <= {one["name"] for one in samplers}
    [first, second] = service.ask("GET", "/sdapi/v1/sd-models").json
    assert (first["model_name"], first["sha256"], second["title"]) == ("fashion", engine.model.weights, "cats")
    schedulers = service.ask("GET", "/sdapi/v1/schedulers").json
    assert [one["name"] for one in schedulers] == ["automatic", "uniform", "karras", "exponential", "beta"]
    assert service.ask("GET", "/sdapi/v1/options").json == {"sd_model_checkpoint": "fashion"}


def test_a_client_selects_the_model_of_all(service):
    """As Open WebUI does, which sends back all that it was given, and names it in no request."""

    def select(**settings):
        return service.ask("POST", "/sdapi/v1/options", settings)

    def drawn():
        return json.loads(draw(service, prompt="bag", steps=2).json["info"])["sd_model_name"]

    settings = service.ask("GET", "/sdapi/v1/options").json
    try:
        answer = select(**settings | {"sd_model_checkpoint": "cats"})
        assert (answer.status, answer.json) == (200, None)
        assert service.ask("GET", "/sdapi/v1/options").json == {"sd_model_checkpoint": "cats"}
        assert drawn() == "cats"
        for unknown, status, message in [
            ({"sd_model_checkpoint": "dogs"}, 404, "there is no model 'dogs'"),
            (
                {"sd_model_checkpoint": "fashion", "img2img_fix_steps": True},
                400,
                "options must hold sd_model_checkpoint",
            ),
        ]:
            answer = select(**unknown)
            assert (answer.status, message in answer.error["message"]) == (status, True)
        assert drawn() == "cats"
        assert select(CLIP_stop_at_last_layers=1).status == 200
        named = {"override_settings": {"sd_model_checkpoint": "fashion"}}
        assert json.loads(draw(service, prompt="bag", steps=2, **named).json["info"])["sd_model_name"] == "fashion"
        assert service.generate("bag", steps=2).json["data"][0]["drawn"]["model"] == "fashion"
    finally:
        assert select(sd_model_checkpoint="fashion").status == 200
    assert drawn() == "fashion"


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"enable_hr": True}, "enable_hr", "enable_hr must be False or left out here, got True"),
        ({"clip_skip": 2}, "clip_skip", "clip_skip must be 1 or left out here, got 2"),
        ({"eta": 0.5, "sampler_name": "DPM++ 2M"}, "eta", "eta must be left out with sampler 'dpmpp_2m'"),
        ({"restore_faces": 1.5}, "restore_faces", "restore_faces must be False"),
        ({"alwayson_scripts": {"x": 1}}, "alwayson_scripts.x", "alwayson_scripts.x is no field of this request, got 1"),
        ({"sampler_name": "DPM adaptive"}, "sampler_name", "must be one of DDIM, .*, got 'DPM adaptive'"),
        ({"scheduler": "SGM Uniform"}, "scheduler", "scheduler must be Automatic, .*, got 'SGM Uniform'"),
        ({"override_settings": {"CLIP_stop": 2}}, "override_settings", "sd_model_checkpoint alone, got CLIP_stop"),
        ({"override_settings": {"sd_vae": "x"}}, "override_settings", "sd_model_checkpoint alone, got sd_vae"),
        ({"override_settings": {"sd_model_checkpoint": "x"}}, "model", "there is no model 'x'"),
        ({"width": 28}, "width", "width and height must be given together"),
        ({"width": 512, "height": 512}, "size", "this model draws 28 x 28 pixels alone, got 512 x 512"),
        ({"batch_size": 4, "n_iter": 4}, "n", "n must be at most 10, got 16"),
        ({"seed": -2}, "seed", "seed must be at least -1, got -2"),
        ({"lora": 1}, "lora", "lora is no field of this request"),
        ({"prompt": "a (fog:1.3), sea"}, "prompt", r"without weights and editing, .*, got '\(fog:1\.3\)': escape"),
        ({"prompt": "((sea (fog: 1.2))"}, "prompt", r"got '\(fog: 1\.2\)'"),
        ({"prompt": "[fog:rain:0.5]"}, "prompt", r"got '\[fog:rain:0\.5\]'"),
        ({"prompt": "[fog|rain]"}, "prompt", r"got '\[fog\|rain\]'"),
        ({"prompt": "bag", "negative_prompt": "(text:2)"}, "negative_prompt", r"negative_prompt .* got '\(text:2\)'"),
    ],
)
def test_what_has_no_effect_here_is_refused(service, fields, param, message):
    answer = draw(service, **fields)
    assert answer.status == (404 if param == "model" else 400)
    assert answer.error["param"] == param
    assert re.search(message, answer.error["message"]), answer.error["message"]


def test_escaped_brackets_are_text_and_others_are_said_to_be_none_of_emphasis(service, pipe):
    asked = {"steps": 2, "seed": 3, "override_settings": {"sd_model_checkpoint": "cats"}}
    for prompt, read, unread in [
        (r"rain \(heavy\) \\ \[x\]", r"rain (heavy) \ [x]", 0),
        ("rain ((heavy)) [x]", "rain ((heavy)) [x]", 1),
        (r"in: (12:30\)", "in: (12:30)", 1),  # no weight: its bracket is text
    ]:
        answer = draw(service, prompt=prompt, negative_prompt=r"\(x\)", **asked).json
        warnings = [one for one in json.loads(answer["info"])["warnings"] if "emphasis" in one]
        assert len(warnings) == unread
        expected = pipe(read, negative_prompt="(x)", steps=2, seed=3)
        np.testing.assert_array_equal(levels_of(answer["images"][0]), np.asarray(expected[0]))


@pytest.mark.parametrize("text", ["not base64", base64.b64encode(b"no picture").decode(), ""])
def test_an_image_that_is_none_is_refused(service, text):
    answer = draw(service, "img2img", init_images=[text])
    assert (answer.status, answer.error["param"]) == (400, "init_images")


def test_progress_has_the_latest_preview():
    entered, go_on = threading.Semaphore(0), threading.Semaphore(0)

    def network(x, t, cond):
        entered.release()
        assert go_on.acquire(timeout=http_service.TIMEOUT)
        return support.rowwise(x, t, cond)

    with support.make_engine(network) as engine:
        app = create_app({"rows": engine}, warm_up=False)
        with http_service.served(app) as service:
            idle = service.ask("GET", "/sdapi/v1/progress").json
            assert (idle["progress"], idle["current_image"], idle["state"]["job_count"]) == (0, None, 0)
            answers = []
            thread = threading.Thread(target=lambda: answers.append(draw(service, prompt="boot", steps=4, seed=1)))
            thread.start()
            for _ in range(3):
                assert entered.acquire(timeout=http_service.TIMEOUT)
                go_on.release()
            until(lambda: service.ask("GET", "/sdapi/v1/progress").json["progress"] == 0.75)
            found = service.ask("GET", "/sdapi/v1/progress").json
            assert (found["state"]["sampling_step"], found["state"]["sampling_steps"]) == (3, 4)
            _, previews, _ = support.replay(engine.table(steps=4), seed=1, cond=0)
            np.testing.assert_array_equal(levels_of(found["current_image"]), as_levels(previews[2]))
            assert service.ask("GET", "/sdapi/v1/progress?skip_current_image=true").json["current_image"] is None
            go_on.release(100)
            thread.join(http_service.TIMEOUT)
    assert answers[0].status == 200
