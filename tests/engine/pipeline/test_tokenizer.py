"""Bounds of prompts and tokenizers, and networks around the denoiser that do not give what the manifest says."""

import json
import re

import handmade
import numpy as np
import pytest
from onnx import helper
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

import stepfuse as sf
from stepfuse.bundle.open_file import OpenFile
from stepfuse.bundle.pipeline_info import PromptInput
from stepfuse.pipeline.normalizers import MAX_NORMALIZED, normalized_length
from stepfuse.pipeline.size import require_memory
from stepfuse.pipeline.tokenizer import MAX_CHARACTERS, PromptTokenizer

PROMPT = PromptInput("input_ids", "tokenizer.json", 8, 0)


def write(path, *, normalizer=None, split=None, processor=None):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Whitespace() if split is None else pre_tokenizers.Split(Regex(split), "isolated")
    )
    if processor is not None:
        tokenizer.post_processor = processor
    tokenizer.save(str(path / "tokenizer.json"))
    return PromptTokenizer(OpenFile(path / "tokenizer.json"), PROMPT)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    with sf.TextToImage.load(handmade.write_bundle(tmp_path_factory.mktemp("pipe") / "bundle"), threads=1) as pipe:
        yield pipe


def test_a_prompt_has_a_bound(pipe):
    long = "cat " * (MAX_CHARACTERS // 4)
    with pytest.warns(UserWarning, match="is cut after") as caught:
        pipe.encode_prompt(long)
    assert len(str(caught[0].message)) < 2000
    for call in (pipe, pipe.encode_prompt, lambda text: pipe("a cat", negative_prompt=text)):
        with pytest.raises(ValueError, match="a prompt must have at most 16,384 characters, got 16,385"):
            call(long + "x")
    with pytest.raises(ValueError, match=r"text that UTF-8 can hold, got '\\ud800' in it"):
        pipe("a \ud800")


def test_many_pictures_or_large_ones_are_refused_before_anything_is_encoded(pipe, monkeypatch):
    monkeypatch.setattr("stepfuse.pipeline.prompts.PromptEncoder.encode", lambda *_: pytest.fail("encoded"))
    for arguments in (
        {"num_images": 10**12},
        {"prompt": ["a cat"] * 1000, "num_images": 10**9},
        {"width": 10**8, "height": 10**8},
    ):
        with pytest.raises(
            ValueError, match=r"a call must be for at most .* pictures of .* as fit this machine's memory"
        ):
            pipe(**{"prompt": "a cat", **arguments})


def test_what_a_picture_takes_is_counted(pipe):
    model, pipeline = pipe.bundle.info, pipe.bundle.pipeline
    each = 4 * (3 * 8 * 8 + 4 * 4 * 4) + 2 * 4 * (handmade.LENGTH * handmade.WIDTH + 6)
    with pytest.raises(ValueError, match=re.escape(f"would take {each / 10**3:.3g} EB")):
        require_memory(model, pipeline, (4, 4, 4), 10**15)


@pytest.mark.parametrize(
    "normalizer",
    [
        normalizers.Sequence([normalizers.Replace("a", "aa")] * 40),
        normalizers.Sequence([normalizers.Replace(Regex("a?"), "aa")] * 40),
        normalizers.Sequence([normalizers.Prepend("aaaa")] * 10 + [normalizers.NFKD()] * 10),
        normalizers.Replace("a", "b" * 2_000_000),
    ],
    ids=["doubled", "also where nothing is", "decomposed", "one long text"],
)
def test_a_normalizer_that_blows_a_prompt_up_is_refused(tmp_path, normalizer):
    tokenizer = write(tmp_path, normalizer=normalizer)
    with pytest.raises(sf.BundleError, match=r"tokenizer\.json: its normalizer must make at most 1,048,576 characters"):
        tokenizer.encode("a")


@pytest.mark.parametrize(
    "normalizer",
    [
        normalizers.Replace("a", "bbb"),
        normalizers.Sequence([normalizers.Replace("a", "ab"), normalizers.Replace("b", "aaa")]),
        normalizers.Replace(Regex("a+"), "bbb"),
        normalizers.Replace(Regex("[[:alpha:]]"), "bbb"),
        normalizers.Replace(Regex("x*"), "yy"),
        normalizers.Sequence([normalizers.Prepend("ab"), normalizers.Sequence([normalizers.Replace("b", "cc")])]),
        *(
            getattr(normalizers, kind)()
            for kind in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "BertNormalizer", "ByteLevel")
        ),
    ],
)
def test_no_text_becomes_longer_than_the_bound(normalizer):
    entry = json.loads(normalizer.__getstate__())
    bound = normalized_length(entry)
    for text in (
        "",
        "a",
        "aaaa b",
        "\ufdfa" * 5,
        "\u0390\u1f82\u1fa7",
        "\u0130İẞ",
        "猫" * 9,
        "\U0001f98a",
        "\u0958\ufb2c",
    ):
        assert len(normalizer.normalize_str(text)) <= bound(text), text


def test_tokenizers_of_published_pipelines_are_far_from_the_bound():
    clip = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    vectors = " ".join(f"<toy>_{number}" for number in range(16))
    inverted = [normalizers.Replace(Regex(r"<toy>(?!_\d)"), vectors)]
    bound = normalized_length(json.loads(normalizers.Sequence([*inverted, clip]).__getstate__()))
    assert bound("a <toy> cat, " * 20) < MAX_NORMALIZED / 10
    names = ["toy", "style", "dress", "cat", "house"]
    many = [normalizers.Replace(Regex(rf"<{name}>(?!_\d)"), vectors.replace("toy", name)) for name in names]
    chain = normalizers.Sequence([*many, clip])
    bound, text = normalized_length(json.loads(chain.__getstate__())), "a <toy> <cat>_1 <dress>"
    assert len(chain.normalize_str(text)) <= bound(text) < 10_000


def test_normalizers_have_a_number(tmp_path):
    with pytest.raises(sf.BundleError, match="it must have at most 1000 normalizers, got 1001"):
        write(tmp_path, normalizer=normalizers.Sequence([normalizers.Lowercase()] * 1001))


def test_a_panic_of_the_library_is_an_error_of_the_bundle(tmp_path, capfd):
    tokenizer = write(tmp_path, split="(a|aa)+$")
    with pytest.raises(sf.BundleError, match=r"tokenizer\.json cannot encode a prompt: .*retry-limit"):
        tokenizer.encode("a" * 60 + "!")


def test_a_template_that_does_not_fit_the_context_is_refused(tmp_path):
    many = processors.TemplateProcessing(single="$A" + " b" * 9, special_tokens=[("b", 1)])
    with pytest.raises(sf.BundleError, match=r"tokenizer\.json"):
        write(tmp_path, processor=many).encode("a")


@pytest.mark.parametrize("content", ["", "{}", "[" * 100_000, '{"model": 3}', "\x00"])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(sf.BundleError, match=r"tokenizer\.json is no file of the tokenizers library"):
        PromptTokenizer(OpenFile(tmp_path / "tokenizer.json"), PROMPT)


def test_a_context_has_a_bound():
    with pytest.raises(ValueError, match="length must be at least 1, at most 65536, got 1000000000"):
        PromptInput("input_ids", "tokenizer.json", 10**9, 0)


def with_network(monkeypatch, name, change):
    """The handmade parts with one changed: (nodes, inputs, outputs, constants)."""
    own = getattr(handmade, name)
    monkeypatch.setattr(handmade, name, lambda: change(*own()))


def renamed(nodes, inputs, outputs, constants, *, ending, **extra):
    """The network with nodes behind its first output."""
    first = outputs[0][0]
    for node in nodes:
        node.output[:] = [f"{one}_before" if one == first else one for one in node.output]
    return (
        [*nodes, *ending(f"{first}_before", first)],
        inputs,
        [(first, ["x"] * 3), *outputs[1:]],
        {**constants, **extra},
    )


ENDINGS = {
    "half the width": lambda before, after: [helper.make_node("Slice", [before, "0", "2", "last"], [after])],
    "no rows": lambda before, after: [helper.make_node("Slice", [before, "0", "0", "rows"], [after])],
    "twice": lambda before, after: [helper.make_node("Concat", [before, before], [after], axis=1)],
    "an axis more": lambda before, after: [helper.make_node("Unsqueeze", [before, "0"], [after])],
}
EXTRA = {"0": np.int64([0]), "2": np.int64([2]), "last": np.int64([-1]), "rows": np.int64([0])}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("network", "call", "message"),
    [
        (
            "_decoder",
            lambda pipe: pipe("a cat"),
            r"image of vae_decoder\.onnx must have shape \(1, 1, 8, 8\) or \(1, 3, 8, 8\)",
        ),
        (
            "_encoder",
            lambda pipe: pipe.encode_image(np.zeros((8, 8, 3), np.float32)),
            r"latent of vae_encoder\.onnx must have",
        ),
        (
            "_text_encoder",
            lambda pipe: pipe.encode_prompt("a cat"),
            r"text of text_encoder\.onnx must have shape \(1, 6, 3\)",
        ),
    ],
)
def test_networks_of_another_shape_are_named(tmp_path, monkeypatch, ending, network, call, message):
    with_network(monkeypatch, network, lambda *parts: renamed(*parts, ending=ENDINGS[ending], **EXTRA))
    with (
        sf.TextToImage.load(handmade.write_bundle(tmp_path / "bundle"), threads=1) as pipe,
        pytest.raises(sf.DenoiserError, match=message),
    ):
        call(pipe)
