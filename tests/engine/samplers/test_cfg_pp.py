"""CFG++ against its paper's algorithm (Chung et al., 2024), written out here: diffusers has none.

ComfyUI's ``euler_cfg_pp`` is the same step on states that are not scaled, and on flows.
"""

import numpy as np
import peers
import pytest
import tolerances

import stepfuse as sf

STEPS = (1, 2, 7, 25)


def predictions(kind, x, t, signal, noise):
    """The clean sample and the noise of a state, by the conditional and by the unconditional prediction."""
    for y in (1.0, 0.0):
        output = peers.model(x, np.full(len(x), t), {"y": np.full(len(x), y)})
        if kind == "epsilon":
            yield (x - noise * output) / signal, output
        elif kind == "v_prediction":
            yield signal * x - noise * output, noise * x + signal * output
        elif kind == "sample":
            yield output, (x - signal * output) / noise
        else:
            yield x - noise * output, x + signal * output


def paper(kind, levels, timesteps, scale, *, start=peers.NOISE, clip=np.inf, guided=lambda t: True):
    """A run in float64 over levels of signal and noise, the last those of the result."""
    x = start.astype(np.float64)
    for t, (signal, noise), (signal_after, noise_after) in zip(timesteps, levels, levels[1:], strict=False):
        (clean, noise_cond), (clean_uncond, noise_uncond) = predictions(kind, x, t, signal, noise)
        if guided(t):
            clean, noise_cond = clean_uncond + scale * (clean - clean_uncond), noise_uncond
        x = signal_after * np.clip(clean, -clip, clip) + noise_after * noise_cond
    return x


def preserving_levels(schedule, timesteps):
    alphas = np.append(schedule.alphas_cumprod_at(timesteps), 1.0)
    return np.stack([np.sqrt(alphas), np.sqrt(1 - alphas)], axis=1)


def ours(schedule, table, kind="epsilon"):
    with peers.engine(schedule, kind) as engine:
        return engine.sample(peers.BATCH, cond=1.0, table=table, noise=peers.NOISE)


def assert_same(got, want):
    assert np.abs(got - want).max() < tolerances.ONE_STEP * np.abs(want).max()


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0])
def test_ddim_is_the_paper_s(scale, kind, steps):
    schedule = peers.noise_schedule("scaled")
    table = sf.samplers.ddim(schedule, steps, prediction_type=kind, cfg_pp=True, guidance_scale=scale)
    levels = preserving_levels(schedule, table["t"])
    assert_same(ours(schedule, table, kind), paper(kind, levels, table["t"], scale))
    assert table.passes == (2 if scale else 1) * steps


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_euler_is_the_same_on_states_that_are_not_scaled(kind, steps):
    schedule = peers.noise_schedule("scaled")
    table = sf.samplers.euler(schedule, steps, prediction_type=kind, cfg_pp=True, guidance_scale=0.6)
    levels = preserving_levels(schedule, table["t"])
    start = peers.NOISE * table.init_scale * levels[0, 0]
    assert_same(ours(schedule, table, kind), paper(kind, levels, table["t"], 0.6, start=start))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", ["shift-1", "shift-3"])
def test_euler_on_a_flow(shift, steps):
    schedule = peers.noise_schedule(shift)
    table = sf.samplers.euler(schedule, steps, cfg_pp=True, guidance_scale=0.6)
    sigma = np.append(table["t"] / 1000, 0.0)
    levels = np.stack([1 - sigma, sigma], axis=1)
    assert_same(ours(schedule, table), paper("flow", levels, table["t"], 0.6))


def test_it_is_on_within_the_interval_alone_and_clips_the_clean_sample():
    schedule = peers.noise_schedule("scaled")
    options = {"guidance_scale": 0.8, "guidance_interval": (0.3, 0.8)}
    table = sf.samplers.ddim(schedule, 10, cfg_pp=True, clip=1.0, **options)
    levels = preserving_levels(schedule, table["t"])
    want = paper("epsilon", levels, table["t"], 0.8, clip=1.0, guided=lambda t: 0.3 <= t / 999 <= 0.8)
    assert_same(ours(schedule, table), want)
    assert 10 < table.passes < 20
    euler = sf.samplers.euler(schedule, 10, **options), sf.samplers.euler(schedule, 10, cfg_pp=True, **options)
    inside = np.flatnonzero(euler[0]["g"] != 1)
    np.testing.assert_array_equal(np.flatnonzero(euler[1]["q_u"]), inside)


def test_without_guidance_it_is_the_plain_sampler():
    schedule = peers.noise_schedule("scaled")
    for make in (sf.samplers.ddim, sf.samplers.euler):
        plain, pp = (make(schedule, 10, cfg_pp=on, guidance_scale=0.0) for on in (False, True))
        assert_same(ours(schedule, pp), ours(schedule, plain).astype(np.float64))
    assert not pp.has_second_line


def test_noise_that_is_added_back_takes_its_share():
    schedule = peers.noise_schedule("scaled")
    table = sf.samplers.ddim(schedule, 10, cfg_pp=True, guidance_scale=0.6, eta=1.0)
    plain = sf.samplers.ddim(schedule, 10, guidance_scale=0.6, eta=1.0)
    np.testing.assert_array_equal(table["q_u"], plain["q_e"])
    np.testing.assert_array_equal(table["q_z"], plain["q_z"])


@pytest.mark.parametrize(
    ("sampler", "given", "message"),
    [
        ("ddim", {"guidance_scale": 3.0}, "guidance_scale must be between 0 and 1 with cfg_pp, got 3.0"),
        ("euler", {"guidance_scale": 1.5}, "guidance_scale must be between 0 and 1 with cfg_pp, got 1.5"),
        ("ddim", {"clip": 1.0, "clipped_eps": True}, "clipped_eps must be left out with cfg_pp, .*, got True"),
    ],
)
def test_what_does_not_go_with_it_is_refused(sampler, given, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        getattr(sf.samplers, sampler)(sf.NoiseSchedule.linear(), 5, cfg_pp=True, **given)


def test_a_model_without_conditioning_has_nothing_to_guide_by():
    with (
        sf.Engine.from_callable(lambda x, t, cond: x, shape=(2,), schedule=sf.NoiseSchedule.linear()) as engine,
        pytest.raises(ValueError, match="cfg_pp must be left out for a model that takes no conditioning, got True"),
    ):
        engine.sample(cfg_pp=True, steps=3)
