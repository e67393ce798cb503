"""A scheduler's configuration as a table, against diffusers' scheduler of that configuration over whole runs."""

import inspect
import json
import re

import numpy as np
import peers
import pytest
import tolerances

from stepfuse.integrations.scheduler_config import COVERED, DEFAULTS, UncoveredSchedulerError, read_scheduler
from stepfuse.integrations.uncovered import REASONS

diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning:diffusers")

SCALED = peers.SCALED
V = {"prediction_type": "v_prediction"}
ZERO_SNR = {**SCALED, **V, "rescale_betas_zero_snr": True}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
UNCLIPPED = {"clip_sample": False}
THRESHOLD = {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 2.0}
STABLE_DIFFUSION = {**SCALED, "steps_offset": 1, "timestep_spacing": "leading", "skip_prk_steps": True}
CONFIGS = {
    "DDIMScheduler": [
        {},
        {**STABLE_DIFFUSION, "clip_sample": False, "set_alpha_to_one": False},
        {**ZERO_SNR, "timestep_spacing": "trailing", "clip_sample": False},
        {**COSINE, "clip_sample_range": 0.7, "prediction_type": "sample"},
        {**THRESHOLD, "timestep_spacing": "linspace"},
        {"trained_betas": np.linspace(1e-3, 0.05, 100).tolist(), "num_train_timesteps": 100, **UNCLIPPED},
    ],
    "DDPMScheduler": [
        {},
        {"variance_type": "fixed_large", **UNCLIPPED},
        {"variance_type": "fixed_small_log", **COSINE, **V},
        {**THRESHOLD, **SCALED, "timestep_spacing": "trailing"},
    ],
    "DPMSolverMultistepScheduler": [
        {},
        STABLE_DIFFUSION,
        {**SCALED, "use_karras_sigmas": True, "euler_at_final": True},
        {**ZERO_SNR, "timestep_spacing": "trailing"},
        {**SCALED, **V, "final_sigmas_type": "sigma_min", "lower_order_final": False},
        {**SCALED, **THRESHOLD, "lambda_min_clipped": -5.1},
        {**SCALED, "solver_type": "heun", "use_karras_sigmas": True},
        {**SCALED, "solver_order": 1},
        {**SCALED, "solver_order": 3, "final_sigmas_type": "sigma_min", "euler_at_final": True},
        {**SCALED, "algorithm_type": "dpmsolver", "solver_order": 3, "final_sigmas_type": "sigma_min"},
        {**SCALED, "use_lu_lambdas": True, "use_exponential_sigmas": True},
        {**COSINE, **V, "use_beta_sigmas": True, "final_sigmas_type": "sigma_min"},
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "solver_order": 3, "solver_type": "heun"},
    ],
    "LCMScheduler": [
        {},
        {"original_inference_steps": 100, "clip_sample": True, "clip_sample_range": 0.8, "set_alpha_to_one": False},
        {**THRESHOLD, **V, "beta_schedule": "linear"},
    ],
    "HeunDiscreteScheduler": [
        {},
        {**STABLE_DIFFUSION, "thresholding": True, "rescale_betas_zero_snr": True},  # it has neither
        {**SCALED, **V, "use_karras_sigmas": True, "clip_sample": True, "timestep_spacing": "trailing"},
        {**SCALED, "use_exponential_sigmas": True, "timestep_spacing": "leading"},
    ],
    "EulerDiscreteScheduler": [
        {},
        {**STABLE_DIFFUSION, "interpolation_type": "linear", "set_alpha_to_one": False},
        {**SCALED, **V, "use_karras_sigmas": True},
        {**ZERO_SNR, "timestep_spacing": "trailing", "sigma_min": 0.1},
        {**SCALED, "timestep_spacing": "leading", "use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0},
        {**ZERO_SNR, "use_beta_sigmas": True},
    ],
    "EulerAncestralDiscreteScheduler": [{}, STABLE_DIFFUSION, {**ZERO_SNR, "timestep_spacing": "trailing"}],
    "DEISMultistepScheduler": [
        {},
        STABLE_DIFFUSION,
        {**SCALED, **V, "solver_order": 3, "lower_order_final": False},
        {**COSINE, "timestep_spacing": "trailing", "solver_order": 1, "solver_type": "bh2"},
        {**SCALED, "use_exponential_sigmas": True, "sigma_min": 0.05},
    ],
    "PNDMScheduler": [
        {**STABLE_DIFFUSION, "set_alpha_to_one": False},
        {**SCALED, **V, "skip_prk_steps": True, "timestep_spacing": "trailing", "set_alpha_to_one": True},
        {**COSINE, "skip_prk_steps": True, "timestep_spacing": "linspace"},
    ],
    "UniPCMultistepScheduler": [
        {},
        STABLE_DIFFUSION,
        {**SCALED, "use_karras_sigmas": True, "solver_order": 3, "solver_type": "midpoint"},
        {**ZERO_SNR, "timestep_spacing": "trailing", "disable_corrector": [0, 1]},
        {**SCALED, **THRESHOLD, "final_sigmas_type": "sigma_min", "lower_order_final": False, "solver_type": "bh1"},
        {**SCALED, "final_sigmas_type": "sigma_min", "predict_x0": False, "solver_order": 1},
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0},
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0, "shift_terminal": 0.05},
        {**SCALED, "use_beta_sigmas": True, "sigma_min": 0.1, "final_sigmas_type": "sigma_min"},
    ],
    "LMSDiscreteScheduler": [
        {},
        {**STABLE_DIFFUSION, "thresholding": True, "rescale_betas_zero_snr": True},  # it has neither
        {**SCALED, **V, "use_karras_sigmas": True, "timestep_spacing": "trailing"},
        {**COSINE, "prediction_type": "sample"},
        {**SCALED, "use_exponential_sigmas": True},
        {**SCALED, "use_karras_sigmas": True, "sigma_min": 0.1},  # it looks for no ends there
        {**SCALED, "use_beta_sigmas": True, "sigma_min": 0.1},
    ],
    "DPMSolverSinglestepScheduler": [
        {},
        {**STABLE_DIFFUSION, "solver_order": 3, "rescale_betas_zero_snr": True},  # it has neither spacing nor zero SNR
        {**COSINE, **V},
        {**SCALED, "use_karras_sigmas": True, "solver_type": "bh2"},
        {**SCALED, "use_beta_sigmas": True},
        {**SCALED, **THRESHOLD, "final_sigmas_type": "sigma_min", "solver_type": "heun", "lambda_min_clipped": -5.1},
        {**SCALED, "final_sigmas_type": "sigma_min", "algorithm_type": "dpmsolver", "solver_order": 3},
        {**SCALED, "use_exponential_sigmas": True, "final_sigmas_type": "sigma_min", "sigma_min": 0.1},
    ],
    "KDPM2DiscreteScheduler": [
        {"clip_sample": True},  # it has no such entry
        {**STABLE_DIFFUSION, **V},
        {"use_karras_sigmas": True, "timestep_spacing": "trailing"},
        {"use_beta_sigmas": True},
        {**SCALED, "use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 9.0},
    ],
    "KDPM2AncestralDiscreteScheduler": [
        {"clip_sample": True},
        {**STABLE_DIFFUSION, **V},
        {"use_karras_sigmas": True, "timestep_spacing": "trailing"},
        {**SCALED, "use_exponential_sigmas": True},
    ],
    "TCDScheduler": [
        {},
        # Its step leaves out the last four.
        {"original_inference_steps": 100, **V, **THRESHOLD, "clip_sample": True, "set_alpha_to_one": False},
    ],
    "FlowMatchEulerDiscreteScheduler": [
        {},
        {"shift": 3.0},
        {"shift": 3.0, "num_train_timesteps": 500},
        {"shift": 3.0, "stochastic_sampling": True},
        {"shift": 3.0, "stochastic_sampling": True, "use_karras_sigmas": True},
        {"shift": 3.0, "use_beta_sigmas": True},
    ],
    "EDMEulerScheduler": [
        {},
        {"sigma_data": 1.0, "sigma_max": 40.0, "rho": 3.0, **V},
    ],
    "EDMDPMSolverMultistepScheduler": [
        {},
        {**THRESHOLD, **V, "solver_order": 3, "sigma_max": 40.0, "rho": 5.0, "euler_at_final": True},
        {"solver_type": "heun", "algorithm_type": "deis", "final_sigmas_type": "sigma_min", "lower_order_final": False},
    ],
    "CMStochasticIterativeScheduler": [{}, {"clip_denoised": False, "s_noise": 0.9, "rho": 5.0, "sigma_max": 20.0}],
    "FlowMatchHeunDiscreteScheduler": [{"shift": 3.0, "num_train_timesteps": 500}],
    "FlowMatchLCMScheduler": [{"shift": 3.0, "scale_factors": []}, {"shift": 3.0, "use_exponential_sigmas": True}],
}
# With these a single step of diffusers leads from the noisiest level to itself, or is NaN.
NO_SINGLE_STEP = ("shift_terminal", "sigma_min")
CASES = [
    pytest.param(name, config, steps, id=f"{name}-{index}-{steps}")
    for name, configs in CONFIGS.items()
    for index, config in enumerate(configs)
    for steps in (1, 6, 25)
    if not (steps == 1 and "Multistep" in name and any(key in config for key in NO_SINGLE_STEP))
]

HISTORY = ("HeunDiscreteScheduler", "PNDMScheduler", "LMSDiscreteScheduler")  # beside the multistep solvers


def ours(settings, steps, **options):
    with peers.engine(settings.schedule, settings.prediction_type) as engine:
        arguments = {**settings.defaults, **options}
        return engine.sample(peers.BATCH, cond=1.0, steps=steps, noise=peers.NOISE, seed=peers.SEED, **arguments)


def test_defaults_are_those_of_diffusers():
    assert tuple(DEFAULTS) == COVERED
    for name, defaults in DEFAULTS.items():
        parameters = inspect.signature(peers.scheduler_class(name).__init__).parameters
        assert defaults == {key: one.default for key, one in parameters.items() if key != "self"}, name


@pytest.mark.parametrize(("name", "config", "steps"), CASES)
def test_a_run_is_that_of_diffusers(name, config, steps, monkeypatch):
    settings = read_scheduler({**config, "_class_name": name, "_diffusers_version": "0.42.1"})
    want = peers.run(peers.configured(name, config, steps), monkeypatch, 3.0)
    got = ours(settings, steps, guidance_scale=3.0)
    history = name.startswith("DPMSolver") or name.endswith("MultistepScheduler") or "Heun" in name or name in HISTORY
    limit = tolerances.MULTISTEP if history else tolerances.ONE_STEP
    scale = max(np.abs(want).max(), 1.0)  # a result of a few hundredths is the difference of states a hundred times 1
    assert np.abs(got - want).max() < limit * scale


@pytest.mark.parametrize("name", COVERED)
def test_a_saved_file_is_read_alike(name, tmp_path):
    """Infinities and tuples go through JSON; the defaults can be written to a manifest."""
    entries = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    peers.scheduler_class(name)(**entries).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    read, filled = read_scheduler(saved), read_scheduler({"_class_name": name, **entries})
    assert read.defaults == filled.defaults
    assert read.schedule.config == filled.schedule.config
    json.dumps(read.defaults, allow_nan=False)


def test_epsilon_at_zero_signal_is_refused_by_the_sampler():
    settings = read_scheduler({"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, **UNCLIPPED})
    with pytest.raises(ValueError, match="use v_prediction"):
        ours(settings, 1, spacing="trailing")


@pytest.mark.parametrize(
    ("name", "entry", "value"),
    [
        ("DDIMScheduler", "beta_schedule", "sigmoid"),
        ("DDIMScheduler", "prediction_type", "flow_prediction"),
        ("DDIMScheduler", "timestep_spacing", "even"),
        ("DDPMScheduler", "variance_type", "learned_range"),
        ("DPMSolverMultistepScheduler", "algorithm_type", "sde-dpmsolver"),
        ("DPMSolverMultistepScheduler", "solver_order", 4),
        ("DPMSolverMultistepScheduler", "use_flow_sigmas", True),
        ("DPMSolverMultistepScheduler", "lambda_min_clipped", -2.0),
        ("LCMScheduler", "timestep_scaling", 5.0),
        ("EulerDiscreteScheduler", "interpolation_type", "log_linear"),
        ("EulerDiscreteScheduler", "final_sigmas_type", "sigma_min"),
        ("EulerAncestralDiscreteScheduler", "prediction_type", "sample"),
        ("DEISMultistepScheduler", "thresholding", True),
        ("PNDMScheduler", "prediction_type", "sample"),
        ("KDPM2DiscreteScheduler", "prediction_type", "sample"),
        ("DPMSolverSinglestepScheduler", "algorithm_type", "sde-dpmsolver++"),
        ("DPMSolverSinglestepScheduler", "use_flow_sigmas", True),
        ("KDPM2AncestralDiscreteScheduler", "prediction_type", "sample"),
        ("UniPCMultistepScheduler", "solver_order", 4),
        ("UniPCMultistepScheduler", "shift_terminal", 0.1),
        ("UniPCMultistepScheduler", "prediction_type", "flow_prediction"),
        ("UniPCMultistepScheduler", "disable_corrector", ["0"]),
        ("FlowMatchEulerDiscreteScheduler", "invert_sigmas", True),
        ("FlowMatchLCMScheduler", "invert_sigmas", True),
        ("EDMEulerScheduler", "prediction_type", "sample"),
        ("EDMDPMSolverMultistepScheduler", "algorithm_type", "sde-dpmsolver++"),
        ("EDMDPMSolverMultistepScheduler", "solver_order", 4),
    ],
)
def test_what_changes_the_numbers_is_refused_by_name_and_value(name, entry, value):
    way = "change the scheduler's configuration"
    rule = rf"^{name}: {entry} must be .*, got {re.escape(repr(value))}"
    with pytest.raises(UncoveredSchedulerError, match=rf"{rule}: {way}") as caught:
        read_scheduler({"_class_name": name, entry: value})
    assert name not in caught.value.instead
    if name == "FlowMatchEulerDiscreteScheduler":
        assert not caught.value.instead
    for other in caught.value.instead:
        read_scheduler({"_class_name": other, entry: value})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "DDIMParallelScheduler"}, "scheduler must be one of DDIMScheduler, .*, got DDIMParallelS"),
        (
            {"_class_name": "PNDMScheduler"},
            "skip_prk_steps must be True, since Runge-Kutta steps keep five .*, got False: change the scheduler's",
        ),
        ({}, "scheduler must be one of DDIMScheduler, .*, got None"),
        ({"_class_name": "DDIMScheduler", "churn": 0.1}, "DDIMScheduler: entries must be known, got churn = 0.1"),
        (
            {"_class_name": "DDIMScheduler", "trained_betas": [0.1, 0.2]},
            "trained_betas must be num_train_timesteps = 1000, got 2",
        ),
        (
            {"_class_name": "DDIMScheduler", "thresholding": True, "sample_max_value": 0.5},
            "sample_max_value must be at least 1 with thresholding, got 0.5",
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True, **COSINE},
            "beta_schedule must be 'linear' or 'scaled_linear' with use_karras_sigmas, got 'squaredcos_cap_v2'",
        ),
        (
            {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "sigma_max": 700.0},
            "sigma_max must be a number within the schedule's noise levels, 0.01.* to 157.*, with use_karras.*700",
        ),
        (
            {"_class_name": "HeunDiscreteScheduler", "use_karras_sigmas": True, "use_beta_sigmas": True},
            "use_beta_sigmas must be False or None with use_karras_sigmas, got True",
        ),
        (
            {"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": True, "sigma_min": 9.0, "sigma_max": 1.0},
            "sigma_min must be below sigma_max, 1.0, got 9.0",
        ),
        (
            {"_class_name": "FlowMatchLCMScheduler", "scale_factors": [1.0, 2.0]},
            "scale_factors must be None, since a step keeps its sample's size, got .*: .* or take FlowMatchEuler",
        ),
        (
            {"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous", **V},
            "timestep_type must be 'discrete' with prediction_type 'v_prediction', got 'continuous'",
        ),
    ],
)
def test_what_is_not_covered_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        read_scheduler(config)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("DDIMParallelScheduler", "DDIMScheduler"),
    ],
)
def test_a_class_that_is_not_covered_is_refused_with_one_that_works(name, nearest):
    scheduler = peers.scheduler_class(name)()
    config = {**scheduler.config, "_class_name": name}
    way = rf"got {name}( \(.*\))?: take {nearest}\.from_config\(scheduler\.config\), the nearest of {nearest}"
    with pytest.raises(UncoveredSchedulerError, match=way) as caught:
        read_scheduler(config)
    for other in caught.value.instead:
        made = peers.scheduler_class(other).from_config(scheduler.config)
        read_scheduler({**made.config, "_class_name": other})


@pytest.mark.parametrize("name", ["SCMScheduler", "KarrasVeScheduler"])
def test_noise_levels_of_another_kind_are_no_other_classs(name):
    with pytest.raises(UncoveredSchedulerError, match=rf"got {name} \(its? .*\)$"):
        read_scheduler({**peers.scheduler_class(name)().config, "_class_name": name})


def test_every_class_of_diffusers_is_read_or_refused_with_a_reason():
    """Those without a reason are of kinds that are read, and the message names the nearest class that is."""
    found = [name for name in dir(diffusers.schedulers) if name.endswith("Scheduler")]
    names = [name for name in found if not name.startswith("Flax")]  # those of JAX, which older versions have
    assert len(names) > 40
    assert not REASONS.keys() & set(COVERED)
    if tuple(map(int, diffusers.__version__.split(".")[:2])) >= (0, 42):  # older ones have fewer
        assert REASONS.keys() <= set(names)
    for name in set(names) - set(COVERED):
        with pytest.raises(UncoveredSchedulerError, match=f"got {name}") as caught:
            read_scheduler({"_class_name": name})
        assert caught.value.instead or name in REASONS
        assert REASONS.get(name, "") in str(caught.value)


def test_a_bound_on_the_noise_is_refused_only_where_it_binds():
    config = {"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -5.1}
    read_scheduler({**config, **SCALED})  # its noisiest level is -2.7
    with pytest.raises(ValueError, match=r"lambda_min_clipped must be -inf, got -5\.1"):
        read_scheduler({**config, **COSINE})
