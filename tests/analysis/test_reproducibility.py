"""Runs from one starting noise: bit for bit where that is promised, and a known spread where it is not."""

import numpy as np
import pytest

import stepfuse as sf
from stepfuse.analysis.reproducibility import draw_reproducibility, reproducibility

LINEAR = sf.NoiseSchedule.linear()
NAMES = ("boot", "bag")


def silent(x, t, cond):
    return np.zeros_like(x)


def smooth(x, t, cond):
    return np.tanh(0.7 * x) * (1 + 0.1 * np.sin(np.asarray(t, dtype=np.float32) / 100)).reshape(-1, 1, 1, 1)


def engine_of(fn=smooth, shape=(1, 8, 8), **options):
    return sf.Engine.from_callable(fn, shape=shape, schedule=LINEAR, **options)


@pytest.fixture(scope="module")
def result():
    with engine_of() as engine:
        return reproducibility(engine, runs=5, seed=3)


def test_the_same_seed_gives_the_same_bits_and_ddim_does_without(result):
    found = {(row.sampler, row.options, row.seeds): row for row in result.rows}
    assert [key for key, row in found.items() if not row.bit_identical] == [
        ("ddim", "eta 1", "different"),
        ("ddpm", "", "different"),
    ]
    for row in found.values():
        spread = row.variance, row.pairwise_mse_mean, row.pairwise_mse_std
        assert min(spread) > 0 if not row.bit_identical else spread == (0, 0, 0)


def test_its_numbers_are_those_of_its_runs(result):
    assert result.images.shape == (6, 5, 1, 8, 8)
    for row, runs in zip(result.rows, result.images.astype(np.float64), strict=True):
        pairs = [((runs[i] - runs[j]) ** 2).mean() for i in range(5) for j in range(i)]
        assert row.pairwise_mse_mean == pytest.approx(np.mean(pairs), rel=1e-12, abs=0)
        assert row.pairwise_mse_std == pytest.approx(np.std(pairs), rel=1e-9, abs=0)
        assert row.pairwise_mse_mean == pytest.approx(2 * row.variance, rel=1e-12)  # an identity


def test_a_spread_that_is_known():
    """A network that always says 0 leaves the added noise alone: one DDPM step from t = 500 to the end adds q_z z."""
    table = sf.samplers.ddpm(LINEAR, timesteps=[500, 0])
    # After the first step x' = ... + q_z z, and the last step scales that by 1 / sqrt(alphas_cumprod[0]).
    expected = (table["q_z"][0] / np.sqrt(LINEAR.alphas_cumprod[0])) ** 2
    with engine_of(silent, shape=(4000,)) as engine:
        found = reproducibility(engine, runs=6, samplers=[("ddpm", {"timesteps": [500, 0]})])
    assert found.rows[0].variance == pytest.approx(expected, rel=0.03)  # 20,000 degrees of freedom: 1 % is a deviation
    assert found.rows[0].steps == 2


def test_every_run_starts_from_the_noise_of_the_seed(result):
    with engine_of() as engine:
        by_hand = engine.sample(1, seed=99, noise=sf.normal(3, (1, 1, 8, 8)), sampler="ddim", steps=50, eta=0.0)
    np.testing.assert_array_equal(result.images[0, 4], by_hand[0])


def test_the_sample_is_of_the_first_class_unless_said_otherwise():
    told = []

    def network(x, t, cond):
        told.extend(cond["class_labels"].tolist())
        return np.zeros_like(x)

    cond = {"class_labels": sf.CondInput(null=2, names=NAMES)}
    samplers = [("ddim", {"steps": 2})]
    with engine_of(network, cond=cond) as engine:
        assert reproducibility(engine, runs=2, samplers=samplers).cond == "boot"
        assert set(told) == {0}
        told.clear()
        assert reproducibility(engine, runs=2, samplers=samplers, cond="bag").cond == "bag"
    assert set(told) == {1}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"runs": 1}, ValueError, "runs must be at least 2, got 1"),
        ({"runs": 2.0}, TypeError, "runs must be a whole number, got 2.0"),
        ({"samplers": []}, ValueError, "samplers must be at least one, got none"),
        ({"samplers": [("ddim", {"steps": 0})]}, ValueError, "steps must be between 1 and 1000, got 0"),
        ({"samplers": [("best", {})]}, ValueError, "sampler must be one of .*, got 'best'"),
        ({"cond": 3}, ValueError, "cond"),
        ({"seed": -1}, ValueError, "seed must be between 0 and 2.*, got -1"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with engine_of() as engine, pytest.raises(error, match=message):
        reproducibility(engine, **arguments)


@pytest.mark.parametrize("shape", [(1, 8, 8), (2,)], ids=["pictures", "points"])
def test_it_is_drawn(shape):
    pytest.importorskip("matplotlib")
    network = smooth if len(shape) == 3 else silent
    with engine_of(network, shape=shape) as engine:
        figure = draw_reproducibility(reproducibility(engine, runs=2))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[0] == "DDIM 50 steps, eta 0\nanother seed a run"
    assert sum("the same bits" in text.get_text() for text in figure.axes[0].texts) == 4
