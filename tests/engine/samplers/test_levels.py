"""The levels of a table: diffusers' own noising at each of its steps, kept by slices and files."""

import numpy as np
import peers
import pytest
import support

import stepfuse as sf
from stepfuse.requests.editing import levels
from stepfuse.samplers.table import StepTable

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")

needs_diffusers = pytest.mark.skipif(not support.installed("diffusers"), reason="diffusers needs Python 3.11")
KARRAS = sf.samplers.dpmpp_2m(sf.NoiseSchedule.linear(), 8, karras=True)
CASES = [
    ("ddim", "linear", {"spacing": "linspace"}),
    ("ddpm", "linear", {"spacing": "trailing"}),
    ("lcm", "scaled", {}),
    ("dpmpp_2m", "scaled", {"karras": True}),
    ("dpmpp_2m", "zero-snr", {"prediction_type": "v_prediction", "spacing": "trailing"}),
    ("heun", "scaled", {"karras": True}),
    ("euler", "scaled", {}),
    ("euler", "linear", {"karras": True, "spacing": "leading", "steps_offset": 1}),
    ("euler_ancestral", "linear", {}),
    ("euler", "shift-3", {}),
    ("plms", "scaled", {"steps_offset": 1}),
    ("unipc", "scaled", {"karras": True}),
    ("unipc", "shift-3", {}),
    ("lms", "scaled", {"karras": True}),
    ("kdpm2_ancestral", "scaled", {"karras": True}),
    ("heun", "shift-3", {}),
    ("lcm", "shift-3", {}),
]


@needs_diffusers
@pytest.mark.parametrize(("sampler", "schedule", "options"), CASES)
@pytest.mark.parametrize("steps", [1, 7, 30])
def test_states_are_noised_as_diffusers_noises_them(sampler, schedule, options, steps):
    import torch

    scheduler = peers.scheduler(sampler, schedule, options, num_inference_steps=steps)
    table = getattr(sf.samplers, sampler)(peers.noise_schedule(schedule), steps, **options)
    one, none = torch.ones(1).double(), torch.zeros(1).double()
    want = []
    for index, t in enumerate(scheduler.timesteps):
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(index)
        if hasattr(scheduler, "scale_noise"):
            scheduler._step_index = None  # Heun's counts from its first call
            pair = scheduler.scale_noise(one, t[None], none), scheduler.scale_noise(none, t[None], one)
        else:
            pair = scheduler.add_noise(one, none, t[None]), scheduler.add_noise(none, one, t[None])
        want.append([value.item() for value in pair])
    np.testing.assert_allclose(table.levels, [*want, [1.0, 0.0]], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "lcm", "dpmpp_2m", "euler", "heun"])
def test_timesteps_between_two_have_the_levels_that_the_steps_are_made_for(sampler):
    """From one level, with the clean sample predicted: a step leads to the level that the next one has."""
    schedule = sf.NoiseSchedule.linear()
    table = getattr(sf.samplers, sampler)(schedule, timesteps=[700.25, 300.5], prediction_type="sample")
    signal, noise = schedule.levels([700.25, 300.5])
    ratio = table.levels[[0, -2], 1] / table.levels[[0, -2], 0]
    np.testing.assert_allclose(ratio, noise / signal, rtol=1e-12)
    if sampler in ("ddim", "dpmpp_2m"):
        x0, z = 0.7, -1.1
        state = table.levels[0] @ [x0, z]
        after = table["q_x"][0] * state + (table["q_d"][0] + table["q_h"][0] + table["q_e"][0]) * x0
        np.testing.assert_allclose(after, table.levels[1] @ [x0, z], rtol=1e-6)


def test_an_inversion_ends_at_the_noise_where_ddim_begins():
    schedule = sf.NoiseSchedule.linear()
    for refinements in (0, 2):
        inverse = sf.samplers.ddim_inverse(schedule, 5, refinements=refinements)
        np.testing.assert_array_equal(inverse.levels[:: 1 + refinements], sf.samplers.ddim(schedule, 5).levels[::-1])


def test_slices_keep_the_levels_of_their_states():
    np.testing.assert_array_equal(KARRAS[2:5].levels, KARRAS.levels[2:6])
    np.testing.assert_array_equal(KARRAS[-2:].levels, KARRAS.levels[-3:])
    np.testing.assert_array_equal(KARRAS[:99].levels, KARRAS.levels)
    assert KARRAS[::2].levels is None
    assert KARRAS[::-1].levels is None
    assert KARRAS[5:5].levels is None


def test_files_keep_them_and_older_files_are_read_without(tmp_path):
    KARRAS.save(tmp_path / "new.npz")
    np.testing.assert_array_equal(StepTable.load(tmp_path / "new.npz").levels, KARRAS.levels)
    with np.load(tmp_path / "new.npz") as file:
        np.savez(tmp_path / "old.npz", **{name: file[name] for name in ("rows", "header")})
    again = StepTable.load(tmp_path / "old.npz")
    assert again == KARRAS
    assert again.levels is None


def test_a_table_made_by_hand_takes_those_of_the_schedule():
    schedule = sf.NoiseSchedule.linear()
    for table in (sf.samplers.ddim(schedule, 5), sf.samplers.euler(schedule, 5, spacing="trailing")):
        by_hand = StepTable(table.rows)
        np.testing.assert_allclose(levels(by_hand, schedule), table.levels, rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.ones((2, 2)), r"levels must have shape \(S \+ 1, 2\) = \(3, 2\), got \(2, 2\)"),
        ([[1, 2], [np.nan, 1], [1, 0]], r"custom: levels\[1\] must be finite and at least 0, got \[nan, 1.0\]"),
        ([[1, 2], [1, 1], [1, -1]], r"custom: levels\[2\] must be finite and at least 0, got \[1.0, -1.0\]"),
    ],
)
def test_levels_that_make_no_sense_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        StepTable.from_columns({"t": [2, 1]}, levels=given)


def test_levels_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        KARRAS.levels[0] = 1
