"""Names, parameters and options that users rely on: none goes or changes without a line here that says so."""

import public_names
import pytest

pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")


def test_the_public_names_are_those_of_the_file():
    was, now = public_names.FILE.read_text().splitlines(), public_names.public().splitlines()
    gone, new = sorted(set(was) - set(now)), sorted(set(now) - set(was))
    how = "; where that is meant, run python tests/public_names.py, and say it in CHANGELOG (docs/versions.md)"
    assert not gone, f"gone or changed: {gone}{how}"
    assert not new, f"new: {new}{how}"
    assert was == now


def test_what_is_public_is_what_modules_list():
    shown = public_names.FILE.read_text()
    assert "stepfuse.StepTable.save(self, path)" in shown
    assert "stepfuse.samplers.ddim(schedule, steps=None, *, timesteps=None" in shown
    assert "$ stepfuse sample --steps" in shown
