"""Networks distilled from guided predictions: an input takes the guidance scale, or none is taken; one pass a step."""

import dataclasses

import numpy as np
import pytest

import stepfuse as sf
from stepfuse.requests.resolution import compile_table

SHAPE, SCHEDULE, FLOW = (2, 3), sf.NoiseSchedule.linear(), sf.NoiseSchedule.flow(3.0)
COND = {
    "y": sf.CondInput("float32", SHAPE, null=0.5),
    "guidance": sf.CondInput("float32", (), null=1.0),
}
SCALES = [1.0, 2.5, 0.0, 7.5]


class Network:
    """A prediction that depends on all it is given, and how many rows it was asked for."""

    def __init__(self):
        self.rows = 0

    def __call__(self, x, t, cond):
        self.rows += len(x)
        scale = cond["guidance"][:, None, None] if "guidance" in cond else np.float32(3.0)
        return np.tanh(x + (1 + scale) * cond["y"] / 4 + t[:, None, None].astype(np.float32) / 1000)


@pytest.fixture
def network():
    return Network()


@pytest.fixture
def engine(network):
    options = {"shape": SHAPE, "schedule": SCHEDULE, "cond": COND, "guidance": "embedded", "max_rows": 4}
    with sf.Engine.from_callable(network, **options) as engine:
        yield engine


def by_hand(noise, table, y, scale):
    x = noise[None].astype(np.float32)
    for row in table:
        assert row[2] == 1
        cond = {"y": y[None], "guidance": np.float32([scale])}
        x = sf.step(x, Network()(x, np.full(1, row[0]), cond), row)
    return x[0]


def test_each_sample_of_a_batch_has_its_own_scale_in_one_pass_a_step(engine, network):
    rng = np.random.default_rng(0)
    noise, y = (rng.standard_normal((len(SCALES), *SHAPE)).astype(np.float32) for _ in range(2))
    table = sf.samplers.ddim(SCHEDULE, 5)
    want = [by_hand(*one) for one in zip(noise, [table] * len(noise), y, SCALES, strict=True)]
    got = engine.sample(len(SCALES), cond=y, noise=noise, steps=5, sampler="ddim", guidance_scale=SCALES)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert network.rows == 5 * len(SCALES)
    requests = [
        sf.Request(cond=one, steps=5, sampler="ddim", guidance_scale=scale, noise=z)
        for one, scale, z in zip(y, SCALES, noise, strict=True)
    ]
    got = [future.result() for future in [engine.submit(one) for one in requests]]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_table_keeps_the_scale_that_it_was_compiled_with(engine):
    rng = np.random.default_rng(1)
    noise, y = (rng.standard_normal((1, *SHAPE)).astype(np.float32) for _ in range(2))
    compiled = engine.table(sampler="ddim", steps=4, guidance_scale=2.5)
    assert compiled.passes == len(compiled) == 4
    assert compiled.options["guidance_scale"] == 2.5
    want = by_hand(noise[0], sf.samplers.ddim(SCHEDULE, 4), y[0], 2.5)
    guided = sf.samplers.ddim(SCHEDULE, 4, guidance_scale=2.5)  # a caller's own, of two passes
    for table in (compiled, guided, dataclasses.replace(guided, options={})):
        np.testing.assert_allclose(engine.sample(1, cond=y, noise=noise, table=table)[0], want, rtol=1e-6)
    again = by_hand(noise[0], compiled, y[0], 1.0)
    np.testing.assert_allclose(
        engine.sample(1, cond=y, noise=noise, table=sf.samplers.ddim(SCHEDULE, 4))[0], again, rtol=1e-6
    )


def test_without_conditioning_the_scale_is_given_all_the_same(engine):
    noise = np.random.default_rng(2).standard_normal((1, *SHAPE)).astype(np.float32)
    want = by_hand(noise[0], sf.samplers.ddim(SCHEDULE, 3), np.full(SHAPE, 0.5, np.float32), 5.0)
    got = engine.sample(1, noise=noise, steps=3, sampler="ddim", guidance_scale=5.0)
    np.testing.assert_allclose(got[0], want, rtol=1e-6)


def test_a_run_of_two_lines_begins_late_with_its_scale(engine):
    """Such a table is made again from its options."""
    image = np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32)
    y = np.ones(SHAPE, np.float32)
    run = {"cond": y, "steps": 8, "sampler": "unipc", "image": image, "strength": 0.5, "seed": 1}
    table = sf.samplers.unipc(SCHEDULE, 8)
    free = {"shape": SHAPE, "schedule": SCHEDULE, "cond": {"y": COND["y"]}}
    with sf.Engine.from_callable(Network(), **free) as other:  # which takes 3 for the scale
        want = other.sample(1, cond=y, table=table, image=image, strength=0.5, seed=1)
    np.testing.assert_allclose(engine.sample(1, guidance_scale=3.0, **run), want, rtol=1e-6)
    assert np.abs(engine.sample(1, guidance_scale=9.0, **run) - want).max() > 1e-3


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (
            {"negative_cond": np.ones(SHAPE)},
            "negative_cond must be left out for this model: a step is one pass, .*true",
        ),
        ({"cond": {"guidance": 2.0}}, "cond must have names among y, got guidance"),
        ({"guidance_scale": -1.0}, "guidance_scale must be at least 0 and finite, got -1"),
        ({"guidance_scale": 3.0, "guidance_interval": (0.2, 0.8)}, "guidance_interval must be left out for this model"),
        (
            {"guidance_scale": 3.0, "guidance_interval": (0.9991, 0.9995)},
            "guidance_interval must be left out for this model",
        ),
        (
            {"guidance_scale": 0.5, "cfg_pp": True, "sampler": "ddim"},
            "cfg_pp must be left out for this model: it takes",
        ),
        ({"guidance_scale": 3.0, "apg": (0.0, 2.0)}, "apg must be left out for this model: it takes guidance_scale as"),
        ({"guidance_scale": 3.0, "cfg_zero_star": True}, "cfg_zero_star must be left out for this model"),
        ({"guidance_scale": 3.0, "guidance_rescale": 0.7}, "guidance_rescale must be left out for this model"),
        (
            {"table": sf.samplers.ddim(SCHEDULE, 4), "guidance_scale": 3.0},
            "table says all .*: leave out guidance_scale",
        ),
    ],
)
def test_what_needs_a_second_prediction_is_refused(engine, given, match):
    with pytest.raises(ValueError, match=match):
        engine.sample(1, **{"steps": None if "table" in given else 4, **given})


def test_a_network_that_takes_no_scale_refuses_any_but_1(network):
    cond = {"y": COND["y"]}
    with sf.Engine.from_callable(network, shape=SHAPE, schedule=SCHEDULE, cond=cond, guidance="none") as engine:
        for scale in (None, 1.0):
            engine.sample(1, cond=np.ones(SHAPE), steps=2, guidance_scale=scale)
        for scale in (0.0, 3.5):
            with pytest.raises(ValueError, match=rf"guidance_scale must be 1, or left out, .* guidance, got {scale}"):
                engine.sample(1, cond=np.ones(SHAPE), steps=2, guidance_scale=scale)
        with pytest.raises(ValueError, match=r"guidance_scale must be 1, or left out, .* got 2\.0"):
            engine.sample(1, cond=np.ones(SHAPE), table=sf.samplers.ddim(SCHEDULE, 4, guidance_scale=2.0))
        with pytest.raises(ValueError, match="negative_cond must be left out for this model"):
            engine.sample(1, cond=np.ones(SHAPE), negative_cond=np.ones(SHAPE), steps=2)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"guidance": "true"}, "guidance must be one of classifier_free, embedded, none, got 'true'"),
        ({"cond": {"y": COND["y"]}}, r"guidance 'embedded' needs an input guidance, float32 of shape \(\), in cond"),
        ({"cond": {"guidance": sf.CondInput("int64", (), null=1)}}, "guidance 'embedded' needs an input guidance"),
    ],
)
def test_what_a_model_says_of_its_guidance_is_checked(changes, match):
    with pytest.raises(ValueError, match=match):
        sf.ModelInfo(**{"shape": SHAPE, "schedule": SCHEDULE, "cond": COND, "guidance": "embedded", **changes})


def test_a_fit_blends_predictions_itself(engine):
    with pytest.raises(ValueError, match="guidance must be classifier_free or none for a fit"):
        sf.fit(engine, steps=2)


@pytest.mark.parametrize("sampler", ["euler", "heun", "lcm", "unipc"])
def test_spacing_of_a_models_defaults_reaches_every_sampler_of_a_flow(sampler):
    info = sf.ModelInfo(SHAPE, FLOW, "flow", COND, defaults={"sampler": "euler", "spacing": "trailing"})
    made = compile_table(info, sampler, 4, None, None, {})
    np.testing.assert_array_equal(made.rows, getattr(sf.samplers, sampler)(FLOW, 4, spacing="trailing").rows)
    assert made != getattr(sf.samplers, sampler)(FLOW, 4)
