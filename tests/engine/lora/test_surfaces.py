"""LoRAs of HTTP requests and of the command line: the pictures that the pipeline draws with them."""

import base64
import io
import json

import http_service
import lora_files
import numpy as np
import pytest
import tiny_pipelines
from PIL import Image
from typer.testing import CliRunner

import stepfuse as sf
from stepfuse.cli import app
from stepfuse.cli.loras import Loras

pytest.importorskip("fastapi", reason="needs the extra serve")

from stepfuse.cli.serve import _loras_by_model
from stepfuse.server import create_app
from stepfuse.server.loading import load_model

NAME, PROMPT, STEPS = "StableDiffusionPipeline", tiny_pipelines.PROMPTS[0], 2
LAYERS = {"unet": lora_files.ATTENTION, "text_encoder": lora_files.CLIP}


@pytest.fixture(scope="module")
def bundle(exported):
    return exported(NAME)


@pytest.fixture(scope="module")
def style(tmp_path_factory):
    return lora_files.write_random_lora(tmp_path_factory.mktemp("lora") / "style.safetensors", NAME, LAYERS)


@pytest.fixture(scope="module")
def pipe(bundle, style):
    with sf.TextToImage.load(bundle, threads=1, lora_bytes=1 << 30) as found:
        found.add_lora("style", style)
        yield found


@pytest.fixture(scope="module")
def service(pipe):
    with (
        sf.Engine.load("fashion", threads=1) as plain,
        http_service.served(create_app({"cats": pipe, "fashion": plain}, warm_up=False)) as found,
    ):
        yield found


def shown(pipe, **more):
    return np.asarray(pipe(PROMPT, steps=STEPS, seed=3, **more)[0])


def test_a_request_over_http_chooses(service, pipe):
    answer = service.generate(PROMPT, steps=STEPS, seed=3, lora={"style": 0.8})
    [picture] = answer.json["data"]
    with Image.open(io.BytesIO(base64.b64decode(picture["b64_json"]))) as file:
        np.testing.assert_array_equal(np.asarray(file), shown(pipe, lora={"style": 0.8}))
        made = sf.Provenance.from_json(file.text["stepfuse"])
    assert made.loras == {"style": {"sha256": pipe.loras["style"].sha256, "scale": 0.8}}
    assert picture["drawn"]["lora"] == {"style": 0.8}
    [plain] = service.generate(PROMPT, steps=STEPS, seed=3).json["data"]
    assert "lora" not in plain["drawn"]
    assert plain["b64_json"] != picture["b64_json"]


def test_a_form_has_loras_as_json_or_a_field_each(service):
    file = io.BytesIO()
    Image.new("RGB", service_size(service)).save(file, "PNG")
    fields = {"prompt": PROMPT, "model": "cats", "steps": STEPS, "seed": 3}
    answers = [
        service.edit([("image", file.getvalue())], **fields, **{name: value})
        for name, value in (("lora", json.dumps({"style": 0.8})), ("lora[style]", "0.8"))
    ]
    drawn = [answer.json["data"][0]["drawn"]["lora"] for answer in answers]
    assert drawn == [{"style": 0.8}] * 2


def service_size(service):
    [cats, _] = service.ask("GET", "/v1/models").json["data"]
    return tuple(map(int, cats["size"].split("x")))


def test_web_interfaces_name_loras_in_the_prompt(service, pipe):
    body = {"prompt": f"{PROMPT} <lora:style:0.8>", "steps": STEPS, "seed": 3}
    answer = service.ask("POST", "/sdapi/v1/txt2img", body)
    with Image.open(io.BytesIO(base64.b64decode(answer.json["images"][0]))) as file:
        np.testing.assert_array_equal(np.asarray(file), shown(pipe, lora={"style": 0.8}))
    for tag, message in (("<lora:stile:1>", "got 'stile'"), ("<lora:style:x>", "got '<lora:style:x>'")):
        answer = service.ask("POST", "/sdapi/v1/txt2img", {**body, "prompt": tag})
        assert (answer.status, message in answer.body.decode()) == (400, True)


def test_models_list_their_loras(service):
    assert [one["loras"] for one in service.ask("GET", "/v1/models").json["data"]] == [["style"], []]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora": {"stile": 1}}, "lora must be of the LoRAs that are registered (style), got 'stile' (did you mean"),
        ({"lora": {"style": "much"}}, "lora.style must be a valid number"),
        ({"lora": "style"}, "lora must be a valid dictionary"),
        ({"lora": {"style": 1}, "model": "fashion", "prompt": "bag"}, "lora must be left out for 'fashion', which is"),
    ],
    ids=["unknown", "no number", "no object", "a model without"],
)
def test_what_is_no_choice_is_refused(service, fields, message):
    answer = service.ask("POST", http_service.GENERATIONS, {"prompt": PROMPT, "steps": STEPS, **fields})
    assert answer.status == 400
    assert message in answer.error["message"]
    assert answer.error["param"].startswith("lora")


def test_a_served_model_is_loaded_with_its_loras(bundle, style, pipe):
    model = load_model(f"mine={bundle.path}", threads=1, loras={"style": style}, lora_bytes=1 << 30)
    try:
        request = sf.PromptRequest(PROMPT, steps=STEPS, seed=3, lora={"style": 0.8})
        drawing = model.submit(request)
        np.testing.assert_array_equal(
            np.asarray(drawing.finish(drawing.future.result(60))[0]), shown(pipe, lora={"style": 0.8})
        )
    finally:
        model.close()
    with pytest.raises(sf.LoraError):
        load_model(str(bundle.path), loras={"style": bundle.path}, lora_bytes=1 << 30)


def test_rows_of_a_table_choose(bundle, style, pipe, tmp_path):
    rows = [{"id": "a", "lora": {"style": 0.8}}, {"id": "b"}, {"id": "c", "lora": {"stile": 1}}]
    table, folder = tmp_path / "requests.jsonl", tmp_path / "out"
    table.write_text("".join(json.dumps({"prompt": PROMPT, "steps": STEPS, "seed": 3, **row}) + "\n" for row in rows))
    arguments = ["batch", str(table), "--model", str(bundle.path), "--threads", "1", "-o", str(folder)]
    done = CliRunner().invoke(app, [*arguments, "--lora", f"style={style}"])
    assert done.exit_code == 1
    assert "lora must be of the LoRAs that are registered (style), got 'stile'" in done.stderr
    [chosen, plain, wrong] = [json.loads(line) for line in (folder / "000000.jsonl").read_text().splitlines()]
    assert (chosen["lora"], plain["lora"], wrong["file"]) == ({"style": 0.8}, None, None)
    for record, lora in ((chosen, {"style": 0.8}), (plain, None)):
        np.testing.assert_array_equal(np.asarray(Image.open(folder / record["file"])), shown(pipe, lora=lora))
    another = CliRunner().invoke(app, arguments)  # without the LoRA it is another job
    assert another.exit_code != 0
    assert "holds another job" in another.stderr
    scaled = CliRunner().invoke(app, [*arguments, "--force", "--lora", f"style={style}:0.5"])
    assert "--lora must be NAME=FILE here, as each row has its scale" in scaled.stderr


def test_a_table_of_arrow_chooses(bundle, style, pipe):
    pyarrow = pytest.importorskip("pyarrow")
    from stepfuse.integrations.ray import Sampler

    columns = {"prompt": [PROMPT], "steps": [STEPS], "seed": [3], "lora": [{"style": 0.8}]}
    sampler = Sampler(str(bundle.path), threads=1, loras={"style": style})
    drawn = sampler(pyarrow.table(columns))
    sampler.close()
    assert drawn["lora"].to_pylist() == [json.dumps({"style": 0.8})]
    with Image.open(io.BytesIO(drawn["image"][0].as_py())) as file:
        np.testing.assert_array_equal(np.asarray(file), shown(pipe, lora={"style": 0.8}))


def test_a_replica_of_ray_serve_has_loras(bundle, style, pipe, monkeypatch):
    serving = pytest.importorskip("stepfuse.integrations.ray.serving", reason="needs the extra ray")
    plans = []
    monkeypatch.setattr(serving, "Plan", lambda **given: plans.append(Plan(**given)) or plans[0])
    from stepfuse.integrations.ray.replica import Plan

    given = {"threads": 1, "loras": {"mine/style": style}, "lora_bytes": 1 << 30}
    serving.deployment(["fashion", f"mine={bundle.path}"], **given)
    replica = plans[0].open()
    try:
        with http_service.served(replica) as service:
            asked = {"model": "mine", "steps": STEPS, "seed": 3, "lora": {"style": 0.8}}
            [picture] = service.generate(PROMPT, **asked).json["data"]
            assert [one["loras"] for one in service.ask("GET", "/v1/models").json["data"]] == [[], ["style"]]
    finally:
        for model in replica.state.models:
            model.close(abort=True)
    np.testing.assert_array_equal(http_service.levels_of(picture["b64_json"]), shown(pipe, lora={"style": 0.8}))


def test_served_loras_are_of_the_first_model_or_of_the_one_named():
    found = _loras_by_model(["a=x", "two/a=y", "b=z"], ["one", "two"])
    assert {model: {name: str(file) for name, file in own.items()} for model, own in found.items()} == {
        "one": {"a": "x", "b": "z"},
        "two": {"a": "y"},
    }
    for texts, message in (
        (["a"], "--lora must be NAME=FILE or MODEL/NAME=FILE, got 'a'"),
        (["two/=x"], "--lora must have NAME or MODEL/NAME for each file, got 'two/'"),
        (["three/a=x"], r"--lora must be of a model that is served \(one, two\), got 'three/a'"),
        (["a=x", "one/a=y"], "--lora must name each once, got 'one/a' too"),
    ):
        with pytest.raises(ValueError, match=message):
            _loras_by_model(texts, ["one", "two"])


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_line_draws_with_a_lora_and_again(bundle, style, pipe, tmp_path):
    path = tmp_path / "cat.png"
    options = ["--prompt", PROMPT, "--steps", STEPS, "--seed", 3, "--lora", f"style={style}:0.8", "-o", path]
    result = run("sample", bundle.path, *options)
    assert result.exit_code == 0, result.output
    with Image.open(path) as picture:
        np.testing.assert_array_equal(np.asarray(picture), shown(pipe, lora={"style": 0.8}))
    again = tmp_path / "again.png"
    result = run("sample", bundle.path, "--like", path, "-o", again)
    assert result.exit_code == 1 or result.exit_code == 2
    assert "drawn with the LoRA style, sha256" in result.output.replace("\n", " ")
    result = run("sample", bundle.path, "--like", path, "--lora", f"style={style}", "-o", again)
    assert result.exit_code == 0, result.output
    assert again.read_bytes() == path.read_bytes()


def test_another_file_under_the_same_name_is_warned_of(bundle, style, tmp_path):
    path, other = tmp_path / "cat.png", tmp_path / "other.safetensors"
    lora_files.write_random_lora(other, NAME, LAYERS, seed=9)
    options = ["--prompt", PROMPT, "--steps", STEPS, "--lora", f"style={style}:0.8", "-o", path]
    assert run("sample", bundle.path, *options).exit_code == 0
    result = run("sample", bundle.path, "--like", path, "--lora", f"style={other}", "-o", tmp_path / "b.png")
    assert result.exit_code == 0, result.output
    assert "--lora style is another file than the one that" in result.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("text", "file", "scale"),
    [
        ("a=x.safetensors", "x.safetensors", 1.0),
        ("a=x.safetensors:0.5", "x.safetensors", 0.5),
        ("a=x:-2", "x", -2.0),
        ("a=c:x.safetensors", "c:x.safetensors", 1.0),
        ("a=b=c:1e-1", "b=c", 0.1),
    ],
)
def test_loras_as_they_are_typed(text, file, scale):
    found = Loras.of([text])
    assert ({name: str(one) for name, one in found.files.items()}, found.scales) == ({"a": file}, {"a": scale})


@pytest.mark.parametrize("texts", [["a"], ["=x"], ["a="], ["a=x", "a=y"]])
def test_loras_that_are_mistyped(texts):
    with pytest.raises(ValueError, match="--lora"):
        Loras.of(texts)
