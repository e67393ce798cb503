"""Calls of the API with arguments of any kind: a result, or an error that says why, and an engine that works."""

import functools

import numpy as np
import pytest
import support
from hypothesis import given
from hypothesis import strategies as st
from mutations import NUMBERS, TEXTS, VALUES, contract, fuzz

import stepfuse as sf

contract = functools.partial(contract, longest=1_000_000)  # the caller's own value is shown whole
pytestmark = pytest.mark.filterwarnings("ignore::stepfuse.samplers.NaiveSamplerWarning")

TABLE = sf.samplers.ddim(support.SCHEDULE, 4, guidance_scale=3.0)

ARRAYS = st.builds(
    lambda shape, kind, value: np.full(shape, value, dtype=kind),
    st.sampled_from([(), (0,), (1,), support.SHAPE, (1, *support.SHAPE), (2, *support.SHAPE), (4, 5), (1, 1, 1, 4, 5)]),
    st.sampled_from(["f4", "f8", "f2", "i8", "u1", "?", "c8", "O", "U3"]),
    st.sampled_from([0, 1]),
)
ANY = st.one_of(
    VALUES, ARRAYS, st.builds(np.int64, st.integers(-2, 5)), st.binary(max_size=4), st.just(object()), st.just(TABLE)
)
SMALL = st.integers(1, 3)
ARGUMENTS = {
    "n": st.one_of(SMALL, NUMBERS, ANY),
    "cond": st.one_of(st.sampled_from(["boot", 3, None, [1, 2], {"class_labels": 1}]), ANY),
    "negative_cond": ANY,
    "sampler": st.one_of(st.sampled_from(sorted(sf.samplers.SAMPLERS)), TEXTS, ANY),
    "steps": st.one_of(SMALL, ANY),
    "guidance_scale": st.one_of(st.floats(0, 9), ANY),
    "eta": ANY,
    "seed": ANY,
    "table": ANY,
    "noise": ANY,
    "image": ANY,
    "mask": ANY,
    "strength": ANY,
    "spacing": st.one_of(st.sampled_from(["leading", "trailing", "linspace"]), ANY),
    "timesteps": st.one_of(st.lists(st.integers(0, 999), max_size=4), ANY),
    "clip": ANY,
    "karras": ANY,
    "levels": st.one_of(st.sampled_from(["karras", "exponential", "beta", "lu"]), ANY),
    "sigmas": st.one_of(st.lists(st.floats(0.02, 14), max_size=4), ANY),
    "sigma_min": st.one_of(st.floats(0.02, 14), ANY),
    "sigma_max": st.one_of(st.floats(0.02, 14), ANY),
    "guidance_rescale": ANY,
    "dynamic_threshold": ANY,
    "apg": st.one_of(st.tuples(st.floats(0, 1), st.floats(0, 9)), ANY),
    "apg_form": st.one_of(st.sampled_from(["diffusers", "paper"]), ANY),
    "cfg_zero_star": st.one_of(st.booleans(), ANY),
    "zero_init": st.one_of(st.integers(0, 3), ANY),
    "guidance_interval": ANY,
    "callback": ANY,
    "nonesuch": ANY,
}


def calls(names, most=4):
    """Some of the arguments, each of a value of its own kind or of any."""
    some = st.lists(st.sampled_from(names), max_size=most, unique=True)
    return some.flatmap(lambda chosen: st.fixed_dictionaries({name: ARGUMENTS[name] for name in chosen}))


@pytest.fixture(scope="module")
def engine():
    with support.make_engine(max_rows=8) as engine:
        yield engine


@pytest.fixture(scope="module")
def expected():
    return support.replay(TABLE, cond=2, seed=8)[0]


def short(arguments):
    """Whether a valid call would be a small one."""
    steps = arguments.get("steps", 1)
    many = isinstance(arguments.get("n"), int) and 100 < arguments["n"] < 10**9
    return not many and (not isinstance(steps, int) or steps <= 1000)


def test_sample(engine, expected):
    @fuzz(5)
    @given(calls(sorted(ARGUMENTS)))
    def check(arguments):
        if not short(arguments):
            return
        arguments = {"steps": 2, **arguments} if "table" not in arguments else arguments
        with contract(ValueError, TypeError, sf.DenoiserError):
            samples = engine.sample(**arguments)
            assert samples.dtype == np.float32
            assert samples.shape[1:] == support.SHAPE
            assert np.isfinite(samples).all()
        np.testing.assert_array_equal(engine.sample(1, cond=2, table=TABLE, seed=8)[0], expected)
        assert engine.stats()["waiting"] == engine.stats()["running"] == 0

    check()


REQUEST = sorted(
    set(ARGUMENTS)
    - {"n", "callback", "spacing", "timesteps", "clip", "karras", "nonesuch"}
    - {"levels", "sigmas", "sigma_min", "sigma_max"}
    - {"guidance_rescale", "dynamic_threshold", "guidance_interval"}
    - {"apg", "apg_form", "cfg_zero_star", "zero_init"}
)


def test_submit(engine, expected):
    extra = st.fixed_dictionaries(
        {},
        optional={
            "priority": ANY,
            "deadline": ANY,
            "timeout": ANY,
            "id": ANY,
            "options": st.one_of(ANY, st.dictionaries(TEXTS, ANY, max_size=2)),
        },
    )

    @fuzz(4)
    @given(calls(REQUEST), extra)
    def check(arguments, more):
        if not short(arguments):
            return
        arguments = {"steps": 2, **arguments} if "table" not in arguments else arguments
        with contract(ValueError, TypeError, sf.DenoiserError, sf.RequestTimeout, sf.DeadlineError):
            engine.submit(sf.Request(**{**arguments, **more})).result()
        np.testing.assert_array_equal(engine.sample(1, cond=2, table=TABLE, seed=8)[0], expected)

    check()


@pytest.mark.parametrize("name", sorted(sf.samplers.SAMPLERS))
def test_samplers(name):
    function = sf.samplers.SAMPLERS[name]
    schedule = support.schedule_of(name)
    known = {
        "steps_offset": ANY,
        "prediction_type": ANY,
        "final_alpha_cumprod": ANY,
        "variance": ANY,
        "original_steps": ANY,
        "lower_order_final": ANY,
        "rho": ANY,
        "shift_terminal": ANY,
    }
    options = {
        **known,
        **{
            name: ARGUMENTS[name]
            for name in (
                *("timesteps", "spacing", "clip", "eta", "guidance_scale", "karras", "guidance_interval"),
                *("levels", "sigmas", "sigma_min", "sigma_max"),
            )
        },
    }

    @fuzz(1)
    @given(st.one_of(SMALL, ANY), st.lists(st.sampled_from(sorted(options)), max_size=3, unique=True), st.data())
    def check(steps, chosen, data):
        with contract(ValueError, TypeError):
            table = function(schedule, steps, **{option: data.draw(options[option]) for option in chosen})
            assert table.check() is table

    check()
