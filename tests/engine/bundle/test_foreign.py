"""What is no bundle is refused with the commands that make one of it."""

import json
import shlex

import pytest

import stepfuse as sf
from stepfuse.bundle.foreign import next_step


def write_safetensors(path, name):
    header = json.dumps({name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_safetensors(tmp_path / "style.safetensors", "lora_unet_x.lora_down.weight")
    write_safetensors(tmp_path / "model one.safetensors", "model.diffusion_model.x")
    for name in ("m.ckpt", "m.gguf", "m.onnx", "notes.txt", "damaged.safetensors", "bundle/manifest.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("pipeline/model_index.json", "pipeline/unet/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    for name in ("optimum/model.onnx", "optimum/config.json", "parts/unet/model.onnx", "parts/model_index.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("given", "command"),
    [
        (
            "org/name-1.5",
            "hf download org/name-1.5 --local-dir name-1.5 && stepfuse export name-1.5 -o name-1.5-bundle",
        ),
        ("pipeline", "stepfuse export pipeline -o pipeline-bundle"),
        ("pipeline/unet", "stepfuse export pipeline -o pipeline-bundle"),
        ("optimum", "stepfuse export PIPELINE -o PIPELINE-bundle"),
        ("parts", "stepfuse export PIPELINE -o PIPELINE-bundle"),
        ("style.safetensors", "stepfuse lora BUNDLE style.safetensors -o NEW-BUNDLE"),
        (
            "model one.safetensors",
            "'model one.safetensors' 'model one' && stepfuse export 'model one' -o 'model one-bundle'",
        ),
        ("m.ckpt", "m.ckpt m && stepfuse export m -o m-bundle"),
        ("m.gguf", "hf download ORG/NAME --local-dir PIPELINE && stepfuse export PIPELINE -o PIPELINE-bundle"),
        ("m.onnx", "stepfuse.write_bundle"),
        ("bundle/manifest.json", "give the folder that it is in, bundle"),
    ],
)
def test_the_next_step_is_a_command_to_type(here, given, command):
    step = next_step(given)
    assert command in step
    shlex.split(step)  # every quote is closed
    with pytest.raises(sf.BundleError) as caught:
        sf.Bundle.load(given)
    assert str(caught.value).endswith(step)


@pytest.mark.parametrize("given", ["notes.txt", "nothing", "./a/b", "a/b/c", "../up", "x" * 5000, "a\0b"])
def test_what_is_unknown_has_none(here, given):
    assert next_step(given) == ""


def test_a_misspelt_name_is_recognized(here):
    with pytest.raises(sf.BundleError, match=r"\(did you mean fashion-8step\?\)"):
        sf.Bundle.load("fashion-8stp")
    with pytest.raises(sf.BundleError, match=r"\(did you mean bundle\?\)"):
        sf.Bundle.load("bundel")
