"""The cost of a forward, measured on a clock that the test keeps, and what the planner makes of it."""

import numpy as np
import pytest
import support

import stepfuse as sf
from stepfuse.serving import calibration


def measured(monkeypatch, seconds, max_rows=64):
    """``measure_cost`` of a network whose call number i of r rows takes ``seconds(r, i)``."""
    clock = {"now": 0.0, "calls": 0}

    def forward(rows):
        clock["now"] += seconds(rows, clock["calls"])
        clock["calls"] += 1

    monkeypatch.setattr(calibration.time, "perf_counter", lambda: clock["now"])
    return calibration.measure_cost(forward, max_rows)


@pytest.mark.parametrize("max_rows", [2, 3, 64, 100])
def test_a_straight_line_is_found(monkeypatch, max_rows):
    cost = measured(monkeypatch, lambda rows, call: 0.004 + 0.001 * rows, max_rows)
    np.testing.assert_allclose([cost.fixed, cost.row], [0.004, 0.001], rtol=1e-9)


def test_slow_moments_do_not_count(monkeypatch):
    def seconds(rows, call):
        return (0.004 + 0.001 * rows) * (3.0 if call % 3 else 1.0)

    cost = measured(monkeypatch, seconds)
    np.testing.assert_allclose([cost.fixed, cost.row], [0.004, 0.001], rtol=1e-9)


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(lambda rows, call: 0.001 * rows, id="nothing-fixed"),
        pytest.param(lambda rows, call: 0.001 * rows**1.2, id="more-than-in-proportion"),
        pytest.param(lambda rows, call: 0.01, id="rows-for-nothing"),
        pytest.param(lambda rows, call: 0.01 / rows, id="nonsense"),
        pytest.param(lambda rows, call: 0.01, id="one-row"),
    ],
)
def test_any_network_has_a_cost_that_the_planner_can_use(monkeypatch, seconds, request):
    cost = measured(monkeypatch, seconds, 1 if "one-row" in request.node.name else 64)
    assert cost.row > 0
    assert cost.fixed >= 0.05 * cost.row * (1 - 1e-12)


def test_an_engine_measures_its_own_network_and_takes_a_given_cost():
    with support.make_engine(max_rows=8) as engine:
        measured = engine.calibrate()
        assert measured.row > 0
        assert engine.stats()["forwards"] == 0, "what is measured is not counted"
        given = sf.CostCurve(fixed=0.02, row=0.005)
        assert engine.calibrate(given) is given
        assert given.seconds(4) == pytest.approx(0.04)


@pytest.mark.parametrize("given", [(-0.1, 1.0), (0.0, 0.0), (float("nan"), 1.0), (1.0, float("inf"))])
def test_a_cost_that_cannot_be_is_refused(given):
    with pytest.raises(ValueError, match="a cost curve needs fixed >= 0 and row > 0 seconds, got"):
        sf.CostCurve(*given)
