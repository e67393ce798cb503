"""The examples that people work by hand."""

from math import sqrt

import numpy as np
import pytest
import tolerances

import stepfuse as sf

ALPHAS = [0.70, 0.30, 0.01]  # of timesteps 0, 1, 2
OUTPUTS = [0.5, 1.4, 1.8]
HAND_ESTIMATES, HAND_STATES, HALF_A_DIGIT = [2.09, 2.70, 3.29], [2.65, 3.03], 0.005


def ddim_by_hand(x):
    """Clean estimates and states of DDIM from timestep 2 to the clean sample."""
    estimates, states = [], []
    for a, a_next, eps in zip([0.01, 0.30, 0.70], [0.30, 0.70, 1.0], [1.8, 1.4, 0.5], strict=True):
        x0 = (x - sqrt(1 - a) * eps) / sqrt(a)
        x = sqrt(a_next) * x0 + sqrt(1 - a_next) * eps
        estimates.append(x0)
        states.append(x)
    return estimates, states


def check_ddim(estimates, states):
    exact_estimates, exact_states = ddim_by_hand(2.0)
    np.testing.assert_allclose(estimates, exact_estimates, rtol=tolerances.BY_HAND)
    np.testing.assert_allclose(states, exact_states, rtol=tolerances.BY_HAND)
    np.testing.assert_allclose(estimates, HAND_ESTIMATES, rtol=0, atol=HALF_A_DIGIT)
    np.testing.assert_allclose(states[:2], HAND_STATES, rtol=0, atol=HALF_A_DIGIT)
    assert states[2] == pytest.approx(estimates[2], rel=tolerances.BY_HAND)


def test_ddim_with_the_step_alone():
    table = sf.samplers.ddim(sf.NoiseSchedule.from_alphas_cumprod(ALPHAS), timesteps=[2, 1, 0])
    keep_clean = sf.StepTable.from_columns({"q_d": 1.0})[0][7:]  # line 2: x' = d
    x, estimates, states = np.float32([2.0]), [], []
    for row, eps in zip(table, np.float32([[1.8], [1.4], [0.5]]), strict=True):
        estimates.append(sf.step(x, eps, np.concatenate([row[:7], keep_clean]))[0])
        x = sf.step(x, eps, row)
        states.append(x[0])
    check_ddim(estimates, states)


def test_ddim_with_the_engine():
    estimates, states = [], []

    def network(x, t, _cond):
        states.append(x[0, 0])
        return np.float32(OUTPUTS)[t.astype(int), None]

    schedule = sf.NoiseSchedule.from_alphas_cumprod(ALPHAS)
    engine = sf.Engine.from_callable(network, shape=(1,), schedule=schedule)
    final = engine.sample(
        noise=[[2.0]],
        table=sf.samplers.ddim(schedule, timesteps=[2, 1, 0]),
        callback=lambda _step, _total, x0: estimates.append(x0[0, 0]),
    )
    check_ddim(estimates, [*states[1:], final[0, 0]])


GUIDANCE = pytest.mark.parametrize(
    ("scale", "blended", "passes"),
    [
        pytest.param(0.0, 0.6, 1, id="unconditional"),
        pytest.param(1.0, 1.0, 1, id="conditional"),
        pytest.param(5.0, 2.6, 2, id="usual"),
        pytest.param(15.0, 6.6, 2, id="strong"),
    ],
)


def keep_output(scale):
    """One step whose next state is the guided network output."""
    return sf.StepTable.from_columns({"t": [0], "g": scale, "q_e": 1.0})


@GUIDANCE
def test_guidance_with_the_step_alone(scale, blended, passes):
    x, cond, uncond = np.float32([[0.0], [1.0], [0.6]])
    assert sf.step(x, cond, keep_output(scale)[0], eps_uncond=uncond)[0] == pytest.approx(blended, rel=1e-6)


@GUIDANCE
def test_guidance_with_the_engine(scale, blended, passes):
    engine = sf.Engine.from_callable(
        lambda x, t, cond: np.where(cond["y"] == 1, 1.0, 0.6)[:, None],
        shape=(1,),
        schedule=sf.NoiseSchedule.linear(),
        cond={"y": sf.CondInput(dtype="int64", shape=(), null=-1)},
    )
    assert engine.sample(cond=1, table=keep_output(scale))[0, 0] == pytest.approx(blended, rel=1e-6)
    assert engine.stats()["network_passes"] == passes


@pytest.mark.parametrize(
    ("arguments", "passes"),
    [
        pytest.param({"sampler": "ddpm"}, 1000, id="ddpm-1000"),
        pytest.param({"sampler": "ddim", "steps": 50}, 50, id="ddim-50"),
        pytest.param({"sampler": "ddim", "steps": 50, "guidance_scale": 5.0}, 100, id="ddim-50-guided"),
        pytest.param({"sampler": "lcm", "steps": 8}, 8, id="distilled-8"),
    ],
)
@pytest.mark.parametrize("samples", [1, 3])
def test_passes_a_sample(arguments, passes, samples):
    rows_seen = []

    def network(x, t, _cond):
        rows_seen.append(len(x))
        return np.zeros_like(x)

    engine = sf.Engine.from_callable(
        network,
        shape=(1,),
        schedule=sf.NoiseSchedule.linear(),
        cond={"y": sf.CondInput(dtype="int64", shape=(), null=-1)},
    )
    engine.sample(samples, cond=1, seed=0, **arguments)
    assert engine.stats()["network_passes"] == sum(rows_seen) == samples * passes
