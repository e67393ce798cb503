"""Walks between noises: smooth and the same in every run without step noise, neither with it."""

import numpy as np
import pytest
import support

import stepfuse as sf
from stepfuse.analysis.experiments.smoothness import interpolation_smoothness
from stepfuse.analysis.figures.smoothness import draw_smoothness

SPREAD = 0.5
SCHEDULE = sf.NoiseSchedule.linear()


def exact_eps(x, t, _cond):
    """The noise prediction of normal data of deviation SPREAD."""
    a = SCHEDULE.alphas_cumprod[t.astype(int)].reshape(-1, *[1] * (x.ndim - 1))
    return np.sqrt(1 - a) * x / (a * SPREAD**2 + 1 - a)


def gaussian(**options):
    return sf.Engine.from_callable(exact_eps, **{"shape": (200,), "schedule": SCHEDULE, **options})


def test_a_gaussian_s_walk_is_known_in_closed_form():
    """DDIM scales the noise, so frames differ by the scaled difference of the noises; DDPM's are independent."""
    with gaussian() as engine:
        samplers = [("ddim", {"steps": 500}), ("ddpm", {"steps": 500, "variance": "posterior"})]
        ddim, ddpm = interpolation_smoothness(engine, frames=5, runs=3, samplers=samplers).rows
    walk = sf.requests.interpolation.interpolate_noise(sf.normal(0, (200,)), sf.normal(1, (200,)), 5)
    expected = np.mean([np.mean((walk[i] - walk[i + 1]) ** 2) for i in range(4)]) * SPREAD**2
    assert ddim.neighbour_mse == pytest.approx(expected, rel=0.02)
    assert ddim.variance == 0.0
    assert ddpm.neighbour_mse == pytest.approx(2 * SPREAD**2, rel=0.1)
    assert ddpm.variance == pytest.approx(SPREAD**2, rel=0.1)


def test_on_the_embedded_model_ddim_is_at_least_five_times_smoother_and_its_variance_is_exactly_zero():
    with sf.Engine.load("fashion") as engine:
        found = interpolation_smoothness(engine, frames=6, runs=2, cond="sneaker")
    ddim, ddpm = found.rows
    assert (ddim.steps, ddim.options, ddpm.steps) == (50, "eta 0, guidance 3", 50)
    assert ddim.neighbour_mse * 5 <= ddpm.neighbour_mse
    assert ddim.variance == 0.0
    assert all(point.variance == 0.0 for point in found.points if point.sampler == "ddim")
    assert all(point.variance > 0.0 for point in found.points if point.sampler == "ddpm")
    assert found.cond == "sneaker"


def test_points_are_those_of_the_walks():
    with support.make_engine() as engine:
        found = interpolation_smoothness(
            engine, frames=4, runs=2, seed=3, samplers=[("ddim", {"steps": 5, "eta": 1.0})]
        )
        walk = sf.requests.interpolation.interpolate_noise(sf.normal(3, support.SHAPE), sf.normal(4, support.SHAPE), 4)
        again = engine.sample(4, noise=walk, cond="boot", steps=5, eta=1.0, seed=3 + 2 + 4)
    np.testing.assert_array_equal(found.images[0, 1], again)
    assert [point.share for point in found.points] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    gaps = [np.mean((found.images[0, :, i] - found.images[0, :, i + 1]) ** 2) for i in range(3)]
    assert [point.mse_to_next for point in found.points[:-1]] == pytest.approx(gaps, rel=1e-5)
    assert found.points[-1].mse_to_next is None
    assert found.rows[0].neighbour_mse == pytest.approx(np.mean(gaps), rel=1e-5)


def test_it_is_drawn_with_and_without_pictures():
    pytest.importorskip("matplotlib")
    with support.make_engine() as engine, gaussian() as plain:
        samplers = [("ddim", {"steps": 3}), ("ddpm", {"steps": 3})]
        assert len(draw_smoothness(interpolation_smoothness(engine, samplers=samplers)).axes) == 2
        [curve] = draw_smoothness(interpolation_smoothness(plain, samplers=samplers)).axes
    assert len(curve.get_lines()) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"frames": 1}, "frames must be at least 2, got 1"),
        ({"runs": 1}, "runs must be at least 2, got 1"),
        ({"path": "straight"}, "path must be 'slerp' or 'lerp', got 'straight'"),
        ({"samplers": []}, "samplers must be at least one, got none"),
        ({"samplers": [("ddim", {"eta": 2})]}, "eta must be between 0 and 1, got 2"),
    ],
)
def test_bad_input_is_named(given, message):
    with gaussian() as engine, pytest.raises(ValueError, match=message):
        interpolation_smoothness(engine, **given)
