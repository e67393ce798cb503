"""Negative conditioning: of the unconditional pass, instead of the null value."""

import numpy as np
import pytest

import stepfuse as sf

SHAPE = (2, 3)
SCHEDULE = sf.NoiseSchedule.linear()
TEXT = sf.CondInput("float32", SHAPE, null=0.0)


def network(x, t, cond):
    return np.tanh(x + cond["y"] / 2 + t[:, None, None].astype(np.float32) / 1000)


@pytest.fixture
def engine():
    with sf.Engine.from_callable(network, shape=SHAPE, schedule=SCHEDULE, cond={"y": TEXT}) as engine:
        yield engine


def by_hand(noise, table, cond, negative):
    x = noise.astype(np.float32)
    for row in table.rows:
        t = np.full(len(x), row[0])
        x = sf.step(x, network(x, t, {"y": cond}), row, network(x, t, {"y": negative}))
    return x


def test_guidance_leads_away_from_it(engine):
    rng = np.random.default_rng(0)
    noise, cond, negative = (rng.standard_normal((3, *SHAPE)).astype(np.float32) for _ in range(3))
    table = sf.samplers.ddim(SCHEDULE, 6, guidance_scale=4.0)
    want = by_hand(noise, table, cond, negative)
    got = engine.sample(3, cond=cond, negative_cond=negative, table=table, noise=noise)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    # One for all, and through a request.
    got = engine.sample(3, cond=cond, negative_cond=negative[1], table=table, noise=noise)
    np.testing.assert_allclose(got, by_hand(noise, table, cond, negative[[1, 1, 1]]), rtol=1e-6)
    request = sf.Request(cond=cond[2], negative_cond=negative[2], table=table, noise=noise[2])
    np.testing.assert_allclose(engine.submit(request).result(), want[2], rtol=1e-6)


def test_a_sample_that_is_told_nothing_is_still_led_away_from_it(engine):
    rng = np.random.default_rng(1)
    noise, negative = (rng.standard_normal((1, *SHAPE)).astype(np.float32) for _ in range(2))
    table = sf.samplers.ddim(SCHEDULE, 4, guidance_scale=4.0)
    got = engine.sample(1, negative_cond=negative, table=table, noise=noise)
    np.testing.assert_allclose(got, by_hand(noise, table, np.zeros_like(noise), negative), rtol=1e-6)


def test_its_errors_name_it(engine):
    with pytest.raises(ValueError, match=r"negative_cond must have shape \(2, 3\), got \(3,\)"):
        engine.sample(1, cond=np.ones(SHAPE), negative_cond=np.ones(3))
    with pytest.raises(ValueError, match="negative_cond must have names among y, got z"):
        engine.sample(1, negative_cond={"z": 1})
