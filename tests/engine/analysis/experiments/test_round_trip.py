"""There and back again: against Euler's error on a Gaussian, and on real images."""

import numpy as np
import pytest
import support

import stepfuse as sf
from stepfuse.analysis.experiments.round_trip import round_trip
from stepfuse.analysis.figures.round_trip import draw_round_trip
from stepfuse.analysis.measures.judge import Judge

SPREAD = 0.5
SCHEDULE = sf.NoiseSchedule.linear()
IMAGES = np.random.default_rng(0).normal(0, SPREAD, (6, 20))


def exact_eps(x, t, _cond):
    """The noise prediction of normal data of deviation SPREAD."""
    a = SCHEDULE.alphas_cumprod[t.astype(int)].reshape(-1, *[1] * (x.ndim - 1))
    return np.sqrt(1 - a) * x / (a * SPREAD**2 + 1 - a)


def gaussian():
    return sf.Engine.from_callable(exact_eps, shape=(20,), schedule=SCHEDULE)


@pytest.mark.parametrize("steps", [10, 50])
def test_unrefined_it_is_the_product_of_both_ways_factors(steps):
    """On a Gaussian every step multiplies, and inversion takes the noise estimate of t at the state of s."""
    t = np.arange(steps)[::-1] * (1000 // steps)
    s = t - 1000 // steps
    a = SCHEDULE.alphas_cumprod[t]
    b = np.where(s >= 0, SCHEDULE.alphas_cumprod[np.maximum(s, 0)], 1.0)
    slope = np.sqrt(1 - a) / (a * SPREAD**2 + 1 - a)
    down = np.sqrt(b / a) * (1 - np.sqrt(1 - a) * slope) + np.sqrt(1 - b) * slope
    up = np.sqrt(a / b) * (1 - np.sqrt(1 - b) * slope) + np.sqrt(1 - a) * slope
    with gaussian() as engine:
        [row] = round_trip(engine, IMAGES, steps=[steps], refinements=[0]).rows
    assert row.mse == pytest.approx((np.prod(down * up) - 1) ** 2 * np.mean(IMAGES**2), rel=2e-3)
    assert (row.passes, row.steps) == (2 * steps, steps)


def test_refinements_and_steps_bring_it_nearer():
    with gaussian() as engine:
        rows = round_trip(engine, IMAGES, steps=[20, 5, 10], refinements=[1, 0, 2]).rows
    assert [(row.refinements, row.steps) for row in rows] == [(n, s) for n in (0, 1, 2) for s in (5, 10, 20)]
    error = {(row.refinements, row.steps): row.mse for row in rows}
    assert all(error[n, s] < error[n - 1, s] for n in (1, 2) for s in (5, 10, 20))
    assert all(error[n, s] < error[n, s // 2] for n in (0, 1, 2) for s in (10, 20))
    assert [row.passes for row in rows if row.steps == 10] == [20, 30, 40]
    assert all(row.mse <= row.mse_worst for row in rows)


@pytest.mark.slow
def test_real_images_come_back_at_a_hundred_steps_each_way():
    judge = Judge.load("fashion")
    images = judge.real_images[::10]
    with sf.Engine.load("fashion") as engine:
        plain = round_trip(engine, images, steps=[100], refinements=[1])
        conditioned = round_trip(engine, images, steps=[100], refinements=[1], cond=judge.real_labels[::10])
    assert plain.rows[0].mse <= 1e-3
    assert conditioned.rows[0].mse <= 1e-3
    assert (plain.conditioned, conditioned.conditioned) == (False, True)
    assert plain.rows[0].noise_std == pytest.approx(1, abs=0.3)


def test_it_is_drawn_with_and_without_pictures():
    pytest.importorskip("matplotlib")
    images = np.random.default_rng(1).uniform(-1, 1, (2, *support.SHAPE)).astype(np.float32)
    with support.make_engine() as engine, gaussian() as plain:
        assert len(draw_round_trip(round_trip(engine, images, steps=[2, 4], refinements=[0])).axes) == 2
        [curve] = draw_round_trip(round_trip(plain, IMAGES, steps=[2, 4], refinements=[0, 1])).axes
    assert [line.get_label() for line in curve.get_lines()] == ["0 refinements a step", "1 refinement a step"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"steps": []}, ValueError, "steps must be at least one, got none"),
        ({"refinements": [-1]}, ValueError, "refinements must be at least 0, got -1"),
        ({"steps": [1.5]}, TypeError, "steps must be a whole number, got 1.5"),
        ({"images": IMAGES[:, 1:]}, ValueError, r"images must have shape \(n, 20\), got \(6, 19\)"),
        ({"images": IMAGES[:0]}, ValueError, r"images must have shape \(n, 20\), got \(0, 20\)"),
        ({"images": IMAGES * np.nan}, ValueError, "images must be finite, got nan"),
    ],
)
def test_bad_input_is_named(given, error, message):
    with gaussian() as engine, pytest.raises(error, match=message):
        round_trip(engine, **{"images": IMAGES, "steps": [3], "refinements": [0], **given})


def test_images_of_other_units_are_refused():
    with sf.Engine.load("fashion") as engine, pytest.raises(ValueError, match="data range, -1 to 1, got 255"):
        round_trip(engine, np.full((1, 1, 28, 28), 255.0), steps=[3])
