"""Samplers on a mixture of Gaussians, whose noise prediction is known exactly: all error is the sampler's own."""

import numpy as np
import pytest

import stepfuse as sf

pytestmark = pytest.mark.slow  # thousands of samples of a thousand steps

MEANS = np.array([[1.5, 0.0], [-0.75, 1.3], [-0.75, -1.3]])
SPREAD, WEIGHTS = 0.2, np.array([0.5, 0.3, 0.2])
SCHEDULE = sf.NoiseSchedule.linear()
N = 4000


def exact_eps(x, t, _cond):
    """E[z | x_t] where x_t = sqrt(a) x0 + sqrt(1 - a) z and x0 is drawn from the mixture.

    In component k, x_t is normal with mean sqrt(a) m_k and variance v = a s^2 + 1 - a, and
    E[z | x_t, k] = sqrt(1 - a) (x_t - sqrt(a) m_k) / v; its posterior weight is w_k exp(-|x_t - sqrt(a) m_k|^2 / 2v).
    """
    a = SCHEDULE.alphas_cumprod[t.astype(int)][:, None, None]
    offset = x[:, None, :] - np.sqrt(a) * MEANS
    variance = a * SPREAD**2 + 1 - a
    logits = np.log(WEIGHTS) - (offset**2).sum(2) / (2 * variance[:, :, 0])
    posterior = np.exp(logits - logits.max(1, keepdims=True))
    posterior /= posterior.sum(1, keepdims=True)
    return np.sqrt(1 - a[:, :, 0]) * (posterior[:, :, None] * offset / variance).sum(1)


def exact_draws(seed):
    rng = np.random.default_rng(seed)
    return MEANS[rng.choice(len(MEANS), N, p=WEIGHTS)] + SPREAD * rng.standard_normal((N, 2))


def sliced_wasserstein(a, b):
    """Mean distance between sorted projections, over 64 directions."""
    angle = np.pi * np.arange(64) / 64
    directions = np.stack([np.cos(angle), np.sin(angle)])
    return np.abs(np.sort(a @ directions, axis=0) - np.sort(b @ directions, axis=0)).mean()


@pytest.fixture(scope="module")
def distance():
    """Distance to the true distribution of N samples of a table."""
    engine = sf.Engine.from_callable(exact_eps, shape=(2,), schedule=SCHEDULE, max_rows=N)
    return lambda table: sliced_wasserstein(engine.sample(N, table=table, seed=0), exact_draws(0))


@pytest.fixture(scope="module")
def naive_50(distance):
    with pytest.warns(sf.NaiveSamplerWarning):
        return distance(sf.samplers.ddpm_strided(SCHEDULE, 50))


@pytest.mark.parametrize(
    ("sampler", "steps", "options", "times_better"),
    [
        pytest.param("ddim", 50, {}, 15, id="ddim"),
        pytest.param("ddim", 50, {"eta": 0.3}, 10, id="some-noise"),
        pytest.param("ddim", 50, {"eta": 1.0}, 5, id="all-noise"),
        pytest.param("ddpm", 50, {}, 5, id="respaced-ddpm"),
        pytest.param("dpmpp_2m", 20, {}, 5, id="dpmpp-2m"),
        pytest.param("heun", 20, {"karras": True}, 15, id="heun"),
    ],
)
def test_few_steps_are_far_better_than_naive_striding(sampler, steps, options, times_better, distance, naive_50):
    assert distance(getattr(sf.samplers, sampler)(SCHEDULE, steps, **options)) * times_better < naive_50


def test_ddim_50_is_close_to_ddpm_1000_and_both_to_the_truth(distance):
    sampling_error = sliced_wasserstein(exact_draws(0), exact_draws(1))
    ddim, ddpm = distance(sf.samplers.ddim(SCHEDULE, 50)), distance(sf.samplers.ddpm(SCHEDULE, 1000))
    assert ddim < 1.5 * ddpm
    assert max(ddim, ddpm) < 2 * sampling_error


@pytest.mark.filterwarnings("ignore::stepfuse.NaiveSamplerWarning")
def test_naive_striding_collapses_as_steps_are_left_out(distance, naive_50):
    distances = [distance(sf.samplers.ddpm_strided(SCHEDULE, steps)) for steps in (500, 250, 100)]
    assert distances == sorted(distances)
    assert 2 * distances[0] < distances[-1] < naive_50


@pytest.mark.parametrize("steps", [10, 50])
def test_ddim_with_all_noise_draws_what_respaced_ddpm_draws(steps):
    tables = sf.samplers.ddim(SCHEDULE, steps, eta=1.0), sf.samplers.ddpm(SCHEDULE, steps, variance="posterior")
    with sf.Engine.from_callable(exact_eps, shape=(2,), schedule=SCHEDULE, max_rows=N) as engine:
        a, b = (engine.sample(N, table=table, seed=N * i) for i, table in enumerate(tables))
    assert sliced_wasserstein(a, b) < 2 * sliced_wasserstein(exact_draws(0), exact_draws(1))
