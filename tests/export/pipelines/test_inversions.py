"""Textual inversions of several vectors: the ids that diffusers' pipeline feeds to its text encoder."""

import json

import pytest
import tiny_pipelines

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

from tokenizers import Tokenizer  # noqa: E402

from stepfuse.export import ExportError  # noqa: E402
from stepfuse.export.pipelines.inversions import textual_inversions, with_inversions  # noqa: E402
from stepfuse.export.pipelines.pipeline_folder import PipelineFolder  # noqa: E402
from stepfuse.export.pipelines.tokenizer import read_tokenizer  # noqa: E402

EMBEDDINGS = {"<one>": 1, "<toy>": 3, "<Sun.*>": 2}
PROMPTS = [
    "a red cat",
    "a <one> cat",
    "a <toy> cat",
    "<toy>",
    "<toy><toy>, <one> and <Sun.*>.",
    "the second vector alone: <toy>_1",
]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inverted")
    source = tiny_pipelines.save_tiny("StableDiffusionPipeline", folder / "plain")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(source, safety_checker=None)
    for token, vectors in EMBEDDINGS.items():
        pipe.load_textual_inversion({token: torch.randn(vectors, 16)}, token=token)
    pipe.save_pretrained(folder / "pipe")
    return folder / "pipe", diffusers.StableDiffusionPipeline.from_pretrained(folder / "pipe", safety_checker=None)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_every_vector_is_read(pipe, prompt):
    folder, theirs = pipe
    file = read_tokenizer(PipelineFolder(folder), "tokenizer")
    ours = Tokenizer.from_str(file.json)
    ours.enable_truncation(file.length)
    text = theirs.maybe_convert_prompt(prompt, theirs.tokenizer)
    expected = theirs.tokenizer(text, padding="max_length", max_length=file.length, truncation=True)["input_ids"]
    ids = ours.encode(prompt).ids
    assert ids + [file.pad_id] * (file.length - len(ids)) == expected


def test_embeddings_of_one_vector_need_nothing():
    assert textual_inversions({"<one>": 5, "<two>": 6, "<two>_2": 7}) == {}
    assert with_inversions("as it is", {}) == "as it is"


def test_a_name_that_is_taken_is_refused():
    tokenizer = json.dumps({"added_tokens": [{"content": "a"}, {"content": "a_0"}, {"content": "a_1"}]})
    with pytest.raises(ExportError, match="must not have a token 'a_0' beside 'a', 'a_1'"):
        with_inversions(tokenizer, textual_inversions(["a", "a_0", "a_1"]))
