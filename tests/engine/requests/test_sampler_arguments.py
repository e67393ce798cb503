"""What samplers refuse, with the rule and the value; the columns that guidance sets; the naive baseline."""

import re

import numpy as np
import pytest
import support

import stepfuse as sf
from stepfuse.samplers import SAMPLERS
from stepfuse.samplers.names import require_sampler

LINEAR = sf.NoiseSchedule.linear()
ZERO_SNR = LINEAR.rescale_zero_terminal_snr()
FLOW = sf.NoiseSchedule.flow()
NAN, INF = float("nan"), float("inf")

naive_allowed = pytest.mark.filterwarnings("ignore::stepfuse.NaiveSamplerWarning")


EDM = support.EDM_SAMPLERS  # test_edm.py has what is refused there


@naive_allowed
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name not in EDM])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"steps": 0}, r"steps must be between 1 and \d+, got 0$", id="no-steps"),
        pytest.param({"steps": -3}, r"steps must be between 1 and \d+, got -3$", id="negative-steps"),
        pytest.param({"steps": 1001}, r"steps must be between 1 and \d+, got 1001$", id="above-T"),
        pytest.param({}, "steps must be given", id="neither-steps-nor-timesteps"),
        pytest.param({"steps": 5, "guidance_scale": -0.5}, "guidance_scale must be .*, got -0.5$", id="negative-g"),
        pytest.param({"steps": 5, "guidance_scale": NAN}, "guidance_scale must be .*, got nan$", id="nan-g"),
        pytest.param({"steps": 5, "guidance_scale": INF}, "guidance_scale must be .*, got inf$", id="infinite-g"),
        pytest.param({"steps": 5, "guidance_interval": (0.7, 0.2)}, r"got \(0.7, 0.2\)$", id="interval-backwards"),
        pytest.param({"steps": 5, "guidance_interval": (0.5, 0.5)}, r"got \(0.5, 0.5\)$", id="interval-empty"),
        pytest.param({"steps": 5, "guidance_interval": (0.0, 1.1)}, r"got \(0.0, 1.1\)$", id="interval-outside"),
        pytest.param({"timesteps": [1001]}, r"timesteps\[0\] must be between 0 and \d+, got 1001", id="t-above"),
        pytest.param({"timesteps": [9, -1]}, r"timesteps\[1\] must be between 0 and \d+, got -1", id="t-below"),
        pytest.param({"timesteps": [9, NAN]}, r"timesteps\[1\] must be between 0 and \d+, got nan", id="t-nan"),
        pytest.param({"timesteps": [9, 3, 3]}, r"timesteps\[2\] must be below .*, got 3", id="t-repeated"),
        pytest.param({"timesteps": [3, 9]}, r"timesteps\[1\] must be below .*, got 9", id="t-rising"),
        pytest.param({"timesteps": []}, r"timesteps must be .* at least one number, got shape \(0,\)", id="t-none"),
        pytest.param({"steps": 3, "timesteps": [9, 3]}, "number of timesteps, 2, .*, got 3$", id="count-contradicts"),
    ],
)
def test_refuses(sampler, arguments, message):
    with pytest.raises(ValueError, match=message):
        SAMPLERS[sampler](support.schedule_of(sampler), **arguments)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [5.0, True, "5"], ids=["float", "bool", "text"])
def test_refuses_steps_that_do_not_count(sampler, steps):
    with pytest.raises(TypeError, match=f"steps must be a whole number, got {steps!r}"):
        SAMPLERS[sampler](support.schedule_of(sampler), steps)


@pytest.mark.parametrize(
    ("sampler", "arguments", "message"),
    [
        pytest.param("ddim", {"eta": -0.1}, "eta must be between 0 and 1, got -0.1$", id="eta-negative"),
        pytest.param("ddim", {"eta": 1.5}, "eta must be between 0 and 1, got 1.5$", id="eta-above-1"),
        pytest.param("ddim", {"eta": NAN}, "eta must be between 0 and 1, got nan$", id="eta-nan"),
        pytest.param(
            "ddim", {"final_alpha_cumprod": 1.5}, "final_alpha_cumprod .*, got 1.5$", id="final-alpha-above-1"
        ),
        pytest.param(
            "dpmpp_2m", {"final_alpha_cumprod": NAN}, "final_alpha_cumprod .*, got nan$", id="final-alpha-nan"
        ),
        pytest.param("ddim", {"spacing": "cosine"}, "'linspace', got 'cosine'$", id="ddim-spacing"),
        pytest.param("dpmpp_2m", {"spacing": "cosine"}, "'linspace', got 'cosine'$", id="dpmpp-spacing"),
        pytest.param("heun", {"spacing": "cosine"}, "'linspace', got 'cosine'$", id="heun-spacing"),
        pytest.param("ddim", {"steps_offset": 996}, "must be at most 999, got 1796", id="ddim-offset"),
        pytest.param("ddpm", {"prediction_type": "score"}, "'sample', got 'score'$", id="prediction"),
        pytest.param("ddpm", {"variance": "learned"}, "'posterior', got 'learned'$", id="variance"),
        pytest.param("lcm", {"original_steps": 4}, "steps must be between 1 and 4, got 5$", id="above-solver's"),
        pytest.param("lcm", {"original_steps": 0}, "original_steps must be between 1 and 1000, got 0$", id="no-solver"),
        pytest.param("ddim", {"clip": -1.0}, "clip must be above 0, or None, got -1.0$", id="clip-negative"),
        pytest.param("heun", {"clip": NAN}, "clip must be above 0, or None, got nan$", id="clip-nan"),
        pytest.param("dpmpp_2m", {"order": 4}, "order must be between 1 and 3, got 4$", id="dpmpp-order"),
        pytest.param("dpmpp_2m", {"solver_type": "bh1"}, "'midpoint' or 'heun', got 'bh1'$", id="dpmpp-solver"),
        pytest.param("dpmpp_2m_sde", {"eta": 1.5}, "eta must be between 0 and 1, got 1.5$", id="sde-eta"),
        pytest.param("dpmpp_2m_sde", {"order": 3}, "order must be between 1 and 2, got 3$", id="sde-order"),
        pytest.param("dpmpp_3m_sde", {"eta": -0.5}, "eta must be between 0 and 1, got -0.5$", id="3m-eta"),
        pytest.param("dpmpp_3m_sde", {"begin": 5}, "begin must be between 0 and 4, got 5$", id="3m-begin"),
        pytest.param("dpmpp_sde", {"eta": NAN}, "eta must be between 0 and 1, got nan$", id="dpmpp-sde-eta"),
        pytest.param("dpmpp_sde", {"begin": 5}, "begin must be between 0 and 4, got 5$", id="dpmpp-sde-begin"),
        pytest.param(
            "sa_solver", {"predictor_order": 4}, "predictor_order must be between 1 and 3, got 4$", id="sa-order"
        ),
        pytest.param("sa_solver", {"corrector_order": 0}, "corrector_order .* 1 and 4, got 0$", id="sa-corrector"),
        pytest.param("sa_solver", {"tau": 1.5}, "tau must be between 0 and 1, got 1.5$", id="sa-tau"),
        pytest.param("sa_solver", {"tau_interval": (3, 1)}, r"start <= stop, got \(3, 1\)$", id="sa-interval"),
        pytest.param("sa_solver", {"begin": 5}, "begin must be between 0 and 4, got 5$", id="sa-begin"),
        pytest.param("deis", {"order": 0}, "order must be between 1 and 3, got 0$", id="deis-order"),
        pytest.param("tcd", {"eta": 1.5}, "eta must be between 0 and 1, got 1.5$", id="gamma-above-1"),
        pytest.param("tcd", {"original_steps": 4}, "steps must be between 1 and 4, got 5$", id="above-tcd-s-solver"),
        pytest.param("unipc", {"order": 4}, "order must be between 1 and 3, got 4$", id="order"),
        pytest.param("unipc", {"solver_type": "bh3"}, "solver_type must be 'bh1' or 'bh2', got 'bh3'$", id="b-of-h"),
        pytest.param("unipc", {"disable_corrector": [1, -1]}, "must hold steps, at least 0, got -1$", id="corrector"),
        pytest.param("unipc", {"begin": 5}, "begin must be between 0 and 4, got 5$", id="unipc-begin"),
        pytest.param("lms", {"order": 5}, "order must be between 1 and 4, got 5$", id="lms-order"),
        pytest.param("dpmpp_2s", {"order": 4}, "order must be between 1 and 3, got 4$", id="dpmpp_2s-order"),
        pytest.param("dpmpp_2s", {"solver_type": "bh1"}, "solver_type must be .*, got 'bh1'$", id="dpmpp_2s-solver"),
        pytest.param("ipndm", {"order": 5}, "order must be between 1 and 4, got 5$", id="ipndm-order"),
        pytest.param("lms", {"begin": 5}, "begin must be between 0 and 4, got 5$", id="lms-begin"),
        pytest.param("plms", {"begin": -1}, "begin must be between 0 and 4, got -1$", id="plms-begin"),
        pytest.param("plms", {"final_alpha_cumprod": 2.0}, "final_alpha_cumprod must be .*, got 2.0$", id="plms-end"),
    ],
)
def test_refuses_options(sampler, arguments, message):
    with pytest.raises(ValueError, match=message):
        SAMPLERS[sampler](LINEAR, 5, **arguments)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "lcm", "dpmpp_2m", "heun", "tcd"])
def test_zero_terminal_snr_refuses_epsilon(sampler):
    with pytest.raises(ValueError, match=r"row 0 \(t = 999\): p_x .* got inf|alphas_cumprod\[999\] .* got 0.0"):
        SAMPLERS[sampler](ZERO_SNR, timesteps=[999, 400, 0])


@naive_allowed
@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - {"euler", "heun", "lcm", "unipc", "dpmpp_2m"} - EDM))
def test_samplers_of_preserving_schedules_refuse_flow(sampler):
    with pytest.raises(ValueError, match="flow schedule has no alphas_cumprod"):
        SAMPLERS[sampler](FLOW, 5)


@pytest.mark.parametrize(
    "option",
    [{"steps_offset": 1}, {"prediction_type": "v_prediction"}],
    ids=str,
)
def test_euler_on_a_flow_refuses_what_is_of_other_schedules(option):
    [[name, value]] = option.items()
    with pytest.raises(ValueError, match=f"^{name} must be left out with a flow schedule, got {value!r}$"):
        sf.samplers.euler(FLOW, 5, **option)


@pytest.mark.parametrize(
    ("sampler", "name", "value"),
    [
        ("heun", "steps_offset", 1),
        ("heun", "clip", 1.0),
        ("lcm", "original_steps", 20),
        ("lcm", "clip", 1.0),
        ("lcm", "prediction_type", "sample"),
    ],
)
def test_heun_and_lcm_on_a_flow_do_too(sampler, name, value):
    with pytest.raises(ValueError, match=f"^{name} must be left out with a flow schedule, got {value!r}$"):
        SAMPLERS[sampler](FLOW, 5, **{name: value})


@pytest.mark.parametrize(
    ("sampler", "name", "value"),
    [
        ("heun", "shift", 3.0),
        ("heun", "shift_terminal", 0.1),
        ("lcm", "shift", 3.0),
        ("lcm", "karras", True),
        ("lcm", "spacing", "trailing"),
        ("lcm", "levels", "beta"),
    ],
)
def test_heun_and_lcm_refuse_what_is_for_flows_alone(sampler, name, value):
    with pytest.raises(ValueError, match=f"^{name} must be left out without a flow schedule, got {value!r}$"):
        SAMPLERS[sampler](LINEAR, 5, **{name: value})


@pytest.mark.parametrize("sampler", ["euler", "heun", "lcm", "unipc", "dpmpp_2m"])
def test_a_flow_has_no_leading_spacing(sampler):
    with pytest.raises(ValueError, match=r"^spacing must be 'linspace' or 'trailing' with a flow .*, got 'leading'$"):
        SAMPLERS[sampler](FLOW, 5, spacing="leading")


@pytest.mark.parametrize(
    "option", [{"clip": 1.0}, {"predict_x0": False}, {"final_alpha_cumprod": 0.9}, {"karras": True}, {"levels": "beta"}]
)
def test_unipc_on_a_flow_does_too(option):
    [[name, value]] = option.items()
    with pytest.raises(ValueError, match=f"^{name} must be left out with a flow schedule, got {value!r}$"):
        sf.samplers.unipc(FLOW, 5, **option)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "plms", "unipc"])
def test_explicit_timesteps_that_a_spacing_gives_are_that_table(sampler):
    spaced = SAMPLERS[sampler](LINEAR, 50, spacing="trailing")
    assert SAMPLERS[sampler](LINEAR, timesteps=range(999, 0, -20)) == spaced


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - {"ddpm_strided"} - EDM))
def test_guidance_is_on_within_its_interval_alone(sampler):
    schedule = support.schedule_of(sampler)
    table = SAMPLERS[sampler](schedule, 10, guidance_scale=4.0, guidance_interval=(0.3, 0.8))
    time = table["t"] / schedule.max_timestep
    inside = (time >= 0.3) & (time <= 0.8)
    assert 0 < inside.sum() < len(table)
    np.testing.assert_array_equal(table["g"], np.where(inside, 4.0, 1.0))


@pytest.mark.parametrize("variance", ["beta", "posterior"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_naive_striding_takes_full_ddpms_rows_and_warns(variance, prediction_type):
    options = {"variance": variance, "prediction_type": prediction_type, "clip": 1.0}
    full = sf.samplers.ddpm(LINEAR, 1000, **options)
    with pytest.warns(sf.NaiveSamplerWarning, match="50 of 1000 steps is wrong on purpose"):
        strided = sf.samplers.ddpm_strided(LINEAR, 50, **options)
    np.testing.assert_array_equal(strided.rows, full.rows[19::20])


def test_naive_striding_over_all_timesteps_is_ddpm_and_silent():
    assert sf.samplers.ddpm_strided(LINEAR, 1000) == sf.samplers.ddpm(LINEAR, 1000)


def test_every_sampler_is_a_function_of_its_name():
    assert all(getattr(sf.samplers, name) is function for name, function in SAMPLERS.items())


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_all_of_ddpm_s_noise_is_added_also_from_pure_noise(spacing, prediction_type):
    zero_snr = sf.NoiseSchedule.linear().rescale_zero_terminal_snr()
    for steps in range(2, 200):
        table = sf.samplers.ddim(zero_snr, steps, spacing=spacing, prediction_type=prediction_type, eta=1.0)
        assert abs(table["q_x"][0]) < 1e-6  # nothing of the old noise is left, all of it is drawn anew


# Samplers that leave out the last of S + 1 timesteps.
OVER_LOG_SNR = ("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_2s", "sa_solver", "deis", "ipndm", "unipc")


@naive_allowed
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - {"lcm", "tcd"} - EDM))
def test_any_number_of_steps_makes_a_table(sampler, spacing):
    """Also where the last ᾱ is 0 and the one before nearly: both are among the timesteps from 500 steps on."""
    for schedule, kind in ((LINEAR, "epsilon"), (ZERO_SNR, "v_prediction")):
        for steps in (1, 2, 3, 7, 299, 500, 501, 998, 999, 1000):
            if sampler in OVER_LOG_SNR and steps == 1000 and spacing != "trailing":
                with pytest.raises(ValueError, match="steps must be between 1 and 999, got 1000"):
                    SAMPLERS[sampler](schedule, steps, spacing=spacing)
                continue
            table = SAMPLERS[sampler](schedule, steps, spacing=spacing, prediction_type=kind)
            levels, t = table.levels, table["t"]
            if sampler in ("heun", "dpmpp_sde", "kdpm2", "kdpm2_ancestral"):  # two rows a step
                levels, t = levels[::2], t[::2]
            elif sampler == "plms" and steps > 1:  # its second timestep is visited twice
                levels, t = np.delete(levels, 1, axis=0), np.delete(t, 1)
            signal, noise = levels.T
            assert (np.diff(noise[:-1] / np.maximum(signal[:-1], 1e-30)) < 0).all()
            assert (np.diff(t) < 0).all()


@pytest.mark.parametrize("sampler", ["dpmpp_2m_sde", "dpmpp_3m_sde", "sa_solver"])
def test_a_last_step_of_no_length_adds_no_noise(sampler):
    """Karras' last level is the schedule's first, rounded."""
    for steps in (1, 2, 3, 7, 20, 50):
        table = SAMPLERS[sampler](LINEAR, steps, karras=True, final_alpha_cumprod=LINEAR.alphas_cumprod[0])
        assert steps == 1 or abs(table["q_z"][-1]) < 1e-6


def test_a_last_state_without_signal_is_refused():
    with pytest.raises(ValueError, match=r"final_alpha_cumprod must be between .*, got 0.0"):
        sf.samplers.dpmpp_2m(sf.NoiseSchedule.linear(), 5, final_alpha_cumprod=0.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [(3, "a list of whole numbers, got 3"), (None, "a list .*, got None"), ("0", "a list"), ([1.5], "a whole number")],
)
def test_steps_without_a_corrector_are_a_list(given, message):
    with pytest.raises(TypeError, match=f"disable_corrector must be {message}"):
        sf.samplers.unipc(LINEAR, 5, disable_corrector=given)
    steps = sf.samplers.unipc(LINEAR, 5, disable_corrector=np.array([1, 99]))
    assert steps == sf.samplers.unipc(LINEAR, 5, disable_corrector=(1,))


def test_where_a_run_begins_is_no_option_of_an_engine():
    with sf.Engine.from_callable(lambda x, t, cond: x, shape=(2,), schedule=LINEAR) as engine:
        for sampler in (
            *(
                "deis",
                "dpmpp_2m",
                "dpmpp_3m_sde",
                "dpmpp_sde",
                "plms",
                "sa_solver",
                "unipc",
                "lms",
                "dpmpp_2s",
                "ipndm",
            ),
        ):
            with pytest.raises(TypeError, match=f"sampler '{sampler}' takes steps, .*, got begin"):
                engine.sample(sampler=sampler, steps=5, begin=2)


def test_lcm_takes_whole_original_steps():
    with pytest.raises(TypeError, match=r"original_steps must be a whole number, got 50.5"):
        sf.samplers.lcm(sf.NoiseSchedule.linear(), 4, original_steps=50.5)


@pytest.mark.parametrize(
    ("elsewhere", "here"),
    {
        "DDIMScheduler": "ddim",
        "DPMSolverMultistepScheduler": "dpmpp_2m",
        "DPM++ 2M Karras": "dpmpp_2m with karras=True",
        "dpm++_2m": "dpmpp_2m",
        "DPM++ 2M SDE": "dpmpp_2m_sde",
        "DPM++ 2M SDE Karras": "dpmpp_2m_sde with karras=True",
        "dpmpp_2m_sde_gpu": "dpmpp_2m_sde",
        "DPM++ 3M SDE": "dpmpp_3m_sde",
        "SASolverScheduler": "sa_solver",
        "DPM++ SDE Karras": "dpmpp_sde with karras=True",
        "DPMSolverSDEScheduler": "dpmpp_sde",
        "Euler a": "euler_ancestral",
        "k_euler": "euler",
        "euler_cfg_pp": "euler with cfg_pp=True",
        "DDIM CFG++": "ddim with cfg_pp=True",
        "EulerDiscreteScheduler": "euler",
        "FlowMatchEulerDiscreteScheduler": "euler",
        "FlowMatchHeunDiscreteScheduler": "heun",
        "FlowMatchLCMScheduler": "lcm",
        "Heun": "heun",
        "LCMScheduler": "lcm",
        "DEISMultistepScheduler": "deis",
        "PNDMScheduler": "plms",
        "PLMS": "plms",
        "LMS": "lms",
        "DPMSolverSinglestepScheduler": "dpmpp_2s",
        "DPM++ 3S": "dpmpp_2s with order=3",
        "KDPM2DiscreteScheduler": "kdpm2",
        "DPM2 a Karras": "kdpm2_ancestral with karras=True",
        "LMSDiscreteScheduler": "lms",
        "UniPCMultistepScheduler": "unipc",
        "uni_pc_bh2": "unipc",
        "TCDScheduler": "tcd",
        "EDMEulerScheduler": "edm_euler",
        "EDMDPMSolverMultistepScheduler": "edm_dpmpp_2m",
        "CMStochasticIterativeScheduler": "cm",
    }.items(),
)
def test_names_of_other_libraries_are_refused_with_ours(elsewhere, here):
    with pytest.raises(
        ValueError, match=rf"sampler must be one of ddim, .*, got '{re.escape(elsewhere)}' \(here: {here}\)"
    ):
        require_sampler(elsewhere, SAMPLERS)


@pytest.mark.parametrize("name", ["DDIMParallelScheduler", "", "d", None, 3])
def test_names_that_mean_nothing_are_refused_plainly(name):
    with pytest.raises(ValueError, match=rf"got {name!r}$"):
        require_sampler(name, SAMPLERS)


@pytest.mark.parametrize(("name", "meant"), [("ddi", "ddim"), ("Euller", "euler"), ("dpmp_2m", "dpmpp_2m")])
def test_misspelt_names_are_recognized(name, meant):
    with pytest.raises(ValueError, match=rf"got '{name}' \(did you mean {meant}\?\)$"):
        require_sampler(name, SAMPLERS)
