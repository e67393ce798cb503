"""The strength of a LoRA as PEFT saves it, beside the file: against PEFT's own change of each weight."""

import json

import numpy as np
import pytest
import tiny_pipelines

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from stepfuse.export import ExportError  # noqa: E402
from stepfuse.lora.file import Lora  # noqa: E402


def saved(folder, **options):
    """A LoRA of a tiny UNet as ``save_pretrained`` writes it; returns the file and PEFT's module of each pair."""
    torch.manual_seed(0)
    settings = {"r": 4, "lora_alpha": 16, "target_modules": ["to_q", "to_k"], "init_lora_weights": False, **options}
    model = peft.get_peft_model(tiny_pipelines.unet(16).eval(), peft.LoraConfig(**settings))
    model.save_pretrained(folder)
    return folder / "adapter_model.safetensors", dict(model.base_model.model.named_modules())


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="alpha"),
        pytest.param({"lora_alpha": 4}, id="alpha-is-rank"),
        pytest.param({"use_rslora": True}, id="rslora"),
        pytest.param({"alpha_pattern": {"to_k": 2}}, id="alpha-pattern"),
        pytest.param({"rank_pattern": {"to_k": 8}}, id="rank-pattern"),
        pytest.param({"rank_pattern": {"to_k": 8}, "alpha_pattern": {"to_k": 2}, "use_rslora": True}, id="all"),
    ],
)
def test_a_pair_changes_its_weight_as_much_as_peft_does(tmp_path, options):
    file, modules = saved(tmp_path, **options)
    pairs = Lora.read(file).pairs
    assert pairs
    for pair in pairs:
        expected = modules[pair.key.removeprefix("base_model.model.")].get_delta_weight("default").detach().numpy()
        np.testing.assert_allclose(pair.delta(1.0), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"peft_type": "LOHA"}, "peft_type must be 'LORA', got 'LOHA'", id="another-adapter"),
        pytest.param({"lora_alpha": "16"}, "lora_alpha must be a finite number, got '16'", id="alpha-text"),
        pytest.param({"alpha_pattern": [1]}, r"alpha_pattern must be an object, got \[1\]", id="pattern-list"),
        pytest.param({"alpha_pattern": {"(": 1}}, "must have regular expressions", id="pattern-damaged"),
        pytest.param({"alpha_pattern": {"(a+)+$": 1}}, "must have regular expressions of names", id="backtracking"),
        pytest.param({"use_dora": True}, "use_dora must be unset, got True", id="dora"),
        pytest.param({"use_rslora": "false"}, "use_rslora must be true or false, got 'false'", id="rslora-text"),
        pytest.param({"fan_in_fan_out": True}, "fan_in_fan_out must be false", id="transposed"),
        pytest.param({"init_lora_weights": "pissa_niter_4"}, "must leave the base model's weights", id="pissa"),
    ],
)
def test_what_would_give_another_strength_is_refused(tmp_path, change, message):
    file, _ = saved(tmp_path)
    beside = tmp_path / "adapter_config.json"
    beside.write_text(json.dumps({**json.loads(beside.read_text()), **change}))
    with pytest.raises(ExportError, match=message):
        Lora.read(file)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_a_damaged_configuration_is_refused(tmp_path, text):
    file, _ = saved(tmp_path)
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ExportError, match=r"adapter_config\.json must be"):
        Lora.read(file)
