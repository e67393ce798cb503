"""Classes of diffusers, compiled, against themselves: what a call returns, and the way it is made, as documented."""

import itertools
import logging
import sys
from functools import wraps
from pathlib import Path

import numpy as np
import pytest
import tolerances

diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

import torch  # noqa: E402

from stepfuse.integrations.diffusers import compile  # noqa: E402
from stepfuse.integrations.diffusers.torch_step import warn_once  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("where"),
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning", "ignore::FutureWarning"),
]

FAMILIES = ("stable_pipelines", "stable_3_pipelines", "flux_pipelines", "text_pipelines", "video_pipelines")
CASES = [case for family in FAMILIES for case in sys.modules[family].CASES]


def documented():
    """Way and bound of the error by class, from docs/export.md."""
    lines = (Path(__file__).parents[4] / "docs/export.md").read_text().splitlines()
    first = lines.index("| classes shown | way | error |") + 2
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[first:])
    for row in rows:
        names, way, error = (cell.strip() for cell in row.replace("`", "").strip("|").split("|"))
        yield from ((name, (way, float(error))) for name in names.split(", "))


DOCUMENTED = dict(documented())


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("case", CASES, ids=[case.label for case in CASES])
def test_pictures_are_those_of_diffusers(case, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="stepfuse")
    warn_once.cache_clear()
    pipe = case.pipeline()
    want, own = case.call(pipe), pipe.scheduler
    compiled = compile(pipe)
    if case.way != "diffusers":
        refused = wraps(type(own).step)(lambda *_, **__: pytest.fail("diffusers has stepped"))
        monkeypatch.setattr(type(own), "step", refused)
    got = case.call(compiled)
    assert want.shape == got.shape
    assert want.std() > 0.01
    error = np.abs(got - want).max() / max(1.0, np.abs(want).max())
    print(f"{case.label}: {case.way}, {error:.1e}")
    way, bound = DOCUMENTED[case.label]
    assert way == case.way
    assert error <= bound <= tolerances.COMPILED
    assert ("the engine runs the loop" in caplog.text) == (way == "loop")
    assert ("its own step" in caplog.text or "diffusers' own code" in caplog.text) == (way == "diffusers")
    assert compiled.scheduler is own


def test_the_table_lists_what_is_shown():
    assert DOCUMENTED.keys() == {case.label for case in CASES}
    assert len({case.name for case in CASES}) >= 30
