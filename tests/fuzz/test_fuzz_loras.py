"""LoRA files and configurations beside them: read, or refused as an ExportError."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import TEXTS, contents, fuzz, json_files
from targets import read_lora

pytest.importorskip("safetensors")

from stepfuse.lora.file import Lora

PREFIX = "unet.down_blocks.0.attentions.0.to_q"
TENSORS = {
    f"{PREFIX}.lora_A.weight": ("F32", (4, 8)),
    f"{PREFIX}.lora_B.weight": ("F32", (8, 4)),
    f"{PREFIX}.alpha": ("F32", ()),
    "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": ("F16", (2, 8, 1, 1)),
    "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": ("F16", (8, 2, 1, 1)),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight": ("BF16", (2, 8)),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight": ("BF16", (8, 2)),
}
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1, "F8_E4M3": 1}
METADATA = {
    "format": "pt",
    "lora_adapter_metadata": json.dumps({"unet": {"lora_alpha": 4, "r": 4, "use_rslora": False}}),
}
CONFIG = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "alpha_pattern": {"to_q": 2},
    "rank_pattern": {},
    "use_rslora": False,
}


def lora_file(tensors, metadata=None, fill=1):
    header, data = {}, b""
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, (kind, shape) in tensors.items():
        size = int(np.prod(shape)) * BYTES[kind]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [len(data), len(data) + size]}
        data += bytes([fill]) * size
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + data


@st.composite
def lora_files(draw):
    tensors = dict(TENSORS)
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(tensors)))
        kind, shape = tensors[name]
        change = draw(st.sampled_from(["drop", "shape", "type", "name", "add"]))
        if change == "drop" and len(tensors) > 1:
            del tensors[name]
        elif change == "shape":
            tensors[name] = kind, tuple(draw(st.lists(st.integers(0, 9), max_size=5)))
        elif change == "type":
            tensors[name] = draw(st.sampled_from(sorted(BYTES))), shape
        elif change == "name":
            cut = draw(st.integers(0, len(name)))
            tensors[name[:cut] + draw(TEXTS) + name[cut:]] = tensors.pop(name)
        else:
            tensors[draw(TEXTS) + draw(st.sampled_from([".alpha", ".lora_A.weight", ".dora_scale", ".diff", ""]))] = (
                kind,
                shape,
            )
    metadata = draw(st.sampled_from([None, {}, METADATA]))
    if draw(st.booleans()):
        metadata = {
            **METADATA,
            "lora_adapter_metadata": draw(json_files(json.loads(METADATA["lora_adapter_metadata"]))).decode(
                errors="replace"
            ),
        }
    return lora_file(tensors, metadata, draw(st.sampled_from([0, 1, 0x7F, 0xFF])))


def test_states(tmp_path):
    file = tmp_path / "style.safetensors"
    file.write_bytes(lora_file(TENSORS, METADATA))
    assert len(Lora.read(file).pairs) == 3

    @fuzz(4)
    @given(lora_files())
    def check(content):
        file.write_bytes(content)
        read_lora(file)

    check()


def test_bytes(tmp_path):
    file = tmp_path / "style.safetensors"
    original = lora_file(TENSORS, METADATA)

    @fuzz(2)
    @given(contents(original))
    def check(content):
        file.write_bytes(content)
        read_lora(file)

    check()


def test_configurations_beside_the_file(tmp_path):
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(lora_file({f"base_model.model.{name}": one for name, one in list(TENSORS.items())[:2]}))

    @fuzz(2)
    @given(json_files(CONFIG))
    def check(content):
        (tmp_path / "adapter_config.json").write_bytes(content)
        read_lora(file)

    check()


@pytest.mark.parametrize("pattern", ["(a+)+$", "(.*)*x", "(a|a)*b", "(" * 5000, "a{1000}{1000}", "(?=(a+))a*b\\1"])
def test_patterns_of_modules_take_no_time(tmp_path, pattern):
    file = tmp_path / "adapter_model.safetensors"
    tensors = {f"base_model.model.{'a' * 60}.lora_{side}.weight": ("F32", (4, 4)) for side in "AB"}
    file.write_bytes(lora_file(tensors))
    (tmp_path / "adapter_config.json").write_text(json.dumps({**CONFIG, "alpha_pattern": {pattern: 2}}))
    read_lora(file)
