"""The public names of ``stepfuse.analysis``: what ``__all__`` lists, and no module hidden behind one of them."""

import importlib
import pkgutil
from types import ModuleType

from stepfuse import analysis

MODULES = [module.name for module in pkgutil.walk_packages(analysis.__path__, "stepfuse.analysis.")]


def test_public_names_are_what_all_lists():
    public = {name for name, value in vars(analysis).items() if not name.startswith("_")}
    assert {name for name in public if not isinstance(getattr(analysis, name), ModuleType)} == set(analysis.__all__)
    assert analysis.__all__ == sorted(analysis.__all__)


def test_no_public_name_hides_a_module():
    assert {name.rpartition(".")[2] for name in MODULES if name.count(".") == 2} & set(analysis.__all__) == set()
    for name in MODULES:
        parent, _, last = name.rpartition(".")
        module = importlib.import_module(name)
        assert getattr(importlib.import_module(parent), last) is module


def test_calls_that_share_their_modules_name_are_the_calls():
    for name in ("frontier", "orderings", "paths", "reproducibility"):
        assert getattr(analysis, name).__module__ == f"stepfuse.analysis.experiments.{name}"
