"""The same image every time: to the bit for deterministic samplers, and for the others given the seed."""

import numpy as np
import pytest
import support

import stepfuse as sf
from stepfuse.analysis.experiments.reproducibility import reproducibility
from stepfuse.analysis.figures.reproducibility import draw_reproducibility

SPREAD = 0.5
SCHEDULE = sf.NoiseSchedule.linear()


def exact_eps(x, t, _cond):
    """The noise prediction of normal data of deviation SPREAD."""
    a = SCHEDULE.alphas_cumprod[t.astype(int)].reshape(-1, *[1] * (x.ndim - 1))
    return np.sqrt(1 - a) * x / (a * SPREAD**2 + 1 - a)


def gaussian():
    return sf.Engine.from_callable(exact_eps, shape=(400,), schedule=SCHEDULE)


@pytest.mark.parametrize("model", ["fashion", "fashion-8step"])
def test_embedded_models_repeat_themselves_to_the_bit(model):
    samplers = [
        ("ddim", {"steps": 8}),
        ("ddim", {"steps": 8, "eta": 1.0}),
        ("ddpm", {"steps": 8}),
        ("lcm", {"steps": 4}),
    ]
    with sf.Engine.load(model) as engine:
        found = reproducibility(engine, runs=3, samplers=samplers)
    for row in found.rows:
        stochastic = (row.sampler, row.options[:5]) != ("ddim", "eta 0")
        assert row.bit_identical == (row.seeds == "same" or not stochastic)
        assert (row.variance == 0.0) == (row.pairwise_mse_mean == 0.0) == row.bit_identical
    assert found.cond == "t-shirt"


def test_the_spread_of_ancestral_sampling_is_that_of_the_data():
    """DDPM of all steps forgets its starting noise, so runs are independent, normal of variance SPREAD^2."""
    with gaussian() as engine:
        samplers = [("ddpm", {"steps": 1000, "variance": "posterior"})]
        different, same = reproducibility(engine, runs=6, samplers=samplers).rows
    assert different.variance == pytest.approx(SPREAD**2, rel=0.1)
    assert different.pairwise_mse_mean == pytest.approx(2 * different.variance, rel=1e-6)
    assert (same.variance, same.bit_identical) == (0.0, True)


def test_by_default_ddim_without_and_with_noise_and_ddpm_run_at_the_model_s_steps():
    with gaussian() as engine:
        found = reproducibility(engine, runs=2)
    assert [(row.sampler, row.options, row.seeds, row.steps) for row in found.rows] == [
        ("ddim", "eta 0", "different", 50),
        ("ddim", "eta 0", "same", 50),
        ("ddim", "eta 1", "different", 50),
        ("ddim", "eta 1", "same", 50),
        ("ddpm", "", "different", 50),
        ("ddpm", "", "same", 50),
    ]


def test_pairs_are_measured_one_by_one():
    with support.make_engine() as engine:
        found = reproducibility(engine, runs=3, samplers=[("ddpm", {"steps": 4})])
    runs = found.images[0].astype(np.float64)
    pairs = [np.mean((runs[i] - runs[j]) ** 2) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found.rows[0].pairwise_mse_mean == pytest.approx(np.mean(pairs))
    assert found.rows[0].pairwise_mse_std == pytest.approx(np.std(pairs))


def test_every_run_starts_from_the_noise_of_the_seed():
    with support.make_engine() as engine:
        found = reproducibility(engine, runs=2, seed=3, samplers=[("ddim", {"steps": 4})])
        start = sf.normal(3, (1, *support.SHAPE))
        by_hand = engine.sample(1, seed=99, noise=start, cond=0, sampler="ddim", steps=4, eta=0.0)
    np.testing.assert_array_equal(found.images[0, 1], by_hand[0])


def test_a_spread_that_is_known_by_hand():
    """With a network that always says 0, runs of two DDPM steps differ by the first one's noise, scaled by the last."""
    table = sf.samplers.ddpm(SCHEDULE, timesteps=[500, 0])
    expected = (table["q_z"][0] / np.sqrt(SCHEDULE.alphas_cumprod[0])) ** 2
    with sf.Engine.from_callable(lambda x, t, cond: np.zeros_like(x), shape=(4000,), schedule=SCHEDULE) as engine:
        row = reproducibility(engine, runs=6, samplers=[("ddpm", {"timesteps": [500, 0]})]).rows[0]
    assert row.variance == pytest.approx(expected, rel=0.03)  # 20,000 degrees of freedom: 1 % is a standard deviation
    assert row.steps == 2


def test_the_sample_is_of_the_first_class_unless_said_otherwise():
    with support.make_engine() as engine:
        by_cond = {cond: reproducibility(engine, runs=2, cond=cond) for cond in (None, "boot", "bag")}
    assert [result.cond for result in by_cond.values()] == ["boot", "boot", "bag"]
    np.testing.assert_array_equal(by_cond[None].images, by_cond["boot"].images)
    assert (by_cond["bag"].images != by_cond["boot"].images).any()


def test_it_is_drawn_with_and_without_pictures():
    pytest.importorskip("matplotlib")
    with support.make_engine() as engine, gaussian() as plain:
        pictures = draw_reproducibility(reproducibility(engine, runs=2))
        bars = draw_reproducibility(reproducibility(plain, runs=2))
    assert len(pictures.axes[0].get_yticks()) == 6
    assert len(bars.axes[0].patches) == 6
    for figure in (pictures, bars):
        assert sum("the same bits" in text.get_text() for text in figure.axes[0].texts) == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"runs": 1}, "runs must be at least 2, got 1"),
        ({"samplers": []}, "samplers must be at least one, got none"),
        ({"samplers": [("ddmi", {})]}, "sampler must be one of .*, got 'ddmi'"),
        ({"seed": -1}, "seed must be between 0 and"),
    ],
)
def test_bad_input_is_named(given, message):
    with gaussian() as engine, pytest.raises(ValueError, match=message):
        reproducibility(engine, **given)
