"""From the arguments of a call to a table and a seed a sample, with the model's defaults where nothing is said."""

import numpy as np
import pytest
import support

import stepfuse as sf
from stepfuse.requests.resolution import Compiler, resolve

CLIPPED = {"sampler": "heun", "steps": 7, "guidance_scale": 2.5, "clip": 1.0, "eta": 0.3}
SHORT = {"schedule": sf.NoiseSchedule.linear(num_train_timesteps=20)}
FLOW = {"schedule": sf.NoiseSchedule.flow(), "prediction_type": "flow"}
ARGUMENTS = ("cond", "seed", "table", "sampler", "steps", "guidance_scale", "eta")


def model(**facts):
    return sf.ModelInfo(**{"shape": support.SHAPE, "schedule": support.SCHEDULE, "cond": support.COND, **facts})


def requests(info, n=1, **given):
    arguments = {name: given.pop(name, None) for name in ARGUMENTS}
    return resolve(Compiler(info), n, **arguments, options=given)


@pytest.mark.parametrize(
    ("facts", "given", "sampler", "options"),
    [
        pytest.param({}, {}, "ddim", {"steps": 50}, id="nothing-said"),
        pytest.param({}, {"sampler": "ddpm"}, "ddpm", {"steps": 1000}, id="ddpm-takes-every-step"),
        pytest.param({"defaults": {"steps": 7}}, {"sampler": "ddpm"}, "ddpm", {"steps": 1000}, id="ddpm-on-any-model"),
        pytest.param({"defaults": {"sampler": "ddpm", "steps": 9}}, {}, "ddpm", {"steps": 9}, id="ddpm-respaced"),
        pytest.param(SHORT, {}, "ddim", {"steps": 20}, id="short-schedule"),
        pytest.param(FLOW, {}, "euler", {"steps": 50}, id="flow"),
        pytest.param(
            {"defaults": CLIPPED}, {}, "heun", {"steps": 7, "guidance_scale": 2.5, "clip": 1.0}, id="model-s-defaults"
        ),
        pytest.param(
            {"defaults": CLIPPED},
            {"sampler": "ddim", "guidance_scale": 1.0, "clip": 2.0},
            "ddim",
            {"steps": 7, "guidance_scale": 1.0, "clip": 2.0, "eta": 0.3},
            id="caller-before-model",
        ),
        pytest.param({**FLOW, "defaults": {"steps": 60}}, {"sampler": "lcm"}, "lcm", {"steps": 60}, id="lcm-on-a-flow"),
        pytest.param({}, {"sampler": "tcd"}, "tcd", {"steps": 50, "eta": 0.3}, id="eta-of-the-sampler"),
        pytest.param(
            {"defaults": CLIPPED},
            {"sampler": "tcd", "eta": 0.0, "guidance_scale": 1.0},
            "tcd",
            {"steps": 7, "eta": 0.0},
            id="eta-of-the-caller",
        ),
        pytest.param(
            {"defaults": {"sampler": "ddim", "eta": 0.5}},
            {"sampler": "tcd"},
            "tcd",
            {"steps": 50, "eta": 0.3},
            id="eta-of-another-sampler",
        ),
        pytest.param(
            {"defaults": {"sampler": "tcd", "eta": 0.5}}, {}, "tcd", {"steps": 50, "eta": 0.5}, id="eta-of-the-model"
        ),
        pytest.param({}, {"sampler": "dpmpp_2m_sde"}, "dpmpp_2m_sde", {"steps": 50, "eta": 1.0}, id="eta-of-sde"),
        pytest.param(
            {"defaults": {"sampler": "ddim", "eta": 0.5}},
            {"sampler": "dpmpp_2m_sde"},
            "dpmpp_2m_sde",
            {"steps": 50, "eta": 1.0},
            id="eta-of-another-sampler-than-sde",
        ),
        pytest.param(
            {"defaults": {"sampler": "dpmpp_2m_sde", "eta": 0.5}},
            {},
            "dpmpp_2m_sde",
            {"steps": 50, "eta": 0.5},
            id="eta-of-a-model-of-sde",
        ),
        pytest.param({"defaults": {"karras": True}}, {}, "ddim", {"steps": 50}, id="defaults-of-other-samplers"),
        pytest.param({}, {"timesteps": [900.0, 10.0]}, "ddim", {"timesteps": [900.0, 10.0]}, id="own-timesteps"),
        pytest.param(
            {"prediction_type": "v_prediction"}, {}, "ddim", {"steps": 50, "prediction_type": "v_prediction"}, id="v"
        ),
    ],
)
def test_what_is_not_said_is_the_model_s_default(facts, given, sampler, options):
    info = model(**facts)
    [request] = requests(info, **given)
    assert request.table == sf.samplers.SAMPLERS[sampler](info.schedule, **options)
    assert request.table.sampler == sampler


def test_samples_with_the_same_arguments_share_a_table():
    first, second, third = requests(model(), 3, steps=[4, 5, 4])
    assert first.table is third.table
    assert first.table is not second.table


def test_a_compiler_remembers_tables_and_tells_kinds_of_number_apart():
    compiler = Compiler(model())
    assert compiler.compile("ddim", 5) is compiler.compile("ddim", 5)
    assert compiler.compile("ddim", 5, 1.0) is not compiler.compile("ddim", 5, 2.0)
    assert compiler.compile(steps=3, options={"timesteps": [900.0, 500.0, 1.0]})["t"].tolist() == [900, 500, 1]
    with pytest.raises(TypeError, match="guidance_scale must be a number, got True"):
        compiler.compile("ddim", 5, True)


def test_one_seed_counts_up_and_a_list_is_taken_as_it_is():
    assert [request.seed for request in requests(model(), 3, seed=2**64 - 2)] == [2**64 - 2, 2**64 - 1, 0]
    assert [request.seed for request in requests(model(), 3, seed=np.uint8([7, 7, 0]))] == [7, 7, 0]


def test_what_a_sample_is_told_is_kept_apart_from_nothing():
    conditional, nothing = requests(model(), 2, cond=["coat", None])
    np.testing.assert_array_equal(conditional.cond, [2])
    assert nothing.cond is None


def test_a_naive_sampler_warns_its_caller():
    with pytest.warns(sf.NaiveSamplerWarning, match="ddpm_strided with 10 of 1000 steps is wrong on purpose"):
        requests(model(), sampler="ddpm_strided", steps=10)
