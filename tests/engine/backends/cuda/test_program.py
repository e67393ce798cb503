"""Which kernels a step needs beside the fused step."""

import json
from itertools import product
from pathlib import Path

import pytest

from stepfuse._core import cuda
from stepfuse.backends.cuda.program import adapting_kernels

#: What is compiled for each architecture, as recorded by ``make cubins``.
COMPILED = json.loads((Path(__file__).parents[4] / "benchmarks/results/cubins.json").read_text())["variants"]

EVERY = cuda.StepNeeds(noise=True, guidance=True, threshold=True, keep=True, renorm=True)


class Named:
    def named(self, name):
        return name


@pytest.mark.parametrize(("storage", "n"), list(product(("float32", "float16", "bfloat16"), (16, 20))))
def test_what_is_asked_for_is_compiled(storage, n):
    found = adapting_kernels(Named(), storage, n, EVERY)
    adapting = ["guidance_sums", "guided_rows", "magnitude_counts", "thresholded_rows", "keep_known"]
    assert list(found) == [*adapting, "renormed_predictions"]
    for name, variant in found.items():
        assert variant in COMPILED
        assert variant.split(".")[0] == name
        layout = "" if name == "renormed_predictions" else "any" if n % 16 else "aligned"
        assert variant == name or (storage in variant and variant.endswith(layout))


@pytest.mark.parametrize(
    ("needs", "names"),
    [
        ({"noise": True}, []),
        ({"guidance": True}, ["guidance_sums", "guided_rows"]),
        ({"threshold": True}, ["magnitude_counts", "thresholded_rows"]),
        ({"keep": True}, ["keep_known"]),
        ({"renorm": True}, ["renormed_predictions"]),
    ],
    ids=str,
)
def test_nothing_is_loaded_that_no_step_needs(needs, names):
    assert sorted(adapting_kernels(Named(), "float32", 16, cuda.StepNeeds(**needs))) == names
