"""Each class's saved file as each other class: what diffusers' ``from_config`` makes of it, over whole runs."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import peers
import pytest
import saved_schedulers
import tolerances

from stepfuse.integrations.diffusers import __all__
from stepfuse.integrations.scheduler_config import COVERED, DEFAULTS, UncoveredSchedulerError, read_scheduler
from stepfuse.integrations.uncovered import REASONS

pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning:diffusers")

STEPS = 5
#: Entries of files that some class refuses, since no sampler does what diffusers then does, or diffusers itself fails.
REFUSED = {
    "algorithm_type": "solvers of a kind that the class has in diffusers, or is refused by it",
    "final_sigmas_type": "Euler's method ends clean",
    "skip_prk_steps": "Runge-Kutta steps keep more than a table's registers hold",
    "solver_order": "third order",
    "thresholding": "of noise estimates",
}


@pytest.fixture(scope="module")
def files():
    found = saved_schedulers.files()
    assert {one["_class_name"] for one in found.values()} >= set(COVERED)
    return found


def kind_of(config):
    """What states and timesteps a network has: those of one kind mean nothing to another."""
    schedule = read_scheduler(config).schedule
    return "flow" if schedule.is_flow else "edm" if schedule.is_edm else "preserving"


def effective(target, file):
    """The entries that a class reads, so that files that differ in others are run once."""
    entries = {**DEFAULTS[target], **{name: file[name] for name in ("sigma_min", "sigma_max") if name in file}}
    return json.dumps({name: file.get(name, value) for name, value in entries.items()}, sort_keys=True)


def ours(settings, steps):
    with peers.engine(settings.schedule, settings.prediction_type) as engine:
        return engine.sample(
            peers.BATCH, cond=1.0, steps=steps, noise=peers.NOISE, seed=peers.SEED, **settings.defaults
        )


def documented(title):
    """The rows of a table of docs/export.md, by class."""
    lines = (Path(__file__).parents[3] / "docs/export.md").read_text().splitlines()
    first = lines.index(title) + 2
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[first:])
    cells = ([cell.strip() for cell in row.strip("|").split("|")] for row in rows)
    return {name.strip("`"): rest for name, *rest in cells}


READ = documented("| scheduler | sampler | read | refused | without meaning | error | drop-in | `compile` |")


@pytest.mark.parametrize("target", COVERED)
def test_a_file_of_another_class_is_read_as_from_config_reads_it(target, files, monkeypatch):
    seen, refusals, worst = set(), [], 0.0
    usual = kind_of({"_class_name": target, "skip_prk_steps": True})
    for name, file in files.items():
        given = effective(target, file)
        if given in seen:
            continue
        seen.add(given)
        try:
            settings = read_scheduler({**file, "_class_name": target})
        except UncoveredSchedulerError as error:
            if usual == kind_of(file):
                refusals.append((str(error), json.loads(given)))
            continue
        except (TypeError, ValueError):  # an end of noise levels that is None, or more levels than timesteps
            with pytest.raises((TypeError, ValueError)):
                peers.configured(target, file, STEPS)
            continue
        if kind_of({**file, "_class_name": target}) != kind_of(file):
            continue
        for steps in (STEPS, 25) if file["_class_name"] == target else (STEPS,):
            try:
                want = peers.run(peers.configured(target, file, steps), monkeypatch)
            except RuntimeError:  # a solver's matrix without an inverse: a step of higher order to a clean sample
                want = np.full(1, np.inf)
            got = ours(settings, steps)
            assert np.isfinite(got).all(), name
            if np.isfinite(want).all():
                error = float(np.abs(got - want).max() / max(np.abs(want).max(), 1.0))
                assert error < tolerances.MULTISTEP, name
                worst = max(worst, error)
    print(f"{target}: {worst:.1e}")
    assert 0 < worst <= float(READ[target][4]) < 10 * worst
    for message, entries in refusals:
        entry, value = re.match(rf"{target}: (\w+) must be .*?, got ([^:]*)", message).groups()
        assert entry in REFUSED, message
        assert value == repr(entries[entry]), message


def test_the_tables_of_the_documentation_name_every_class():
    assert set(READ) == set(COVERED)
    assert documented("| scheduler | why |") == {name: [why] for name, why in REASONS.items()}
    drop_ins = {name for name, row in READ.items() if row[5] == "yes"}
    assert drop_ins == set(__all__) & set(COVERED)
