"""Noise schedules against diffusers' float32 ones, timestep spacings, configs, and what is refused."""

import numpy as np
import pytest
import tolerances

import stepfuse as sf
from stepfuse.samplers.schedule import spaced_timesteps

diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

BETAS = np.geomspace(1e-4, 0.05, 200)
NAMED = {
    "linear": (sf.NoiseSchedule.linear(), {"beta_schedule": "linear"}),
    "linear-short": (
        sf.NoiseSchedule.linear(1e-3, 0.1, 100),
        {"beta_schedule": "linear", "beta_start": 1e-3, "beta_end": 0.1, "num_train_timesteps": 100},
    ),
    "scaled": (
        sf.NoiseSchedule.scaled_linear(),
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    ),
    "cosine": (sf.NoiseSchedule.squaredcos(), {"beta_schedule": "squaredcos_cap_v2"}),
    "betas": (sf.NoiseSchedule.from_betas(BETAS), {"trained_betas": BETAS.tolist(), "num_train_timesteps": 200}),
}
named = pytest.mark.parametrize(("schedule", "config"), NAMED.values(), ids=NAMED.keys())


def betas_of(schedule):
    alphas = schedule.alphas_cumprod
    return 1.0 - alphas / np.append(1.0, alphas[:-1])


@named
def test_schedule_is_diffusers(schedule, config):
    theirs = diffusers.DDPMScheduler(**config)
    np.testing.assert_allclose(betas_of(schedule), theirs.betas.double(), rtol=tolerances.SCHEDULE)
    roots, their_roots = schedule.alphas_cumprod**0.5, theirs.alphas_cumprod.double() ** 0.5
    np.testing.assert_allclose(roots, their_roots, rtol=0, atol=tolerances.SCHEDULE)


@named
def test_zero_terminal_snr_is_diffusers(schedule, config):
    theirs = diffusers.DDPMScheduler(**config, rescale_betas_zero_snr=True)
    rescaled = schedule.rescale_zero_terminal_snr().alphas_cumprod
    np.testing.assert_allclose(rescaled**0.5, theirs.alphas_cumprod.double() ** 0.5, rtol=0, atol=tolerances.SCHEDULE)
    assert rescaled[-1] == 0
    assert rescaled[0] == pytest.approx(schedule.alphas_cumprod[0], rel=1e-15)


def test_alphas_cumprod_is_read_only_float64():
    alphas = sf.NoiseSchedule.linear().alphas_cumprod
    assert alphas.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        alphas[0] = 1.0


@pytest.mark.parametrize(
    "schedule",
    [
        *(schedule for schedule, _ in NAMED.values()),
        sf.NoiseSchedule.scaled_linear().rescale_zero_terminal_snr(),
        sf.NoiseSchedule.flow(shift=3.0, num_train_timesteps=500),
    ],
    ids=[*NAMED, "zero-snr", "flow"],
)
def test_config_makes_the_schedule_again(schedule):
    again = sf.NoiseSchedule.from_config(schedule.config)
    assert (again.num_train_timesteps, again.shift, again.config) == (
        schedule.num_train_timesteps,
        schedule.shift,
        schedule.config,
    )
    if not schedule.is_flow:
        np.testing.assert_array_equal(again.alphas_cumprod, schedule.alphas_cumprod)


@pytest.mark.parametrize("total", [1000, 77], ids=["usual-T", "odd-T"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_spacing_is_diffusers_for_every_step_count(spacing, total):
    theirs = diffusers.DDIMScheduler(num_train_timesteps=total, timestep_spacing=spacing)
    for steps in range(1, total + 1):
        theirs.set_timesteps(steps)
        want = theirs.timesteps.numpy()[:steps]  # rounding gives their trailing spacing one too many now and then
        np.testing.assert_array_equal(spaced_timesteps(total, steps, spacing), want, err_msg=f"{steps} steps")


def test_offset_moves_leading_timesteps_alone():
    np.testing.assert_array_equal(spaced_timesteps(1000, 4, "leading", 1), [751, 501, 251, 1])
    for spacing in ("trailing", "linspace"):
        np.testing.assert_array_equal(spaced_timesteps(1000, 4, spacing, 1), spaced_timesteps(1000, 4, spacing))


def test_flow_has_no_alphas_cumprod():
    flow = sf.NoiseSchedule.flow()
    assert (flow.is_flow, flow.max_timestep) == (True, 1000.0)
    with pytest.raises(ValueError, match="flow schedule has no alphas_cumprod"):
        _ = flow.alphas_cumprod


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda s: s.linear(num_train_timesteps=0), "between 1 and 1000000, got 0$", id="no-length"),
        pytest.param(lambda s: s.linear(1e-4, 1.5), r"betas\[\d+\] .*, got 1.0\d+$", id="beta-above-1"),
        pytest.param(lambda s: s.from_betas([0.1, -0.2]), r"betas\[1\] .*, got -0.2$", id="beta-negative"),
        pytest.param(lambda s: s.from_betas([0.1, np.nan]), r"betas\[1\] .*, got nan$", id="beta-nan"),
        pytest.param(lambda s: s.from_betas([]), r"at least one number, got shape \(0,\)$", id="empty"),
        pytest.param(lambda s: s.from_betas([[0.1]]), r"at least one number, got shape \(1, 1\)$", id="matrix"),
        pytest.param(lambda s: s.from_alphas_cumprod([1.1]), r"alphas_cumprod\[0\] .*, got 1.1$", id="alpha-above-1"),
        pytest.param(lambda s: s.from_alphas_cumprod([0.9, 0.95]), r"alphas_cumprod\[1\] .*, got 0.95$", id="rising"),
        pytest.param(lambda s: s.flow(shift=0.0), "shift must be .*, got 0.0$", id="no-shift"),
        pytest.param(lambda s: s.flow(shift=np.inf), "shift must be .*, got inf$", id="infinite-shift"),
        pytest.param(lambda s: s.from_config({"type": "sigmoid"}), "must be one of .*, got 'sigmoid'$", id="type"),
        pytest.param(
            lambda s: s.from_alphas_cumprod([0.5, 0.5]).rescale_zero_terminal_snr(), "must fall .*, got 0.5", id="flat"
        ),
        pytest.param(
            lambda s: s.from_config({"type": "linear", "num_train_timesteps": 1.5}), "whole.*, got 1.5$", id="fraction"
        ),
        pytest.param(lambda s: s.from_config({}), "must be one of .*, got None$", id="no-type"),
        pytest.param(lambda s: s.from_config({"type": "linear", "beta": 1}), "'linear': .*'beta'", id="unknown"),
        pytest.param(lambda s: s.from_config({"type": "alphas_cumprod"}), "'alphas_cumprod': .*missing", id="missing"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make(sf.NoiseSchedule)
