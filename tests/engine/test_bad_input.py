"""What a caller does wrong: an error that says the rule and the value, and an engine that still works."""

import re

import numpy as np
import pytest
import support

import stepfuse as sf

TABLE = sf.samplers.ddim(support.SCHEDULE, 4, guidance_scale=3.0)


def check_still_works(engine):
    expected = [support.replay(TABLE, cond=2, seed=seed)[0] for seed in (8, 9)]
    np.testing.assert_array_equal(engine.sample(2, cond="coat", table=TABLE, seed=8), expected)


def noise(value=0.0):
    z = np.zeros((2, *support.SHAPE))
    z[1, 0, 2, 3] = value
    return z


BAD = {
    "n-zero": ({"n": 0}, ValueError, "n must be at least 1, got 0"),
    "n-float": ({"n": 2.0}, TypeError, "n must be a whole number, got 2.0"),
    "n-bool": ({"n": True}, TypeError, "n must be a whole number, got True"),
    "noise-shape": ({"noise": np.zeros((2, 4, 5))}, ValueError, "noise must have shape (2, 1, 4, 5), got (2, 4, 5)"),
    "noise-integer": ({"noise": noise().astype(int)}, TypeError, "noise must be floating point, got int64"),
    "noise-complex": ({"noise": noise() * 1j}, TypeError, "noise must be floating point, got complex128"),
    "noise-nan": ({"noise": noise(np.nan)}, ValueError, "noise must be finite, got nan at (1, 0, 2, 3)"),
    "noise-inf": ({"noise": noise(-np.inf)}, ValueError, "noise must be finite, got -inf at (1, 0, 2, 3)"),
    "noise-beyond-float32": ({"noise": noise(1e39)}, ValueError, "noise must be finite, got 1e+39 at (1, 0, 2, 3)"),
    "cond-unknown-name": ({"cond": "hat"}, ValueError, "cond must be one of boot, bag, .*, got 'hat'"),
    "cond-out-of-range": ({"cond": 8}, ValueError, "cond must be a class from 0 to 6, got 8"),
    "cond-negative": ({"cond": -1}, ValueError, "cond must be a class from 0 to 6, got -1"),
    "cond-float": ({"cond": 1.0}, TypeError, "cond must be int64, got 1.0 of type float64"),
    "cond-length": (
        {"cond": [1, 2, 3]},
        ValueError,
        "cond must be one value, or .* 2 samples, got 3",
    ),
    "cond-unknown-input": ({"cond": {"text": 1}}, ValueError, "cond must have names among class_labels, got text"),
    "guidance-negative": (
        {"guidance_scale": -1.0},
        ValueError,
        "guidance_scale must be at least 0 .*, got -1.0",
    ),
    "guidance-nan": ({"guidance_scale": np.nan}, ValueError, "guidance_scale must be at least 0 .*, got nan"),
    "guidance-inf": ({"guidance_scale": np.inf}, ValueError, "guidance_scale must be at least 0 .*, got inf"),
    "guidance-text": ({"guidance_scale": "3"}, TypeError, "guidance_scale must be a number, got '3'"),
    "guidance-length": (
        {"guidance_scale": [1.0]},
        ValueError,
        "guidance_scale must be .* 2 samples, got 1",
    ),
    "eta-above-1": ({"eta": 1.5}, ValueError, "eta must be between 0 and 1, got 1.5"),
    "eta-nan": ({"eta": [0.0, np.nan]}, ValueError, "eta must be between 0 and 1, got nan"),
    "n-beyond-memory": (
        {"n": 10**12},
        ValueError,
        "n must be at most .*, got 1000000000000, which would take .* PB",
    ),
    "n-beyond-floats": (
        {"n": 10**400},
        ValueError,
        "n must be at most .*, got 1000.*, .* would take over 999 EB",
    ),
    "eta-text": ({"eta": "half"}, TypeError, "eta must be a number, got 'half'"),
    "eta-of-another-sampler": ({"eta": 0.5, "sampler": "heun"}, ValueError, "eta must be left out with sampler 'heun'"),
    "steps-zero": ({"steps": 0}, ValueError, "steps must be between 1 and 1000, got 0"),
    "steps-above-T": ({"steps": 1001}, ValueError, "steps must be between 1 and 1000, got 1001"),
    "steps-float": ({"steps": 10.0}, TypeError, "steps must be a whole number, got 10.0"),
    "steps-length": ({"steps": [1, 2, 3]}, ValueError, "steps must be one value, or .* 2 samples, got 3"),
    "sampler-unknown": ({"sampler": "dpm2"}, ValueError, "sampler must be one of ddim, ddpm, .*, got 'dpm2'"),
    "option-unknown": ({"sampler": "ddim", "karras": True}, TypeError, "sampler 'ddim' takes steps, .*, got karras"),
    "option-bad": ({"spacing": "even"}, ValueError, "spacing must be 'leading', 'trailing' or 'linspace', got 'even'"),
    "seed-negative": ({"seed": -1}, ValueError, "seed must be between 0 and 2^64 - 1, got -1"),
    "seed-too-large": (
        {"seed": [0, 2**64]},
        ValueError,
        "seed must be between .*, got 18446744073709551616",
    ),
    "seed-float": ({"seed": 0.5}, TypeError, "seed must be a whole number, got 0.5"),
    "seed-bool": ({"seed": [0, False]}, TypeError, "seed must be a whole number, got False"),
    "seed-length": ({"seed": [1, 2, 3]}, ValueError, "seed must be one value, or .* 2 samples, got 3"),
    "table-of-another-kind": ({"table": TABLE.rows}, TypeError, "table must be a StepTable, got ndarray"),
    "table-with-steps": ({"table": TABLE, "steps": 4}, ValueError, "table says all .*: leave out steps"),
    "table-with-option": ({"table": TABLE, "clip": 1.0}, ValueError, "table says all .*: leave out clip"),
    "table-beyond-T": (
        {"table": sf.StepTable.from_columns({"t": [1200.0, 0.0]})},
        ValueError,
        "table's timesteps must be between 0 and 999 for this model, got 1200",
    ),
    "table-below-0": (
        {"table": sf.StepTable.from_columns({"t": [3.0, -1.0]})},
        ValueError,
        "table's timesteps must be between 0 and 999 for this model, got -1",
    ),
}


@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused(arguments, error, message):
    with support.make_engine() as engine:
        pattern = ".*".join(re.escape(part) for part in message.split(".*"))
        with pytest.raises(error, match=f"^{pattern}"):
            engine.sample(**{"n": 2, **arguments})
        assert engine.stats()["forwards"] == 0
        check_still_works(engine)


def test_guidance_needs_a_conditioning_input():
    with (
        support.make_engine(cond=None) as engine,
        pytest.raises(ValueError, match=r"guidance_scale must be 1 .*, got 3"),
    ):
        engine.sample(guidance_scale=3.0)


def test_a_guided_sample_needs_two_rows():
    with support.make_engine(max_rows=1) as engine:
        with pytest.raises(ValueError, match="a guided step takes 2 rows of a forward, max_rows is 1"):
            engine.sample(3, cond=[None, "bag", None], table=TABLE)
        np.testing.assert_array_equal(engine.sample(table=TABLE, seed=8)[0], support.replay(TABLE, seed=8)[0])


@pytest.mark.parametrize("rows", [0, 65])
def test_warmup_stays_within_the_rows(rows):
    with support.make_engine() as engine, pytest.raises(ValueError, match=f"rows must be between 1 and 64, got {rows}"):
        engine.warmup([rows])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"max_rows": 0}, "max_rows must be at least 1, got 0", id="no-rows"),
        pytest.param({"shape": (0, 3)}, r"shape must be .* at least 1, .*, got \(0, 3\)", id="empty-sample"),
        pytest.param({"prediction_type": "score"}, "prediction_type must be one of .*, got 'score'", id="prediction"),
        pytest.param({"prediction_type": "flow"}, "'flow' and a flow schedule go together", id="flow-without-schedule"),
        pytest.param({"timestep_dtype": "int32"}, "timestep_dtype must be .*, got 'int32'", id="timestep"),
    ],
)
def test_an_engine_is_made_from_what_fits_together(options, message):
    with pytest.raises(ValueError, match=message):
        support.make_engine(**options)
