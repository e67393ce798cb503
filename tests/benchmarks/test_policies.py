"""``policy="auto"`` against simple schedules, replayed at a small size; ``benchmarks/policies.py`` has the whole."""

from functools import cache
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def policies():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        import policies

        yield policies


@pytest.fixture(scope="module")
def figures(policies):
    """Latencies by system, of one curve at one load."""

    @cache
    def figures_of(curve, load):
        from load import poisson
        from simulated import capacity

        cost, size = policies.CURVES[curve], policies.Size(seeds=6, requests=1000, warm=100)
        rate = load * capacity(cost, policies.MAX_ROWS)
        loads = [poisson(size.requests, rate, seed) for seed in range(size.seeds)]
        return {name: policies.measured(run, loads, size) for name, run in policies.systems(cost).items()}

    return figures_of


LINEAR, FREE = ("row-linear", 0.95), ("row-free", 0.8)


def over_the_best(found, name, figure):
    return found[name][figure] / min(other[figure] for other in found.values())


@pytest.mark.parametrize("cell", [("row-linear", 0.5), LINEAR, ("between", 0.8), ("between", 0.95), FREE], ids=str)
def test_no_simple_schedule_has_a_much_lower_mean_or_95th_percentile(policies, figures, cell):
    for figure in policies.CLAIMED:
        assert over_the_best(figures(*cell), policies.AUTO, figure) <= policies.WITHIN


def test_each_simple_schedule_is_far_from_the_best_somewhere(policies, figures):
    """Or the test above would hold of any of them."""
    others = set(policies.systems(policies.CURVES["between"])) - {policies.AUTO}
    for name in others:
        worst = max(
            over_the_best(figures(*cell), name, figure) for cell in (LINEAR, FREE) for figure in policies.CLAIMED
        )
        assert worst > 1.2, name
