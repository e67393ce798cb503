"""Every entry of every scheduler's configuration: read as diffusers reads it, or refused with its name and value."""

import inspect
import math
import re

import numpy as np
import peers
import pytest
import tolerances

from stepfuse.integrations.scheduler_config import COVERED, read_scheduler
from stepfuse.integrations.scheduler_entries import DEFAULTS, KNOWN

diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array_:DeprecationWarning:diffusers", "ignore:.*is deprecated:FutureWarning"
)

STEPS, MU = 3, 0.8
FLAGS = (True, False, 0)
#: Values to try, falsy ones among them.
VALUES = {
    "num_train_timesteps": (100,),
    "beta_start": (0.001,),
    "beta_end": (0.05,),
    "beta_schedule": ("scaled_linear", "squaredcos_cap_v2", "sigmoid", "exp", ""),
    "trained_betas": (np.linspace(1e-4, 0.03, 1000).tolist(),),
    "prediction_type": ("v_prediction", "sample", "flow_prediction", ""),
    "clip_sample": (*FLAGS, None),
    "clip_sample_range": (0.7, 2, 0.0),
    "thresholding": (*FLAGS, None),
    "dynamic_thresholding_ratio": (0.8, 0.0),
    "sample_max_value": (2.0, 0.5, 0.0),
    "timestep_spacing": ("leading", "trailing", "linspace", ""),
    "steps_offset": (1, 3, 0, False),
    "rescale_betas_zero_snr": FLAGS,
    "set_alpha_to_one": (*FLAGS, None),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"),
    "solver_order": (1, 3, 0),
    "algorithm_type": ("dpmsolver", "sde-dpmsolver++", "deis", "noise_prediction", ""),
    "solver_type": ("heun", "bh1", "bh2", "logrho", ""),
    "lower_order_final": (*FLAGS, None),
    "euler_at_final": FLAGS,
    "use_karras_sigmas": FLAGS,
    "use_exponential_sigmas": FLAGS,
    "use_beta_sigmas": FLAGS,
    "use_lu_lambdas": FLAGS,
    "use_flow_sigmas": FLAGS,
    "flow_shift": (3.0, 0.0),
    "final_sigmas_type": ("sigma_min", ""),
    "lambda_min_clipped": (-5.1, -2.0, 0.0),
    "use_dynamic_shifting": FLAGS,
    "time_shift_type": ("linear",),
    "original_inference_steps": (100, 0),
    "timestep_scaling": (5.0, 10, 0.0),
    "interpolation_type": ("log_linear", ""),
    "sigma_min": (0.1, 0.0, None),
    "sigma_max": (10.0, 0.0, None),
    "timestep_type": ("continuous", ""),
    "shift": (3.0, 0.0),
    "base_shift": (0.1, 0.0, None),
    "max_shift": (2.0, None),
    "base_image_seq_len": (1, 0),
    "max_image_seq_len": (1, 0),
    "invert_sigmas": FLAGS,
    "shift_terminal": (0.1, 0.0, None),
    "stochastic_sampling": FLAGS,
    "skip_prk_steps": FLAGS,
    "predictor_order": (1, 3, 4, 0),
    "corrector_order": (1, 3, 4, 0),
    "tau_func": (None, "t"),
    "noise_sampler_seed": (0, 7, None),
    "predict_x0": (*FLAGS, None),
    "disable_corrector": ([0], [0, 7], [], [-1], [0.5], None, 0),
    "scale_factors": ([1.0, 2.0], [], None),
    "upscale_mode": ("nearest", None),
    "sigma_data": (1.0, 0.0),
    "sigma_schedule": ("exponential", ""),
    "rho": (3.0, 0.0),
    "s_noise": (0.5, 0, -1.0),
    "clip_denoised": FLAGS,
    "solver_p": ("DDIMScheduler", False),
}
#: What an entry stands beside, so that those that depend on another are tried where they count.
BESIDE = {
    "clip_sample_range": {"clip_sample": True},
    "dynamic_thresholding_ratio": {"thresholding": True, "sample_max_value": 2.0},
    "sample_max_value": {"thresholding": True},
    "steps_offset": {"timestep_spacing": "leading"},
    "sigma_min": {"use_karras_sigmas": True},
    "sigma_max": {"use_karras_sigmas": True},
    "use_lu_lambdas": {"use_karras_sigmas": True},
    "time_shift_type": {"use_dynamic_shifting": True},
    "base_shift": {"use_dynamic_shifting": True},
    "max_shift": {"use_dynamic_shifting": True},
    "base_image_seq_len": {"use_dynamic_shifting": True},
    "max_image_seq_len": {"use_dynamic_shifting": True},
    "timestep_type": {"prediction_type": "v_prediction"},
    "rescale_betas_zero_snr": {"prediction_type": "v_prediction"},
}
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
CASES = [
    pytest.param(
        name, {**beside, entry: value}, entry, id=f"{name}-{entry}-{str(value)[:12]}{'-beside' if beside else ''}"
    )
    for name in COVERED
    for entry in sorted(DEFAULTS[name].keys() | {"sigma_min", "sigma_max"})
    for value in VALUES[entry]
    for beside in ({}, *([BESIDE[entry]] if BESIDE.get(entry, {}).keys() & DEFAULTS[name].keys() else []))
    if not (name == "DEISMultistepScheduler" and "thresholding" in beside)  # which is refused
    and not ("use_dynamic_shifting" in beside and not name.startswith("Flow"))  # refused, or without effect
]
CASES += [
    pytest.param(name, {**FLOW, entry: value}, entry, id=f"{name}-flow-{entry}-{str(value)[:12]}")
    for name in ("UniPCMultistepScheduler", "DPMSolverMultistepScheduler")
    for entry in sorted(DEFAULTS[name].keys() - FLOW.keys() - {"beta_schedule", "timestep_spacing"})
    for value in VALUES[entry]
]


@pytest.mark.parametrize(("name", "config", "entry"), CASES)
def test_an_entry_is_read_or_refused_by_name_and_value(name, config, entry, monkeypatch):
    if name == "PNDMScheduler":
        config = {"skip_prk_steps": True, **config}
    config = config if name.startswith("Flow") else {**SCALED, **config}
    try:
        settings, refusal = read_scheduler({**config, "_class_name": name}), ""
    except (ValueError, TypeError) as error:
        settings, refusal = None, str(error)
    if settings is None:
        assert re.search(rf"^{name}: {entry} must be .*got {re.escape(repr(config[entry]))}", refusal)
        return
    moving = name.startswith("Flow") and config.get("use_dynamic_shifting")
    scheduler = peers.configured(name, config, STEPS, **({"mu": MU} if moving else {}))
    want = peers.run(scheduler, monkeypatch, 3.0)
    shift = {}
    if settings.dynamic_shift:  # of a picture, whose size has this mu
        shift = {"shift": math.exp(MU) if settings.dynamic_shift.exponential else MU}
    with peers.engine(settings.schedule, settings.prediction_type) as engine:
        got = engine.sample(
            peers.BATCH,
            cond=1.0,
            steps=STEPS,
            noise=peers.NOISE,
            seed=peers.SEED,
            guidance_scale=3.0,
            **settings.defaults,
            **shift,
        )
    if name.startswith("UniPC") and not np.isfinite(want).all():  # diffusers' step of higher order to a clean sample
        assert np.isfinite(got).all()
        return
    assert np.abs(got - want).max() < tolerances.MULTISTEP * max(np.abs(want).max(), 1.0)


def test_no_entry_of_a_compatible_scheduler_is_unknown():
    for name in COVERED:
        for other in peers.scheduler_class(name)._get_compatibles():
            if issubclass(other, diffusers.SchedulerMixin):
                entries = set(inspect.signature(other.__init__).parameters) - {"self", "args", "kwargs"}
                assert entries <= KNOWN, other.__name__


@pytest.mark.parametrize("value", [None, False, 0, "", [], True, 0.5], ids=repr)
def test_an_entry_of_no_scheduler_is_refused_whatever_its_value(value):
    with pytest.raises(ValueError, match=rf"entries must be known, got churn = {re.escape(repr(value))}"):
        read_scheduler({"_class_name": "DDIMScheduler", "churn": value})


def test_entries_of_other_schedulers_change_nothing():
    others = {"predict_x0": False, "disable_corrector": [0], "sigma_data": 1.0, "rho": 5.0, "skip_prk_steps": False}
    plain = read_scheduler({"_class_name": "DDIMScheduler", "skip_prk_steps": True})
    left = read_scheduler({"_class_name": "DDIMScheduler", "_diffusers_version": "0.42.1", **others})
    assert plain.defaults == left.defaults
    changed = {name for name in plain.sampler_options if plain.sampler_options[name] != left.sampler_options.get(name)}
    assert changed == {"plms", "unipc"}  # whose entries they are


def test_a_noise_extrapolated_is_not_thresholded():
    """diffusers leaves ``thresholding`` out there without a word."""
    with pytest.raises(ValueError, match=r"thresholding must be False or None with predict_x0 False, .* got True"):
        read_scheduler({"_class_name": "UniPCMultistepScheduler", "predict_x0": False, "thresholding": True})


def test_entries_of_former_versions():
    former = {"tensor_format": "pt", "timestep_values": None, "predict_epsilon": True}
    read = read_scheduler({"_class_name": "DDPMScheduler", **former})
    assert read.defaults == read_scheduler({"_class_name": "DDPMScheduler"}).defaults
    with pytest.raises(ValueError, match="predict_epsilon, of former versions, must be True or left out, got False"):
        read_scheduler({"_class_name": "DDPMScheduler", "predict_epsilon": False})


def test_a_configuration_of_a_scheduler_that_diffusers_has_made_tells_what_is_by_default():
    """``from_config`` gives another class its own defaults for these, and so do the options of other samplers."""
    config = {**diffusers.DDIMScheduler(**SCALED).config, "_class_name": "DDIMScheduler"}
    assert read_scheduler(config).sampler_options["dpmpp_2m"]["spacing"] == "linspace"
    other = diffusers.DPMSolverMultistepScheduler.from_config(diffusers.DDIMScheduler(**SCALED).config)
    assert other.config.timestep_spacing == "linspace"


@pytest.mark.parametrize(
    ("name", "entry", "value", "rule"),
    [
        ("FlowMatchEulerDiscreteScheduler", "shift", None, "above 0"),
        ("DDIMScheduler", "beta_start", "0.1", "a number"),
        ("DDIMScheduler", "clip_sample_range", None, "above 0 with clip_sample"),
        ("LCMScheduler", "original_inference_steps", None, "a whole number from 1 to num_train_timesteps, 1000"),
        ("DPMSolverMultistepScheduler", "lambda_min_clipped", None, "a number"),
        ("DDPMScheduler", "steps_offset", "1", "a whole number of at least 0"),
    ],
)
def test_what_must_be_a_number_is_named_where_it_is_none(name, entry, value, rule):
    with pytest.raises(TypeError, match=f"^{name}: {entry} must be {rule}, got {value!r}$"):
        read_scheduler({"_class_name": name, entry: value})


def test_noise_estimates_without_signal_are_refused_where_every_run_begins_there():
    for name in (
        "DPMSolverMultistepScheduler",
        "LCMScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "UniPCMultistepScheduler",
    ):
        with pytest.raises(
            ValueError, match=r"rescale_betas_zero_snr must be False with prediction_type 'epsilon', got"
        ):
            read_scheduler({"_class_name": name, "rescale_betas_zero_snr": True})
