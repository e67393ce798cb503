"""numpy's numbers wherever Python's are taken, truth values nowhere as numbers, hints at other libraries' names."""

import json

import numpy as np
import pytest
import support

import stepfuse as sf
from stepfuse import _core
from stepfuse.analysis.experiments.sampling import require_count
from stepfuse.arguments import number, plain, truth_value, whole_number
from stepfuse.bundle.pipeline_info import PipelineInfo
from stepfuse.interpolation import interpolate_noise, interpolate_noise_grid
from stepfuse.pipeline.size import sample_shape
from stepfuse.samplers import SAMPLERS

LINEAR = sf.NoiseSchedule.linear()
Z = np.random.default_rng(0).standard_normal((2, *support.SHAPE)).astype(np.float32)
IMAGE = np.zeros(support.SHAPE, np.float32)
INFO = sf.ModelInfo((4, 8, 8), LINEAR)
PIPELINE = PipelineInfo("a test", pixels_per_latent=8, size_multiple=8)

WHOLE = {
    "python": int,
    "int64": np.int64,
    "int32": np.int32,
    "uint8": np.uint8,
    "array": lambda value: np.array(value, dtype=np.int32),
}
REAL = {
    "python": float,
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "array": lambda value: np.array(value, dtype=np.float32),
}


def draw(n=1, **arguments):
    with support.make_engine() as engine:
        return engine.sample(n, **{"cond": 1, "steps": 3, "seed": 5, **arguments})


def submitted(**arguments):
    with support.make_engine() as engine:
        return engine.submit(sf.Request(**{"cond": 1, "steps": 3, "seed": 5, **arguments})).result(30)


def encoded(**arguments):
    with support.make_engine() as engine:
        return engine.encode(Z, **{"steps": 3, **arguments})


def walked(n):
    with support.make_engine() as engine:
        return engine.interpolate(Z[0], Z[1], n, steps=2, seed=1)


def warmed(rows):
    with support.make_engine() as engine:
        engine.warmup([rows])
        return engine.stats()["forwards"]


def table_of(sampler, steps=4, **options):
    schedule = sf.NoiseSchedule.flow() if options.pop("flow", False) else LINEAR
    if sampler in support.EDM_SAMPLERS:
        schedule = support.schedule_of(sampler)
    table = SAMPLERS[sampler](schedule, steps, **options)
    json.dumps(dict(table.options))  # files hold them
    return table.rows


#: Calls of one whole number, and one that is right.
WHOLE_CALLS = {
    "sample-n": (lambda one: draw(one), 2),
    "sample-seed": (lambda one: draw(seed=one), 7),
    "sample-seeds": (lambda one: draw(2, seed=[one, 3]), 7),
    "sample-steps": (lambda one: draw(steps=one), 4),
    "sample-each-steps": (lambda one: draw(2, steps=[one, 3]), 4),
    "sample-offset": (lambda one: draw(steps_offset=one), 1),
    "sample-timesteps": (lambda one: draw(steps=None, timesteps=[900, one, 0]), 100),
    "sample-cond": (lambda one: draw(cond=one), 3),
    "sample-conds": (lambda one: draw(2, cond=[one, 2]), 3),
    "submit-seed": (lambda one: submitted(seed=one), 7),
    "submit-steps": (lambda one: submitted(steps=one), 4),
    "submit-priority": (lambda one: submitted(priority=one), 1),
    "encode-steps": (lambda one: encoded(steps=one), 4),
    "encode-refinements": (lambda one: encoded(refinements=one), 2),
    "interpolate-n": (walked, 3),
    "interpolate-noise": (lambda one: interpolate_noise(Z[0], Z[1], one), 3),
    "interpolate-rows": (lambda one: interpolate_noise_grid([*Z, *Z[::-1]], one, 2), 3),
    "warmup-rows": (warmed, 2),
    "normal-seed": (lambda one: sf.normal(one, (3,)), 7),
    "lcm-original-steps": (lambda one: table_of("lcm", original_steps=one), 40),
    "schedule-length": (lambda one: sf.NoiseSchedule.linear(num_train_timesteps=one).config, 100),
    "flow-length": (lambda one: sf.NoiseSchedule.flow(2.0, one).config, 100),
    "serving-rows": (lambda one: sf.Serving(max_rows=one).row_limit, 4),
    "serving-queue": (lambda one: sf.Serving(max_queue=one).max_queue, 4),
    "serving-running": (lambda one: sf.Serving(max_running=one).most_running, 4),
    "engine-rows": (lambda one: support.make_engine(max_rows=one).serving.max_rows, 4),
    "cuda-index": (lambda one: sf.Cuda(one).index, 1),
    "cuda-memory": (lambda one: sf.Cuda(memory_bytes=one).memory_bytes, 100),
    "width": (lambda one: sample_shape(INFO, PIPELINE, one, 64), 64),
    "height": (lambda one: sample_shape(INFO, PIPELINE, 64, one), 64),
    "samples": (lambda one: require_count("samples", one, 1), 3),
    **{
        f"{sampler}-steps": (lambda one, sampler=sampler: table_of(sampler, one), 5)
        for sampler in SAMPLERS
        if sampler != "ddpm_strided"
    },
}
#: Calls of one number, and one that is right and exact in float16.
REAL_CALLS = {
    "guidance-scale": (lambda one: draw(guidance_scale=one), 2.0),
    "guidance-scales": (lambda one: draw(2, guidance_scale=[one, 1.5]), 2.0),
    "eta": (lambda one: draw(eta=one), 0.5),
    "strength": (lambda one: draw(image=IMAGE, strength=one), 0.5),
    "clip": (lambda one: draw(clip=one), 0.5),
    "final-alpha": (lambda one: draw(final_alpha_cumprod=one), 1.0),
    "guidance-rescale": (lambda one: draw(guidance_scale=2.0, guidance_rescale=one), 0.5),
    "dynamic-threshold": (lambda one: draw(dynamic_threshold=(one, 2.0)), 0.5),
    "guidance-interval": (lambda one: draw(guidance_scale=2.0, guidance_interval=(one, 1.0)), 0.5),
    "submit-timeout": (lambda one: submitted(timeout=one), 64.0),
    "encode-guidance": (lambda one: encoded(guidance_scale=one, cond=1), 2.0),
    "shift": (lambda one: sf.NoiseSchedule.flow(one).config, 2.0),
    "ageing": (lambda one: sf.Serving(policy="shortest", ageing=one).ageing, 0.5),
    "cost": (lambda one: sf.CostCurve(one, 1.0), 0.5),
    "init-scale": (lambda one: sf.StepTable(np.ones((1, 16)), init_scale=one).init_scale, 2.0),
}


def same(got, want):
    if isinstance(want, np.ndarray):
        np.testing.assert_array_equal(got, want)
    else:
        assert got == want
        assert type(got) is type(want)


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("call", WHOLE_CALLS)
def test_whole_numbers_of_numpy_are_whole_numbers(call, kind):
    function, value = WHOLE_CALLS[call]
    same(function(WHOLE[kind](value)), function(value))


@pytest.mark.parametrize("kind", REAL)
@pytest.mark.parametrize("call", REAL_CALLS)
def test_numbers_of_numpy_are_numbers(call, kind):
    function, value = REAL_CALLS[call]
    same(function(REAL[kind](value)), function(value))


@pytest.mark.parametrize("truth", [True, np.True_, np.array(True)], ids=["python", "numpy", "array"])
@pytest.mark.parametrize("call", sorted(set(WHOLE_CALLS) - {"sample-timesteps"}))
def test_truth_values_are_no_whole_numbers(call, truth):
    with pytest.raises(TypeError, match=r"must be (a whole number|int64)"):
        WHOLE_CALLS[call][0](truth)


@pytest.mark.parametrize(
    "call",
    ["guidance-scale", "eta", "strength", "clip", "final-alpha", "guidance-rescale", "dynamic-threshold", "shift"],
)
@pytest.mark.parametrize("truth", [True, np.True_], ids=["python", "numpy"])
def test_truth_values_are_no_numbers(call, truth):
    with pytest.raises(TypeError, match="must be a number, got"):
        REAL_CALLS[call][0](truth)


@pytest.mark.parametrize("truth", [np.True_, np.array(True)], ids=["scalar", "array"])
def test_truth_values_of_numpy_are_truth_values(truth):
    same(table_of("euler", karras=truth), table_of("euler", karras=True))
    same(table_of("ddim", clip=1.0, clipped_eps=truth), table_of("ddim", clip=1.0, clipped_eps=True))


@pytest.mark.parametrize("value", [1, 0, "true", None], ids=repr)
def test_a_flag_is_true_or_false(value):
    with pytest.raises(TypeError, match="karras must be True or False, got"):
        table_of("euler", karras=value)


def test_the_core_takes_numbers_of_numpy():
    np.testing.assert_array_equal(
        _core.normal(np.int64(7), np.int32(1), np.uint8(0), np.int64(5)), _core.normal(7, 1, 0, 5)
    )
    _core.LoopOptions(max_running=np.int64(3), ageing=np.float32(0.5), pad=np.True_)
    assert _core.Adaptive(np.float32(0.5), np.float64(0.5)) is not None


def test_tables_of_numpy_s_numbers_are_saved(tmp_path):
    options = {"timesteps": np.array([900, 100]), "eta": np.float32(0.5), "guidance_interval": np.array([0.0, 0.5])}
    for name, given in {"array": options, "range": {"timesteps": range(900, 0, -100)}}.items():
        table = sf.samplers.ddim(LINEAR, **given)
        table.save(tmp_path / name)
        again = sf.StepTable.load(tmp_path / name)
        assert again == table
        assert SAMPLERS[again.sampler](LINEAR, **again.options) == table


def test_the_helpers():
    assert type(whole_number("n", np.uint64(2**64 - 1))) is int
    assert type(number("x", np.float16(1.5))) is float
    assert truth_value("b", np.False_) is False
    assert plain((np.int8(1), [np.array([2.5])], {"a": range(2)})) == (1, [[2.5]], {"a": [0, 1]})
    for wrong in (1.0, np.float64(1), np.array([1]), "1", None, 1j):
        with pytest.raises(TypeError, match="n must be a whole number, got"):
            whole_number("n", wrong)


OTHERS = {
    "num_inference_steps": "steps",
    "generator": "seed",
    "timestep_spacing": "spacing",
    "use_karras_sigmas": "karras",
    "num_images_per_prompt": "n, num_images of TextToImage",
    "class_labels": "cond, prompt of TextToImage",
}


@pytest.mark.parametrize(("other", "ours"), OTHERS.items())
@pytest.mark.parametrize("call", [draw, submitted, encoded, lambda **given: sf.samplers.ddim(LINEAR, 5, **given)])
def test_names_of_other_libraries_are_refused_with_ours(call, other, ours):
    with pytest.raises(TypeError, match=rf"takes .*, got {other} \(here: {ours}\)"):
        call(**{other: 1})


#: What is given to a call that does not take it, and whose it is.
BELONGS = {
    "priority": "asample, and of the request of submit and stream",
    "deadline": "asample, and of the request of submit and stream",
    "wait": "submit and stream",
    "max_rows": "load",
}


@pytest.mark.parametrize(("name", "whose"), BELONGS.items())
@pytest.mark.parametrize("call", [draw, encoded])
def test_arguments_of_other_calls_are_refused_with_whose_they_are(call, name, whose):
    with pytest.raises(TypeError, match=rf"takes .*, got {name} \(an argument of {whose}\)"):
        call(**{name: 1})


def test_methods_refuse_arguments_of_others_with_whose_they_are():
    with support.make_engine() as engine:
        with pytest.raises(TypeError, match=r"^Engine.submit takes request, wait, got cond \(an argument of Engine"):
            engine.submit(cond="bag")
        with pytest.raises(TypeError, match=r"^Engine.submit takes request, wait, got priority \(an argument of as"):
            engine.submit(sf.Request(), priority=1)
        with pytest.raises(TypeError, match=r"got abort \(an argument of close\)"):
            engine.stream(sf.Request(), abort=True)
    with pytest.raises(TypeError, match=r"^Request takes .*, got callback \(an argument of Engine.sample"):
        sf.Request(callback=print)
    with pytest.raises(TypeError, match=r"^PromptRequest takes .*, got noise \(an argument of Engine.sample"):
        sf.PromptRequest(noise=1)
    with pytest.raises(TypeError, match=r"^Engine.load takes .*, got steps \(an argument of requests, Engine.sample"):
        sf.Engine.load("fashion", steps=3)
