"""The exact noise prediction against scipy's densities, against the sampler tests' own formula, and in a run."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import multivariate_normal

import stepfuse as sf
from stepfuse.analysis.experiments.mixture import GaussianMixture

UNEVEN = GaussianMixture([[1.5, 0.0], [-0.75, 1.3], [-0.75, -1.3]], [0.2, 0.5, 0.05], [5, 3, 2])
SCHEDULES = [
    pytest.param(sf.NoiseSchedule.linear(), id="linear"),
    pytest.param(sf.NoiseSchedule.squaredcos(num_train_timesteps=100), id="squaredcos"),
    pytest.param(sf.NoiseSchedule.linear().rescale_zero_terminal_snr(), id="zero-terminal-snr"),
    pytest.param(sf.NoiseSchedule.flow(), id="flow"),
]


def scipy_density(mixture, x, signal, noise):
    """Of signal x0 + noise z, by scipy."""
    return sum(
        weight * multivariate_normal.pdf(x, signal * mean, (signal * spread) ** 2 + noise**2)
        for mean, spread, weight in zip(mixture.means, mixture.spreads, mixture.weights, strict=True)
    )


def scipy_score(mixture, x, signal, noise, h=1e-4):
    """The gradient of its logarithm, by central differences."""
    log = [
        [np.log(scipy_density(mixture, x + sign * h * axis, signal, noise)) for sign in (1, -1)]
        for axis in np.eye(x.shape[1])
    ]
    return np.stack([(up - down) / (2 * h) for up, down in log], axis=1)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 1.0])
def test_the_noise_is_the_slope_of_scipys_density(schedule, share):
    t = np.full(20, round(share * schedule.max_timestep), dtype=np.float32)
    signal, noise = (level[0] for level in schedule.levels(t))
    x = signal * UNEVEN.draw(20, seed=1) + noise * np.random.default_rng(2).standard_normal((20, 2))
    data, predicted = UNEVEN.expected(x, signal, noise)
    expected = -noise * scipy_score(UNEVEN, x, signal, noise)
    np.testing.assert_allclose(predicted, expected, atol=1e-5)
    np.testing.assert_allclose(signal * data + noise * predicted, x, atol=1e-12)
    np.testing.assert_allclose(np.exp(UNEVEN.log_density(x, signal, noise)), scipy_density(UNEVEN, x, signal, noise))
    if schedule.is_flow:
        predicted = predicted - data
    np.testing.assert_allclose(UNEVEN.denoiser(schedule)(x, t, {}), predicted, atol=1e-12)


def test_it_is_what_the_sampler_tests_derive_for_themselves():
    spec = importlib.util.spec_from_file_location("oracle", Path(__file__).parents[2] / "test_mixture.py")
    oracle = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(oracle)
    t = np.random.default_rng(0).integers(0, 1000, 500)
    x = np.random.default_rng(1).standard_normal((500, 2))
    mixture = GaussianMixture(oracle.MEANS, oracle.SPREAD, oracle.WEIGHTS)
    np.testing.assert_allclose(mixture.denoiser(oracle.SCHEDULE)(x, t, {}), oracle.exact_eps(x, t, {}), atol=1e-12)


def test_one_component_in_five_dimensions_flows_as_a_gaussian():
    """The probability-flow ODE scales what is off the mean by the ratio of deviations (Song et al., 2021)."""
    schedule, mean, spread = sf.NoiseSchedule.linear(), np.arange(5.0), 0.5
    noise = np.random.default_rng(0).standard_normal((8, 5))
    with GaussianMixture([mean], spread).engine(schedule) as engine:
        samples = engine.sample(8, sampler="ddim", steps=1000, noise=noise)
    a = schedule.alphas_cumprod[-1]
    expected = mean + (noise - np.sqrt(a) * mean) * spread / np.sqrt(a * spread**2 + 1 - a)
    np.testing.assert_allclose(samples, expected, atol=0.01)


@pytest.mark.parametrize(
    ("schedule", "sampler"), [(sf.NoiseSchedule.linear(), "ddim"), (sf.NoiseSchedule.flow(), "euler")]
)
def test_a_run_samples_each_component_as_often_as_it_is_weighted(schedule, sampler):
    with UNEVEN.engine(schedule, max_rows=1000) as engine:
        samples = engine.sample(1000, sampler=sampler, steps=50, seed=0)
    both = [np.bincount(nearest(points), minlength=3) / 1000 for points in (samples, UNEVEN.draw(1000, seed=0))]
    for shares in both:  # three standard deviations of a share of 1000
        np.testing.assert_allclose(shares, UNEVEN.weights, atol=3 * np.sqrt(0.25 / 1000))


def nearest(points):
    return np.linalg.norm(points[:, None] - UNEVEN.means, axis=2).argmin(1)


def test_exact_samples_depend_on_their_seed_alone():
    np.testing.assert_array_equal(UNEVEN.draw(5, seed=3), UNEVEN.draw(5, seed=3))
    assert not np.array_equal(UNEVEN.draw(5, seed=3), UNEVEN.draw(5, seed=4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(([1.0, 2.0], 1.0), r"means must be finite, of shape \(components, dimensions\), got", id="flat"),
        pytest.param(([[np.nan]], 1.0), "means must be finite", id="nan"),
        pytest.param(([[0.0], [1.0]], [1, 1, 1]), r"spreads must be .* 2 components, got shape \(3,\)", id="too-many"),
        pytest.param(([[0.0]], 0.0), "spreads must be above 0 and finite, got 0.0", id="no-spread"),
        pytest.param(([[0.0], [1.0]], 1.0, [1, -1]), r"weights must be above 0 .*, got \[1, -1\]", id="negative"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*arguments)


def test_points_of_another_dimension_are_refused():
    with pytest.raises(ValueError, match=r"x must have shape \(points, 2\), got \(3, 5\)"):
        UNEVEN.log_density(np.zeros((3, 5)))
