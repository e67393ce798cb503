"""Guidance where it is known in closed form, and on the embedded model; the interval's saving by count and by clock."""

import types

import numpy as np
import pytest

import stepfuse as sf
from stepfuse.analysis.experiments.guidance import VARIANTS, guidance_sweep, saturation
from stepfuse.analysis.experiments.guidance_interval import interval_saving
from stepfuse.analysis.figures.guidance import draw_guidance_sweep
from stepfuse.analysis.figures.guidance_interval import draw_interval_saving
from stepfuse.analysis.measures.frechet import Statistics
from stepfuse.analysis.measures.judge import Judge

SCHEDULE = sf.NoiseSchedule.linear()
MEANS, SPREAD, NULL = np.array([[0.6, 0.0], [0.0, -0.8], [0.0, 0.0]]), 0.2, 2
COND = {"where": sf.CondInput(dtype="int64", null=NULL, names=("right", "below"))}


def exact_eps(x, t, cond):
    """One Gaussian per class, and one at 0 of the same spread for unconditional rows.

    E[z | x_t] = sqrt(1 - a) (x_t - sqrt(a) m) / (a s^2 + 1 - a) is linear in m. So guidance at scale g, which blends
    the predictions for m and for 0, is the exact prediction for g m: the samples are a Gaussian of mean g m.
    """
    a = SCHEDULE.alphas_cumprod[t.astype(int)][:, None]
    means = MEANS[cond["where"]] if cond else np.zeros(2)
    return np.sqrt(1 - a) * (x - np.sqrt(a) * means) / (a * SPREAD**2 + 1 - a)


def make_engine(fn=exact_eps, **options):
    return sf.Engine.from_callable(
        fn, **{"shape": (2,), "schedule": SCHEDULE, "cond": COND, "max_rows": 4000, **options}
    )


@pytest.fixture(scope="module")
def measured():
    """All samples are conditioned on one class, whose moments are the reference."""
    right = Statistics(MEANS[0], SPREAD**2 * np.eye(2), 1_000_000)
    with make_engine() as engine:
        yield guidance_sweep(
            engine, cond="right", steps=100, samples=1000, features=lambda x: x, reference=right, variants={}
        )


def test_distance_is_that_of_the_closed_form(measured):
    """The Fréchet distance of two Gaussians of one covariance is that of their means, squared: here (g - 1)^2 m^2."""
    expected = [(scale - 1) ** 2 * 0.6**2 for scale in (0, 1, 1.5, 2, 3, 5, 7.5, 10, 15)]
    np.testing.assert_allclose([row.distance for row in measured.rows], expected, rtol=0.02, atol=2e-3)
    assert measured.sweet_spot.guidance_scale == 1


def test_magnitude_is_that_of_the_closed_form_and_saturation_follows(measured):
    last = measured.rows[-1]
    spread = SPREAD * np.sqrt(2 / np.pi)  # mean magnitude of the coordinate that has no mean
    assert last.mean_magnitude == pytest.approx((15 * 0.6 + spread) / 2, rel=0.02)
    beyond = [row.beyond_range for row in measured.rows]
    assert beyond == sorted(beyond)
    assert beyond[0] == 0
    assert beyond[-1] == pytest.approx(0.5, abs=1e-3)  # one coordinate of two


def test_a_step_is_one_pass_where_guidance_leaves_one_out(measured):
    assert [row.passes for row in measured.rows] == [100, 100] + 7 * [200]


def test_saturation_allows_what_a_picture_rounds_away():
    images = np.array([-1.0, 1.0, 1.003, 1.005, -1.5, 0.0, 0.5, -0.5], np.float32).reshape(2, 1, 2, 2)
    beyond, magnitude = saturation(images, (-1.0, 1.0))
    assert beyond == 2 / 8
    assert magnitude == pytest.approx(np.abs(images).mean())
    np.testing.assert_allclose(saturation(images * 127.5 + 127.5, (0.0, 255.0)), (beyond, magnitude), rtol=1e-5)


def test_variants_are_the_engines_own_options(measured):
    with make_engine() as engine:
        found = guidance_sweep(engine, scales=(7.5,), steps=10, samples=8, seed=3)
        options = {"sampler": "ddim", "steps": 10, "guidance_scale": 7.5, "seed": 3, "cond": [0, 1] * 4}
        rescaled = engine.sample(8, guidance_rescale=0.7, **options)
        clamped = engine.sample(8, clip=1.0, clipped_eps=True, **options)  # what a threshold of at most 1 is
        dynamic = engine.sample(8, dynamic_threshold=(0.995, 2.0), clipped_eps=True, **options)
    assert [row.variant for row in found.rows] == ["plain", *VARIANTS]
    np.testing.assert_array_equal(found.images[1:], np.stack([rescaled, clamped, dynamic]))


def test_variants_run_with_a_sampler_that_has_no_clipped_eps():
    with make_engine() as engine:
        found = guidance_sweep(engine, scales=(3.0,), sampler="dpmpp_2m", steps=5, samples=2)
    assert [row.sampler for row in found.rows] == ["dpmpp_2m"] * 4


@pytest.fixture(scope="module")
def on_fashion():
    with sf.Engine.load("fashion") as engine:
        variants = {"dynamic threshold": {"dynamic_threshold": (0.995, 2.0), "clipped_eps": True}}
        yield guidance_sweep(
            engine, scales=(1, 3, 15), steps=4, samples=65, features=Judge.load("fashion"), variants=variants
        )


def test_guidance_names_the_class_and_saturates(on_fashion):
    none, usual, far, threshold = on_fashion.rows
    assert none.accuracy < usual.accuracy
    assert usual.accuracy > 0.9
    assert far.beyond_range > 2 * none.beyond_range
    assert threshold.beyond_range < far.beyond_range


def test_the_sweep_is_drawn_with_a_picture_a_row(on_fashion, measured):
    axes = draw_guidance_sweep(on_fashion).axes
    assert [one.get_title(loc="left") for one in axes[:3]] == [
        "Fréchet distance", "named as asked for", "values out of range",
    ]  # fmt: skip
    labels = [label.get_text() for label in axes[3].get_xticklabels()]
    assert [label.split("\n")[0].rstrip(",") for label in labels] == ["1", "3", "15", "7.5"]
    assert sum("sweet spot" in label for label in labels) == 1
    assert len(draw_guidance_sweep(measured).axes) == 2  # no classes to name, no pictures


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"scales": ()}, "scales must be at least one, got none", id="no-scales"),
        pytest.param({"samples": 0}, "samples must be at least 1, got 0", id="no-samples"),
        pytest.param({"scales": (-1.0,)}, "guidance_scale must be .*got -1", id="negative"),
        pytest.param({"features": lambda x: x}, "reference must be given, got None", id="no-reference"),
    ],
)
def test_bad_input_of_the_sweep_is_refused(arguments, message):
    with make_engine() as engine, pytest.raises(ValueError, match=message):
        guidance_sweep(engine, **arguments)


def test_a_model_without_conditioning_cannot_be_swept():
    with make_engine(cond=None) as engine, pytest.raises(ValueError, match=r"must be 1 for a model .*, got 0"):
        guidance_sweep(engine, samples=2)


# ---- the interval


def test_the_interval_saves_the_passes_and_the_time_of_the_steps_outside(monkeypatch):
    """On a clock that a row of the network moves by a millisecond, time is passes: 50 + 30 of 100, t in [200, 780]."""
    rows = []

    def count(x, t, cond):
        rows.extend(t)
        return exact_eps(x, t, cond)

    clock = types.SimpleNamespace(perf_counter=lambda: len(rows) / 1000)
    monkeypatch.setattr("stepfuse.analysis.experiments.guidance_interval.time", clock)
    with make_engine(count) as engine:
        found = interval_saving(engine, (0.2, 0.8), guidance_scale=3.0, steps=50, samples=10)
    inside = sum(0.2 * 999 <= t <= 0.8 * 999 for t in range(0, 1000, 20))
    assert [row.guided_steps for row in found.rows] == [50, inside] == [50, 30]
    assert [row.passes for row in found.rows] == [100, 80]
    assert [row.seconds for row in found.rows] == pytest.approx([1.0, 0.8])
    assert (found.passes_saved, found.seconds_saved) == pytest.approx((0.2, 0.2))


def test_the_interval_gives_the_samples_that_the_engine_gives_with_it(on_fashion):
    with make_engine() as engine:
        found = interval_saving(engine, guidance_scale=3.0, steps=20, samples=4, repeats=1, seed=5)
        again = engine.sample(
            4, cond=[0, 1, 0, 1], sampler="ddim", steps=20, guidance_scale=3.0, guidance_interval=(0.2, 0.8), seed=5
        )
        np.testing.assert_array_equal(found.images[1], again)
    axes = draw_interval_saving(found).axes[0]
    assert axes.texts[1].get_text().startswith(f"  {found.rows[1].passes:g} passes")


def test_the_interval_is_judged_and_drawn_as_pictures():
    with sf.Engine.load("fashion") as engine:
        found = interval_saving(engine, steps=3, samples=65, repeats=1, features=Judge.load("fashion"))
    assert found.guidance_scale == 3.0
    assert min(row.accuracy for row in found.rows) > 0.5
    assert all(row.distance > 0 for row in found.rows)
    axes = draw_interval_saving(found).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["guided everywhere", "guided in 0.2 to 0.8"]


@pytest.mark.parametrize(
    ("interval", "arguments", "message"),
    [
        pytest.param((0.5, 0.5), {"guidance_scale": 3.0}, r"0 <= start < stop <= 1, got \(0.5, 0.5\)", id="empty"),
        pytest.param((0.8, 0.2), {"guidance_scale": 3.0}, r"0 <= start < stop <= 1, got \(0.8, 0.2\)", id="reversed"),
        pytest.param((0.2, 0.8), {}, "neither 0 nor 1, .* got 1", id="not-guided"),
        pytest.param((0.2, 0.8), {"guidance_scale": 0.0}, "neither 0 nor 1, .* got 0", id="one-pass"),
        pytest.param((0.2, 0.8), {"repeats": 0}, "repeats must be at least 1, got 0", id="no-repeats"),
        pytest.param((0.2, 0.8), {"samples": 0}, "samples must be at least 1, got 0", id="no-samples"),
    ],
)
def test_bad_input_of_the_interval_is_refused(interval, arguments, message):
    with make_engine() as engine, pytest.raises(ValueError, match=message):
        interval_saving(engine, interval, **arguments)
