"""Every public name has a docstring with an example, and the examples give what they show."""

import doctest
import re

import docstrings
import lora_files
import numpy as np
import pytest

import stepfuse as sf

pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")
pytest.importorskip("matplotlib")

PUBLIC = dict(docstrings.public())
#: Examples, or lines of them, that cannot run here, and why.
SKIPPED = {
    "stepfuse.Engine.from_torch": "needs a GPU",
    "stepfuse.bench": "takes a minute; its own tests measure",
    "stepfuse.kernels.tune": "needs a GPU",
    "stepfuse.analysis.Frontier.from_json": "reads a report",
    "stepfuse.analysis.analyze": "takes minutes",
    "stepfuse.analysis.redraw": "reads a report",
    "stepfuse.export.from_diffusers": "takes a minute; the pages' tests export",
    "stepfuse.export.quantize": "takes minutes; its own tests quantise",
    "stepfuse.integrations.diffusers.DPMSolverSDEScheduler": "needs torchsde",
    "stepfuse.integrations.ray.deployment": "needs a cluster; its own tests have one",
    "stepfuse.integrations.ray.without_written": "needs a cluster; its own tests have one",
}
#: Methods without an example, and why.
WITHOUT = {"stepfuse.EngineStats.of": "takes what the core alone makes"}
EXAMPLES = {
    **{path: text for path, text in PUBLIC.items() if ">>>" in text},
    **{f"{path}.{name}": text for path in PUBLIC for name, text in docstrings.members(path) if ">>>" in text},
}


def test_every_public_name_has_a_docstring_with_an_example():
    assert [path for path, text in PUBLIC.items() if ">>>" not in text] == []


def test_every_public_method_has_a_docstring_and_is_in_an_example():
    missing = []
    for path in PUBLIC:
        for name, text in docstrings.members(path):
            shown = ">>>" in text or any(re.search(rf"\.{name}\b", one) for one in map(code, docstrings.bases(path)))
            if not (text and shown):
                missing.append(f"{path}.{name}")
    assert missing == list(WITHOUT)


def test_what_is_skipped_is_listed():
    assert {path for path, text in EXAMPLES.items() if "+SKIP" in text} == set(SKIPPED)


def code(text):
    return "\n".join(example.source for example in doctest.DocTestParser().get_examples(text))


@pytest.fixture
def here(exported, tmp_path, monkeypatch):
    """A folder with a pipeline and a LoRA, for those examples that name them."""

    def lend(text):
        monkeypatch.chdir(tmp_path)
        if "my-pipeline" in text:
            (tmp_path / "my-pipeline").symlink_to(exported("StableDiffusionPipeline").path)
        if "stable-diffusion-folder" in text:
            (tmp_path / "stable-diffusion-folder").symlink_to(
                exported("StableDiffusionPipeline").path.parent / "StableDiffusionPipeline"
            )
        if "style.safetensors" in text:
            lora_files.write_lora(tmp_path / "style.safetensors")

    return lend


@pytest.mark.parametrize("path", EXAMPLES)
def test_the_example_gives_what_it_shows(path, here):
    text = EXAMPLES[path]
    here(text)
    names = {"sf": sf, "np": np}
    test = doctest.DocTestParser().get_doctest(text, names, path, None, 0)
    written = []
    options = doctest.NORMALIZE_WHITESPACE
    failed = doctest.DocTestRunner(optionflags=options).run(test, out=written.append, clear_globs=False).failed
    for value in test.globs.values():
        if isinstance(value, sf.Engine | sf.TextToImage):
            value.close(abort=True)
    assert not failed, "".join(written)
