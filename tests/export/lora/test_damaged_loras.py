"""LoRA files that are damaged or hostile: an ``ExportError`` that names the file, whatever is wrong with them."""

import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save

import stepfuse as sf
from stepfuse.bundle.bundle import Bundle
from stepfuse.export import ExportError
from stepfuse.export.lora.store import ORIGINALS, stored
from stepfuse.lora.file import Lora

DOWN, UP, ALPHA = "unet.to_q.lora_A.weight", "unet.to_q.lora_B.weight", "unet.to_q.alpha"


def state(**changes):
    """Tensors of one pair, some in the place of its own, by ``down``, ``up``, ``alpha`` or their whole key."""
    own = {DOWN: torch.ones(2, 6), UP: torch.ones(6, 2), ALPHA: torch.tensor(4.0)}
    names = {"down": DOWN, "up": UP, "alpha": ALPHA}
    return {
        key: one for key, one in {**own, **{names.get(k, k): v for k, v in changes.items()}}.items() if one is not None
    }


def header(text, data=b""):
    return struct.pack("<Q", len(text)) + text + data


STATES = {
    "down alone": (state(up=None), "must have both matrices of a pair"),
    "up alone": (state(down=None), "must have both matrices of a pair"),
    "an alpha alone": (state(up=None, down=None), "must hold pairs of matrices"),
    "ranks that disagree": (state(up=torch.ones(6, 3)), r"must be a pair \(rank, in\) and \(out, rank\)"),
    "no rank": (
        state(down=torch.ones(0, 6), up=torch.ones(6, 0)),
        "must be finite numbers, got NaN, infinity or nothing",
    ),
    "a vector": (state(down=torch.ones(6)), "must be a pair"),
    "a number": (state(up=torch.tensor(1.0)), "must be a pair"),
    "five axes": (state(down=torch.ones(2, 6, 1, 1, 1)), "must be a pair"),
    "three axes": (state(down=torch.ones(2, 6, 1)), "must be a pair"),
    "NaN": (state(down=torch.full((2, 6), torch.nan)), "must be finite numbers"),
    "beyond float32": (state(down=torch.full((2, 6), 1e300, dtype=torch.float64)), "must be finite numbers"),
    "whole numbers": (state(down=torch.ones(2, 6, dtype=torch.int64)), "F64 or F32 or F16 or BF16, got I64"),
    "truth values": (state(up=torch.ones(6, 2, dtype=torch.bool)), "got BOOL"),
    "8 bits": (
        state(up=torch.ones(6, 2).to(torch.float8_e4m3fn)),
        "must be numbers of 16 bits or more, .* got F8_E4M3",
    ),
    "alpha NaN": (state(alpha=torch.tensor(torch.nan)), r"to_q\.alpha must be finite"),
    "alpha infinite": (state(alpha=torch.tensor(1e300, dtype=torch.float64)), r"to_q\.alpha must be finite"),
    "two alphas": (state(alpha=torch.ones(2)), r"to_q\.alpha must be one number, got shape \(2,\)"),
    "an empty alpha": (state(alpha=torch.ones(0)), r"to_q\.alpha must be finite numbers"),
    "two adapters": (
        state(**{"unet.to_q.lora_A.other.weight": torch.ones(2, 6)}),
        "one matrix of each kind, got another in",
    ),
    "two styles": (
        state(**{"unet.to_q.lora_down.weight": torch.ones(2, 6)}),
        "one matrix of each kind, got another in",
    ),
    "a long key": (state(**{"x" * 1001: torch.ones(1)}), "keys must have at most 1000 characters"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", STATES)
def test_states_that_are_no_pairs(tmp_path, case):
    tensors, message = STATES[case]
    file = tmp_path / "a.safetensors"
    file.write_bytes(save(tensors))
    with pytest.raises(ExportError, match=message):
        Lora.read(file)


FILES = {
    "nothing": b"",
    "a length alone": struct.pack("<Q", 2),
    "a length beyond the file": struct.pack("<Q", 1 << 40) + b"{}",
    "the largest length": struct.pack("<Q", (1 << 64) - 1),
    "a list": header(b"[]"),
    "null": header(b"null"),
    "nested": header(b"[" * 100_000),
    "no object of a tensor": header(b'{"a.lora_A.weight":1}'),
    "no dtype": header(b'{"a.lora_A.weight":{"shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
    "a negative size": header(b'{"a.lora_A.weight":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', b"\0" * 4),
    "a size beyond memory": header(
        b'{"a":{"dtype":"F32","shape":[4611686018427387905,4],"data_offsets":[0,16]}}', b"\0" * 16
    ),
    "an unknown dtype": header(b'{"a.lora_A.weight":{"dtype":"X","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
    "metadata that is no text": header(b'{"__metadata__":{"lora_adapter_metadata":1}}'),
    "metadata that is a list": header(b'{"__metadata__":[]}'),
    "a file cut off": save(state())[:-1],
    "bytes behind the end": save(state()) + b"\0",
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_not_whole(tmp_path, case):
    file = tmp_path / "a.safetensors"
    file.write_bytes(FILES[case])
    with pytest.raises(ExportError, match=r"a\.safetensors must be a safetensors file: "):
        Lora.read(file)


METADATA = {
    "no JSON": ("x", "must be JSON"),
    "a list": ("[]", "must be an object, got"),
    "nested": ("[" * 100_000, "must be JSON"),
    "a text": ('{"unet.lora_alpha": "4"}', "lora_alpha must be a finite number, got '4'"),
    "true": ('{"unet.lora_alpha": true}', "lora_alpha must be a finite number, got True"),
    "NaN": ('{"unet.lora_alpha": NaN}', "lora_alpha must be a finite number, got nan"),
    "beyond a float": ('{"unet.lora_alpha": 1%s}' % ("0" * 400), "lora_alpha must be a finite number, got 1000"),
    "beyond Python": ('{"unet.lora_alpha": 1%s}' % ("0" * 5000), "must be JSON"),
    "a pattern's text": ('{"unet.alpha_pattern": {"to_q": "2"}}', r"alpha_pattern\['to_q'\] must be a finite number"),
    "backtracking": ('{"unet.alpha_pattern": {"(a+)+$": 2}}', "must have regular expressions of names"),
    "no patterns": ('{"unet.alpha_pattern": 0}', "alpha_pattern must be an object, got 0"),
    "a truth value as text": ('{"unet.use_rslora": "false"}', "use_rslora must be true or false, got 'false'"),
    "a long value": (json.dumps({"unet.lora_alpha": "x" * 10_000}), "got 'xxx.*…$"),
}


@pytest.mark.parametrize("case", METADATA)
def test_metadata_that_states_no_strength(tmp_path, case):
    text, message = METADATA[case]
    file = tmp_path / "a.safetensors"
    file.write_bytes(save(state(alpha=None), {"lora_adapter_metadata": text}))
    with pytest.raises(ExportError, match=message):
        Lora.read(file)


def test_bytes_changed_at_random_never_raise_anything_else(tmp_path):
    rng, whole = np.random.default_rng(0), save(state(), {"lora_adapter_metadata": '{"unet.lora_alpha": 4}'})
    file = tmp_path / "a.safetensors"
    refused = 0
    for _ in range(500):
        content = bytearray(whole)
        for at in rng.integers(0, len(whole) - 100, rng.integers(1, 4)):
            content[at] = rng.integers(256)
        file.write_bytes(content)
        try:
            Lora.read(file)
        except ExportError:
            refused += 1
    assert refused > 400


ORIGINAL = {"denoiser.onnx/w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        header(b"[" * 100_000),
        struct.pack("<Q", (1 << 64) - 1),
        *(
            header(json.dumps({key: {**ORIGINAL["denoiser.onnx/w"], **change}}).encode(), bytes(8))
            for key, change in [
                ("denoiser.onnx/w", {"data_offsets": [-8, 0]}),
                ("denoiser.onnx/w", {"data_offsets": [8, 16]}),
                ("denoiser.onnx/w", {"data_offsets": ["0", "8"]}),
                ("denoiser.onnx/w", {"data_offsets": [0]}),
                ("denoiser.onnx/w", {"shape": [-1]}),
                ("denoiser.onnx/w", {"shape": [1 << 40, 1 << 40]}),
                ("denoiser.onnx/w", {"shape": 2}),
                ("denoiser.onnx/w", {"dtype": "I8"}),
                ("../denoiser.onnx/w", {}),
                ("w", {}),
            ]
        ),
    ],
)
def test_weights_from_before_a_lora_that_do_not_lie_in_their_file(tmp_path, content):
    (tmp_path / ORIGINALS).write_bytes(content)
    bundle = Bundle(tmp_path, "m", None, "", "", {ORIGINALS: {}, "denoiser.onnx": {}})
    with pytest.raises(sf.BundleError, match="must hold the weights before the LoRAs"):
        stored(bundle)
