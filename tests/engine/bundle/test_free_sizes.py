"""Conditioning inputs whose sizes a request chooses."""

import json

import handmade
import numpy as np
import pytest

import stepfuse as sf

PICTURE = sf.CondInput("float32", (3, 64, 96), null=0.0, free="size")
TEXT = sf.CondInput("float32", (77, 8), null=0.0, free="length")
LABEL = sf.CondInput("int64", (), null=-1)


def info(**cond):
    return sf.ModelInfo((4, 8, 12), sf.NoiseSchedule.linear(), cond=cond)


def test_they_follow_the_sample_and_the_tokens():
    model = info(picture=PICTURE, text=TEXT, label=LABEL)
    found = model.resized((4, 16, 6), 154)
    assert found.shape == (4, 16, 6)
    assert {name: one.shape for name, one in found.cond.items()} == {
        "picture": (3, 128, 48),
        "text": (154, 8),
        "label": (),
    }
    assert found.resized(model.shape, 77) == model
    assert model.resized(model.shape) == model


def test_what_cannot_follow_is_refused():
    with pytest.raises(
        ValueError, match=r"must be in proportion to the sample's, got \(3, 64, 96\) beside \(4, 7, 12\)"
    ):
        sf.ModelInfo((4, 7, 12), sf.NoiseSchedule.linear(), cond={"picture": PICTURE}).resized((4, 8, 12))
    with pytest.raises(ValueError, match="tokens must be None for a model without conditioning of free length, got 5"):
        info(label=LABEL).resized((4, 8, 12), 5)
    with pytest.raises(ValueError, match="shape must be at most 16 sizes of at least 1"):
        info(text=TEXT).resized((4, 8, 12), 0)


@pytest.mark.parametrize("free", ["width", "", 1, ["size"]])
def test_what_is_free_has_a_name(free):
    with pytest.raises(ValueError, match="free must be 'size' with two sizes or more, 'length' with one, or None"):
        sf.CondInput("float32", (3, 4, 4), null=0.0, free=free)


def test_an_input_without_such_sizes_is_refused():
    with pytest.raises(ValueError, match="free must be"):
        sf.CondInput("float32", (4,), null=0.0, free="size")
    with pytest.raises(ValueError, match="null must be one number where sizes are free"):
        sf.CondInput("float32", (4,), null=np.zeros(4, np.float32), free="length")


def test_a_manifest_says_it_where_it_is_so(tmp_path):
    text = sf.CondInput("float32", (handmade.LENGTH, handmade.WIDTH), null=0.0, free="length")
    cond = {"text": text, "size": sf.CondInput("float32", (6,), null=0.0)}
    bundle = handmade.write_bundle(tmp_path / "bundle", cond=cond)
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    assert manifest["cond"]["text"]["free"] == "length"
    assert "free" not in manifest["cond"]["size"]
    assert sf.Bundle.load(bundle.path).info.cond["text"] == text
