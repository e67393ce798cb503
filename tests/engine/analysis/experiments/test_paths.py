"""Paths in the plane: every state on the way, against the run taken step by step."""

import numpy as np
import pytest

import stepfuse as sf
from stepfuse.analysis.experiments.mixture import GaussianMixture
from stepfuse.analysis.experiments.paths import paths
from stepfuse.analysis.figures.paths import draw_paths
from stepfuse.analysis.measures.wasserstein import sliced_wasserstein

SCHEDULE = sf.NoiseSchedule.linear()
ONE = GaussianMixture([[0.5, -1.0]], 0.5)
FEW = (("ddpm", {"steps": 40}), ("ddim", {"steps": 10}), ("dpmpp_2m", {"steps": 8}), ("heun", {"steps": 4}))


@pytest.mark.parametrize("choice", FEW, ids=[name for name, _ in FEW])
def test_states_are_those_of_the_run_taken_step_by_step(choice):
    found = paths(samples=3, samplers=[choice], seed=5)
    name, options = choice
    table = getattr(sf.samplers, name)(SCHEDULE, **options)
    predict = found.mixture.denoiser(SCHEDULE)
    for sample, states in enumerate(found.trajectories[0]):
        x = sf.normal(5 + sample, (2,)) * np.float32(table.init_scale)
        h = np.zeros(2, np.float32) if table.uses_history else None
        for step, row in enumerate(table):
            np.testing.assert_allclose(states[step], x, rtol=1e-5, atol=1e-5)
            eps = predict((row[1] * x)[None], row[:1], {})[0].astype(np.float32)
            z = sf.normal(5 + sample, (2,), step=step, stream=1) if table["q_z"][step] else None
            x = sf.step(x, eps, row, h=h, z=z)
        np.testing.assert_allclose(states[-1], x, rtol=1e-5, atol=1e-5)


def test_ends_are_the_samples_of_the_engine():
    found = paths(samples=4, samplers=FEW[:2], seed=1)
    with found.mixture.engine(SCHEDULE) as engine:
        for (name, options), states in zip(FEW, found.trajectories, strict=False):
            samples = engine.sample(4, sampler=name, seed=1, **options)
            np.testing.assert_allclose(states[:, -1], samples, rtol=1e-5, atol=1e-5)


def test_ddim_s_paths_to_one_gaussian_are_known_in_closed_form():
    """They are the probability flow: the offset from the moving mean grows or shrinks with the marginals' deviation."""
    found = paths(mixture=ONE, samples=5, samplers=[("ddim", {"steps": 500, "spacing": "trailing"})])
    t = np.arange(999, 0, -2)
    a = SCHEDULE.alphas_cumprod[t]
    deviation = np.sqrt(a * 0.25 + 1 - a)
    states = found.trajectories[0][:, :-1]
    offset = states - np.sqrt(a)[:, None] * ONE.means[0]
    expected = offset[:, :1] * (deviation / deviation[0])[:, None]
    assert np.abs(offset - expected).max() < 0.02
    [row] = found.rows
    assert (row.reversals, row.runs_apart, row.passes) == (0, 0, 500)
    ends = found.trajectories[0][:, -1]
    assert row.spread == pytest.approx(np.sqrt(np.mean((ends - ONE.means[0]) ** 2)), rel=1e-6)


def test_noise_makes_paths_long_and_crooked_and_their_ends_chance():
    ddpm, some, none = paths(samples=60).rows
    assert ddpm.path_length > 5 * some.path_length > 5 * 3 * none.path_length
    assert ddpm.reversals > 400 > some.reversals > 5 > none.reversals
    assert none.runs_apart == 0 < min(some.runs_apart, ddpm.runs_apart)
    assert (ddpm.steps, some.steps, none.steps) == (1000, 50, 50)
    assert (some.options, none.options) == ("eta 0.5", "eta 0")


def test_all_samplers_end_as_near_to_the_data_as_exact_samples():
    found = paths(samples=600)
    assert all(row.distance < 2 * found.floor for row in found.rows)
    assert all(row.spread == pytest.approx(found.exact_spread, rel=0.15) for row in found.rows)


def test_the_distance_of_two_sets_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(300, 2)), rng.normal(1, 2, size=(300, 2))
    angle = np.pi * np.arange(64) / 64
    directions = np.stack([np.cos(angle), np.sin(angle)])
    expected = np.mean([stats.wasserstein_distance(a @ way, b @ way) for way in directions.T])
    assert sliced_wasserstein(a, b) == pytest.approx(expected, rel=0.02)


def test_the_figure_has_a_panel_for_each_sampler():
    pytest.importorskip("matplotlib")
    panels = draw_paths(paths(samples=20, samplers=FEW[:3])).axes
    assert [panel.get_title(loc="left") for panel in panels] == [
        "DDPM 40 steps",
        "DDIM 10 steps, eta 0",
        "DPM-Solver++ 2M 8 steps",
    ]
    assert "the same end in every run" in panels[1].get_xlabel()


def test_a_start_has_one_colour_in_all_panels_and_its_neighbours_nearly_the_same():
    pytest.importorskip("matplotlib")
    found = paths(samples=40, samplers=FEW[:2])
    clouds = [[cloud.get_facecolors()[:, :3] for cloud in panel.collections] for panel in draw_paths(found).axes]
    for cloud in (clouds[0][1], *clouds[1]):
        np.testing.assert_array_equal(cloud, clouds[0][0])
    starts = found.trajectories[0][:, 0]
    black = clouds[0][0].max(1) < 0.2
    assert black.sum() == 1
    order = np.argsort(np.arctan2(starts[:, 1], starts[:, 0])[~black])
    around = clouds[0][0][~black][order]
    neighbour, opposite = (np.linalg.norm(around - np.roll(around, far, axis=0), axis=1) for far in (1, 20))
    assert neighbour.max() < opposite.min()


def test_every_path_that_is_traced_lies_within_its_panel():
    pytest.importorskip("matplotlib")
    far = GaussianMixture([[20.0, 5.0], [24.0, 5.0]], 0.3)
    for panel in draw_paths(paths(mixture=far, samples=20, samplers=FEW[:1])).axes:
        for line in panel.lines:
            x, y = line.get_data()
            assert panel.get_xlim()[0] < min(x) <= max(x) < panel.get_xlim()[1]
            assert panel.get_ylim()[0] < min(y) <= max(y) < panel.get_ylim()[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"samples": 1}, "samples must be at least 2, got 1"),
        ({"samplers": []}, "samplers must be at least one, got none"),
        ({"mixture": GaussianMixture([[0.0, 0.0, 1.0]], 1.0)}, "mixture must have 2 dimensions, got 3"),
    ],
)
def test_bad_input_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        paths(**given)
