"""Runs that begin late or end early, against what diffusers' pipelines of Stable Diffusion XL cut and run."""

import types

import numpy as np
import peers
import pytest
import support

import stepfuse as sf
from stepfuse.requests.partial_run import begin_late, part_of_run, strength_of_flow

STEPS = 10
SHARES = [0.25, 0.5, 0.7]

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning:diffusers")

needs_diffusers = pytest.mark.skipif(not support.installed("diffusers"), reason="diffusers needs Python 3.11")


def table_of(engine, arguments):
    """The compiled sampler, and what is left of the arguments for a run of it."""
    options = {name: value for name, value in arguments.items() if name not in ("cond", "seed", "noise")}
    return engine.table(**options), {name: arguments[name] for name in ("cond", "seed", "noise")}


def cutoff(scheduler, share):
    """A line of diffusers' pipelines."""
    total = scheduler.config.num_train_timesteps
    return int(round(total - (share * total)))  # noqa: RUF046


def begun(scheduler, share):
    """diffusers' own cut of the beginning: the index of the first timestep."""
    from diffusers import StableDiffusionXLImg2ImgPipeline as Refiner

    pipe = types.SimpleNamespace(scheduler=scheduler)
    timesteps, _ = Refiner.get_timesteps(pipe, len(scheduler.timesteps), None, "cpu", denoising_start=share)
    return len(scheduler.timesteps) - len(timesteps)


def ended(scheduler, share):
    """How many timesteps are left, as a line of ``StableDiffusionXLPipeline.__call__`` has it."""
    return len([t for t in scheduler.timesteps if t >= cutoff(scheduler, share)])


@needs_diffusers
@pytest.mark.parametrize("steps", [4, 25])
@pytest.mark.parametrize("name", [*peers.CASES, *peers.FROM_THE_START])
def test_timesteps_are_cut_as_diffusers_cuts_them(name, steps):
    scheduler, _, engine, arguments = peers.prepared(name, steps)
    t = scheduler.timesteps.numpy()
    with engine:
        whole, _ = table_of(engine, arguments)
        schedule = engine.info.schedule
        np.testing.assert_allclose(whole["t"], t, rtol=1e-4, atol=1e-3)
        for share in np.linspace(0.02, 0.98, 25):
            if kept := ended(scheduler, share):
                assert len(part_of_run(whole, schedule, denoising_end=share)) == kept
            if kept < len(t) and name not in peers.FROM_THE_START:  # else diffusers takes the last of two rows again
                rest = part_of_run(whole, schedule, denoising_start=share)
                np.testing.assert_array_equal(rest["t"], whole["t"][begun(scheduler, share) :])
                assert rest.init_scale == 1


@needs_diffusers
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", [*peers.CASES, *peers.FROM_THE_START])
def test_a_run_that_ends_early_leaves_diffusers_state(name, share, monkeypatch):
    scheduler, step_options, engine, arguments = peers.prepared(name, STEPS)
    states = []
    peers.run(scheduler, monkeypatch, after=lambda _, x: states.append(x[..., 0].numpy()) or x, **step_options)
    want = states[ended(scheduler, share) - 1]
    with engine:
        whole, run = table_of(engine, arguments)
        got = engine.sample(peers.BATCH, table=part_of_run(whole, engine.info.schedule, denoising_end=share), **run)
    assert np.abs(got - want).max() < peers.TOLERANCES[arguments["sampler"]] * np.abs(want).max()


@needs_diffusers
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", peers.CASES)
def test_a_run_goes_on_from_a_state_as_diffusers(name, share, monkeypatch):
    import torch

    scheduler, step_options, engine, arguments = peers.prepared(name, STEPS)
    x = np.random.default_rng(5).standard_normal((peers.BATCH, peers.SIZE)).astype(np.float32)
    begin = begun(scheduler, share)
    want = peers.run(scheduler, monkeypatch, x=torch.from_numpy(x).double(), begin=begin, **step_options)
    with engine:
        whole, run = table_of(engine, arguments)
        table = part_of_run(whole, engine.info.schedule, denoising_start=share)
        got = engine.sample(peers.BATCH, table=table, **{**run, "noise": x})
    assert np.abs(got - want).max() < peers.TOLERANCES[arguments["sampler"]] * np.abs(want).max()


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
@pytest.mark.parametrize("share", SHARES)
def test_two_parts_of_a_run_have_the_bits_of_the_whole(sampler, share):
    with support.make_engine() as engine:
        whole = engine.table(sampler=sampler, steps=STEPS, guidance_scale=2.0)
        schedule = engine.info.schedule
        first = part_of_run(whole, schedule, denoising_end=share)
        second = part_of_run(whole, schedule, denoising_start=share)
        assert len(first) + len(second) == STEPS
        half = engine.sample(2, cond=1, seed=3, table=first)
        got = engine.sample(2, cond=1, seed=3, table=second, noise=half)
        np.testing.assert_array_equal(got, engine.sample(2, cond=1, seed=3, table=whole))


def test_a_part_between_two_levels():
    schedule = sf.NoiseSchedule.linear()
    for table in (sf.samplers.euler(schedule, 20), sf.samplers.unipc(schedule, 20), sf.samplers.heun(schedule, 20)):
        part = part_of_run(table, schedule, denoising_start=0.3, denoising_end=0.7)
        rest = part_of_run(table, schedule, denoising_start=0.3)
        assert part == rest[: len(part)]
        assert (part["t"] >= 300).all()
        assert rest["t"][len(part)] < 300
        np.testing.assert_array_equal(part.levels, rest.levels[: len(part) + 1])
    assert part_of_run(table, schedule) is table


def test_plms_goes_on_with_its_repeated_step():
    schedule = sf.NoiseSchedule.linear()
    table = sf.samplers.plms(schedule, 10)
    rest = part_of_run(table, schedule, denoising_start=0.45)
    np.testing.assert_array_equal(rest["t"], [500, 400, 400, 300, 200, 100, 0])
    assert len(part_of_run(table, schedule, denoising_start=0.05)) == len(table)  # between both rows of the first step


def test_an_adapted_table_stays_adapted():
    schedule = sf.NoiseSchedule.flow()
    table = sf.samplers.euler(schedule, 10, guidance_scale=3.0).adapt(guidance_rescale=0.5).with_zero_init(2)
    first = part_of_run(table, schedule, denoising_end=0.5)
    assert (first.guidance_rescale, first.zero_init) == (0.5, 2)
    second = part_of_run(table, schedule, denoising_start=0.5)
    assert (second.guidance_rescale, second.zero_init) == (0.5, 0)


LINEAR = sf.NoiseSchedule.linear()
TABLE = sf.samplers.ddim(LINEAR, 5)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"denoising_end": 0}, ValueError, "denoising_end must be above 0 and below 1, got 0"),
        ({"denoising_end": 1.0}, ValueError, r"denoising_end must be above 0 and below 1, got 1.0"),
        ({"denoising_start": float("nan")}, ValueError, "denoising_start must be above 0 and below 1, got nan"),
        ({"denoising_start": "half"}, TypeError, "denoising_start must be a number, got 'half'"),
        (
            {"denoising_start": 0.5, "denoising_end": 0.5},
            ValueError,
            "denoising_start must be below denoising_end, got 0.5 and 0.5",
        ),
        (
            {"denoising_end": 0.1},
            ValueError,
            "denoising_end must leave at least one step, whose timesteps are 800 to 0, got 0.1",
        ),
        (
            {"denoising_start": 0.4, "denoising_end": 0.5},
            ValueError,
            "denoising_end must leave at least one step, whose timesteps are 400 to 0, got 0.5",
        ),
    ],
)
def test_bad_ends_are_named(given, error, message):
    with pytest.raises(error, match=message):
        part_of_run(TABLE, LINEAR, **given)


def test_a_start_below_the_last_timestep_is_refused():
    table = sf.samplers.ddim(LINEAR, 5, spacing="trailing")
    with pytest.raises(ValueError, match=r"denoising_start must leave at least one step, .* 999 to 199, got 0.9"):
        part_of_run(table, LINEAR, denoising_start=0.9)


def test_what_cannot_be_parted_is_refused():
    schedule = sf.NoiseSchedule.edm()
    with pytest.raises(ValueError, match=r"denoising_end must be left out for a model of EDM, .* got 0.8"):
        part_of_run(sf.samplers.edm_euler(schedule, 5), schedule, denoising_end=0.8)
    table = support.two_line_table(5)
    assert len(part_of_run(table, support.SCHEDULE, denoising_end=0.99)) > 0
    with pytest.raises(
        ValueError, match=r"denoising_start must be left out with a table that has a second line .* 0.5"
    ):
        part_of_run(table, support.SCHEDULE, denoising_start=0.5)


@pytest.mark.parametrize("steps", [1, 5, 10, 28, 50])
def test_strength_of_flow_models_is_rounded_as_in_their_pipelines(steps):
    for strength in np.linspace(0.02, 0.98, 49):
        taken = steps - int(max(steps - min(steps * strength, steps), 0))  # get_timesteps of Stable Diffusion 3
        assert int(steps * strength_of_flow(strength, steps)) == taken
    assert strength_of_flow(1.0, steps) == 1.0
    assert strength_of_flow(1.5, steps) == 1.5


@pytest.mark.parametrize("fixed_stride", [True, False])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_plms_begins_in_the_middle_as_a_run_over_its_last_timesteps(spacing, fixed_stride):
    """diffusers' pipelines cut the first entries from a list that holds the second timestep twice, and so step from
    timesteps at which the state is not; here both passes of the first step are taken where the run begins."""
    info = sf.ModelInfo(support.SHAPE, support.SCHEDULE)
    table = sf.samplers.plms(info.schedule, 10, spacing=spacing, fixed_stride=fixed_stride)
    late = begin_late(table, 0.45, info.schedule)
    assert len(late) == 4 + 1
    assert late.options["begin"] == 6
    np.testing.assert_array_equal(late["t"], [table["t"][7], *np.repeat(table["t"][8:], [2, 1, 1])])
    np.testing.assert_array_equal(late.levels[:1], table.levels[7:8])
    if spacing == "leading" or not fixed_stride:
        assert late == sf.samplers.plms(info.schedule, timesteps=table["t"][7:])


def test_lms_begins_in_the_middle_as_a_run_over_its_last_timesteps():
    """diffusers then gives its only slope the weight that the latest of four has."""
    table = sf.samplers.lms(support.SCHEDULE, 10, spacing="leading")
    late = begin_late(table, 0.45, support.SCHEDULE)
    np.testing.assert_array_equal(late.rows, sf.samplers.lms(support.SCHEDULE, timesteps=table["t"][6:]).rows)
    np.testing.assert_array_equal(late.levels, table.levels[6:])


def test_a_table_that_begins_late_begins_later_still():
    table = sf.samplers.unipc(support.SCHEDULE, 10, order=3, begin=2)
    assert begin_late(table, 0.5, support.SCHEDULE) == sf.samplers.unipc(support.SCHEDULE, 10, order=3, begin=6)
    adapted = table.adapt(guidance_rescale=0.5)
    assert begin_late(adapted, 0.5, support.SCHEDULE).guidance_rescale == 0.5
