"""What a manifest says of a pipeline."""

import json

import handmade
import pytest

import stepfuse as sf
from stepfuse.bundle.pipeline_info import PipelineInfo, PromptInput
from stepfuse.pipeline.size import pixels_of, rows_for, sample_shape

PROMPT = PromptInput("input_ids", "tokenizer.json", 77, 49407)
MODEL = sf.ModelInfo((4, 64, 96), sf.NoiseSchedule.scaled_linear())


def test_it_survives_the_manifest(tmp_path):
    info = PipelineInfo("StableDiffusionPipeline", (PROMPT,), max_size=1024, zeros_without_negative=True)
    assert PipelineInfo.from_config(json.loads(json.dumps(info.config))) == info
    bundle = handmade.write_bundle(tmp_path / "bundle", pipeline={"max_size": 64})
    assert sf.Bundle.load(bundle.path).pipeline == bundle.pipeline
    more = PipelineInfo("X", size_input="a", aesthetic_scores=(6.0, 2.5), masked_input="b", controls=("edges",))
    assert PipelineInfo.from_config(json.loads(json.dumps(more.config))) == more
    assert bundle.pipeline.prompts == (PromptInput("input_ids", "tokenizer.json", handmade.LENGTH, 1),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixels_per_latent": 0}, "pixels_per_latent must be at least 1, got 0"),
        ({"size_multiple": 3}, "size_multiple must be a multiple of pixels_per_latent, 2, got 3"),
        ({"source": ""}, "source must be a text, got ''"),
        ({"masked_input": "nothing"}, "masked_input must be one of cond's names, got 'nothing'"),
        ({"controls": ["edges"]}, "controls must be one of cond's names, got 'control_of_edges'"),
        ({"controls": ["a b"]}, "a ControlNet's name must be 1 to 64 letters, digits, _ and -, got 'a b'"),
        ({"controls": ["a", "a"]}, "controls must be at most 16 different names"),
        ({"aesthetic_scores": [6.0]}, "aesthetic_scores must be two numbers up to 1000 beside a size_input"),
        ({"size_input": "nothing"}, "size_input must be one of cond's names, got 'nothing'"),
        (
            {"prompts": [{"input": "a", "tokenizer": "tokenizer.json", "length": 0, "pad_id": 0}]},
            "length must be at least 1",
        ),
        ({"prompts": [{"input": "a", "tokenizer": "b.json", "length": 1, "pad_id": 0}]}, r"files must list b\.json"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_manifest_that_says_nonsense_is_refused(tmp_path, changes, message):
    bundle = handmade.write_bundle(tmp_path / "bundle")
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    manifest["pipeline"].update(changes)
    (bundle.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(sf.BundleError, match=message):
        sf.Bundle.load(bundle.path)


@pytest.mark.parametrize(("channels", "taken"), [(5, True), (8, True), (4, False), (6, False)])
def test_an_input_for_masked_pictures_has_a_mask_before_the_latents_or_a_cell_s_pixels_behind(
    tmp_path, channels, taken
):
    bundle = handmade.write_bundle(tmp_path / "bundle")
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    shape = [channels, *manifest["shape"][1:]]
    manifest["cond"]["masked"] = {"dtype": "float32", "shape": shape, "null": 0.0, "free": "size"}
    manifest["pipeline"]["masked_input"] = "masked"
    (bundle.path / "manifest.json").write_text(json.dumps(manifest))
    if taken:
        assert sf.Bundle.load(bundle.path).pipeline.masked_input == "masked"
    else:
        with pytest.raises(
            sf.BundleError, match=rf"shape of masked must be \[5, .*\] or \[8, .*\], got \[{channels}, "
        ):
            sf.Bundle.load(bundle.path)


def test_sizes():
    info = PipelineInfo("StableDiffusionPipeline", (PROMPT,), size_multiple=16)
    assert pixels_of(info, MODEL.shape) == (768, 512)
    assert sample_shape(MODEL, info, 1024, 16) == (4, 2, 128)


@pytest.mark.parametrize(("side", "rows"), [(8, 64), (256, 16), (512, 4), (1024, 2), (4096, 2)])
def test_rows_of_a_forward_fall_with_the_size(side, rows):
    info = PipelineInfo("StableDiffusionPipeline", (PROMPT,))
    assert rows_for(info, (4, side // 8, side // 8)) == rows
