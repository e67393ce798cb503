"""Step degradation on a mixture of Gaussians, whose noise prediction is exact: all error is the samplers' own."""

import numpy as np
import pytest

import stepfuse as sf
from stepfuse.analysis.experiments.degradation import PUBLISHED_STRIDED, step_degradation
from stepfuse.analysis.figures.degradation import draw_degradation
from stepfuse.analysis.measures.frechet import Statistics

MEANS = np.array([[1.5, 0.0], [-0.75, 1.3], [-0.75, -1.3]])
SPREAD = 0.2
SCHEDULE = sf.NoiseSchedule.linear()
SAMPLES = 2000


def exact_eps(x, t, _cond):
    """E[z | x_t] of the mixture, three components of equal weight."""
    a = SCHEDULE.alphas_cumprod[t.astype(int)][:, None, None]
    offset = x[:, None, :] - np.sqrt(a) * MEANS
    variance = a * SPREAD**2 + 1 - a
    logits = -(offset**2).sum(2) / (2 * variance[:, :, 0])
    posterior = np.exp(logits - logits.max(1, keepdims=True))
    posterior /= posterior.sum(1, keepdims=True)
    return np.sqrt(1 - a[:, :, 0]) * (posterior[:, :, None] * offset / variance).sum(1)


def features(x):
    """How far a point lies from the nearest mean: what lies between the modes shows."""
    return np.linalg.norm(x[:, None] - MEANS, axis=2).min(1, keepdims=True)


def real():
    rng = np.random.default_rng(0)
    return Statistics.of(features(MEANS[rng.choice(3, 100_000)] + SPREAD * rng.standard_normal((100_000, 2))))


@pytest.fixture(scope="module")
def measured():
    with sf.Engine.from_callable(exact_eps, shape=(2,), schedule=SCHEDULE, max_rows=SAMPLES) as engine:
        yield step_degradation(engine, samples=SAMPLES, features=features, reference=real())


def column(measured, sampler, name):
    return {row.steps: getattr(row, name) for row in measured.rows if row.sampler == sampler}


@pytest.mark.slow
def test_naive_striding_collapses_as_published(measured):
    """Each published step count is worse than the one before, and the whole fall is at least as deep."""
    found = column(measured, "ddpm_strided", "distance")
    assert list(found) == list(PUBLISHED_STRIDED)
    assert list(found.values()) == sorted(found.values())
    assert found[25] / found[1000] > PUBLISHED_STRIDED[25] / PUBLISHED_STRIDED[1000]


@pytest.mark.slow
def test_ddim_hardly_degrades_where_naive_striding_does(measured):
    ddim, naive = (column(measured, sampler, "distance") for sampler in ("ddim", "ddpm_strided"))
    assert max(ddim.values()) * 20 < naive[50]
    assert column(measured, "dpmpp_2m", "distance")[25] * 20 < naive[50]


@pytest.mark.slow
def test_deterministic_samplers_come_nearer_to_the_full_run_with_more_steps(measured):
    for sampler in ("ddim", "dpmpp_2m"):
        errors = list(column(measured, sampler, "mse").values())
        assert errors == sorted(errors)
    assert column(measured, "ddim", "mse")[1000] == 0
    assert {row.compared_with for row in measured.rows if row.sampler == "dpmpp_2m"} == {"DDIM 1000 steps"}
    assert {row.compared_with for row in measured.rows if row.sampler.startswith("ddpm")} == {"DDPM 1000 steps"}


@pytest.mark.slow
def test_samples_with_step_noise_are_nearly_as_far_from_their_full_run_as_unrelated_ones(measured):
    """Two samples of the mixture are 2 (spread^2 + E|m|^2 / 2) apart; a shared starting noise changes little."""
    expected = 2 * (SPREAD**2 + (MEANS**2).sum(1).mean() / 2)
    assert measured.unrelated_mse == pytest.approx(expected, rel=0.1)
    assert min(column(measured, "ddpm", "mse")[steps] for steps in (500, 250, 100, 50, 25)) > expected / 2
    assert column(measured, "ddim", "mse")[25] < expected / 20


def test_a_naive_run_is_compared_with_what_is_right_at_its_steps():
    with sf.Engine.from_callable(exact_eps, shape=(2,), schedule=SCHEDULE) as engine:
        found = step_degradation(engine, steps=(20, 5), samplers=("ddpm_strided", "ddpm"), samples=3)
        right = engine.sample(3, sampler="ddpm", steps=20, seed=0)
        with pytest.warns(sf.NaiveSamplerWarning):
            wrong = engine.sample(3, sampler="ddpm_strided", steps=20, seed=0)
    assert {row.compared_with for row in found.rows} == {"DDPM 20 steps"}
    assert found.rows[0].mse == pytest.approx(np.mean((right - wrong) ** 2), rel=1e-5)


@pytest.mark.slow
def test_passes_are_counted_and_ddpm_of_all_steps_runs_once(measured):
    assert column(measured, "ddpm", "passes") == {steps: steps for steps in PUBLISHED_STRIDED}
    assert [row.steps for row in measured.rows if row.sampler == "dpmpp_2m"] == [250, 100, 50, 25]
    with sf.Engine.from_callable(exact_eps, shape=(2,), schedule=SCHEDULE) as engine:
        step_degradation(engine, steps=[1000], samplers=["ddpm_strided", "ddpm"], samples=2)
        assert engine.stats()["network_passes"] == 2 * 1000


def test_without_a_judge_the_figure_shows_the_error_alone(tmp_path):
    with sf.Engine.from_callable(exact_eps, shape=(2,), schedule=SCHEDULE) as engine:
        found = step_degradation(engine, steps=(20, 5), samplers=("ddim",), samples=3)
    assert [row.distance for row in found.rows] == [row.accuracy for row in found.rows] == [None, None]
    pytest.importorskip("matplotlib")
    assert [axes.get_ylabel() for axes in draw_degradation(found).axes] == ["mean squared error"]


@pytest.mark.slow
def test_the_figure_shows_every_sampler_and_step_count(measured):
    pytest.importorskip("matplotlib")
    left, right = draw_degradation(measured).axes
    assert [text.get_text() for text in right.get_xticklabels()] == ["1000", "500", "250", "100", "50", "25"]
    published = next(line for line in right.get_lines() if "published" in line.get_label())
    naive = next(line for line in right.get_lines() if line.get_label() == "naive strided DDPM")
    assert published.get_ydata()[0] == pytest.approx(naive.get_ydata()[0])
    assert len(left.get_lines()) == 4 + 1
    assert left.get_lines()[-1].get_ydata()[0] == measured.unrelated_mse


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": (5, 20)}, r"steps must be at least one count, the largest first, got \(5, 20\)"),
        ({"steps": ()}, r"steps must be at least one count, the largest first, got \(\)"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"samplers": ()}, "samplers must be at least one, got none"),
        ({"features": features}, "features and reference go together: reference must be given, got None"),
        ({"reference": real()}, "features and reference go together: features must be given, got None"),
        ({"features": lambda x: features(x) * np.nan, "reference": real()}, "NaN|finite"),
        ({"features": lambda x: features(x) * 0, "reference": real()}, "must differ between images"),
        ({"features": features, "reference": real(), "samples": 1}, "got 1 images of 1 features"),
    ],
)
def test_bad_input_is_named(given, message):
    engine = sf.Engine.from_callable(exact_eps, shape=(2,), schedule=SCHEDULE)
    with engine, pytest.raises(ValueError, match=message):
        step_degradation(engine, **{"steps": (5,), "samples": 4, "samplers": ("ddim",), **given})
