"""Rounds in turn, and intervals of medians, against SciPy's bootstrap."""

import gc

import numpy as np
import pytest
import tolerances
from scipy import stats

from stepfuse.benchmarking import timing


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the work says so."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def test_every_call_is_timed_once_a_round_in_another_order(clock):
    made, takes = [], {"a": 1.0, "b": 2.0, "c": 0.5}

    def call(name):
        assert len(made) < 6 or not gc.isenabled()
        made.append(name)
        clock[0] += takes[name] if len(made) > 3 else 100.0  # what is made once takes longer, and is not timed

    gc.enable()
    found = timing.in_turn({name: lambda name=name: call(name) for name in takes}, seconds=35.0)
    assert gc.isenabled()
    assert found == {name: [pytest.approx(seconds)] * 10 for name, seconds in takes.items()}  # 3.5 s a round
    rounds = [tuple(made[at : at + 3]) for at in range(6, len(made), 3)]
    assert len(rounds) == 10
    assert all(sorted(one) == sorted(takes) for one in rounds)
    assert len(set(rounds)) > 1


@pytest.mark.parametrize(("seconds", "rounds"), [(1.0, 5), (1e9, 200)])
def test_rounds_have_bounds(clock, seconds, rounds):
    def call():
        clock[0] += 1.0

    seen = []
    found = timing.in_turn({0: call}, seconds=seconds, on_round=lambda done, total: seen.append((done, total)))
    assert len(found[0]) == rounds
    assert seen[-1] == (rounds, rounds)


@pytest.mark.parametrize("number", [5, 30, 111])
def test_the_interval_of_a_median_is_that_of_scipy_s_bootstrap(number):
    values = np.random.default_rng(number).lognormal(size=number)
    wanted = stats.bootstrap((values,), np.median, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    np.testing.assert_allclose(timing.median_interval(values), wanted, rtol=tolerances.BOOTSTRAP)


def test_the_interval_of_a_ratio_is_that_of_scipy_s_bootstrap():
    rng = np.random.default_rng(0)
    values, others = rng.lognormal(0.3, 0.2, 40), rng.lognormal(0.0, 0.2, 25)

    def ratio(a, b, axis):
        return np.median(a, axis=axis) / np.median(b, axis=axis)

    wanted = stats.bootstrap((values, others), ratio, method="percentile", n_resamples=20_000, vectorized=True, rng=1)
    found = timing.ratio_interval(values, others)
    np.testing.assert_allclose(found, wanted.confidence_interval, rtol=tolerances.BOOTSTRAP)


def test_the_spread_is_a_share_of_the_median():
    assert timing.spread([1.0, 1.0, 1.0]) == 0
    assert timing.spread(np.arange(8, 13)) == pytest.approx((11.2 - 8.8) / 10)
    assert np.isnan(timing.percentile([], 50))
