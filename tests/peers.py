"""diffusers' schedulers as oracles of whole runs, on float64 tensors where that is possible: as shipped, digits of
their float32 coefficients cancel. 1,000 steps of its DDPM are 3e-4 off its own formulas.

diffusers and torch are imported where they are used: not every Python that stepfuse supports has them.
"""

import importlib
import importlib.util
import sys
import types
from contextlib import nullcontext
from unittest import mock

import numpy as np
import tolerances

import stepfuse as sf

BATCH, SIZE, SEED = 2, 12, 7
NOISE = np.stack([sf.normal(i, (SIZE,)) for i in range(BATCH)])
WEIGHTS = np.random.default_rng(0).standard_normal((SIZE, SIZE)) / SIZE**0.5

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmpp_2m_sde": "DPMSolverMultistepScheduler",
    "lcm": "LCMScheduler",
    "heun": "HeunDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "dpmpp_sde": "DPMSolverSDEScheduler",
    "deis": "DEISMultistepScheduler",
    "sa_solver": "SASolverScheduler",
    "plms": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lms": "LMSDiscreteScheduler",
    "dpmpp_2s": "DPMSolverSinglestepScheduler",
    "kdpm2": "KDPM2DiscreteScheduler",
    "kdpm2_ancestral": "KDPM2AncestralDiscreteScheduler",
    "tcd": "TCDScheduler",
}
FLOW_SCHEDULERS = {
    "euler": "FlowMatchEulerDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "heun": "FlowMatchHeunDiscreteScheduler",
    "lcm": "FlowMatchLCMScheduler",
}
_MULTISTEP = ["dpmpp_2m", "dpmpp_2m_sde", "sa_solver", "heun", "deis", "plms", "unipc", "lms", "dpmpp_2s"]
TOLERANCES = dict.fromkeys(SCHEDULERS, tolerances.ONE_STEP) | dict.fromkeys(_MULTISTEP, tolerances.MULTISTEP)

SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULES = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled": SCALED,
    "zero-snr": {**SCALED, "rescale_betas_zero_snr": True},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "shift-1": {"shift": 1.0},
    "shift-3": {"shift": 3.0},
}
CONFIG_NAMES = {
    "spacing": "timestep_spacing",
    "steps_offset": "steps_offset",
    "prediction_type": "prediction_type",
    "karras": "use_karras_sigmas",
    "lower_order_final": "lower_order_final",
    "euler_at_final": "euler_at_final",
    "original_steps": "original_inference_steps",
    "order": "solver_order",
    "solver_type": "solver_type",
    "predict_x0": "predict_x0",
    "disable_corrector": "disable_corrector",
    "predictor_order": "predictor_order",
    "corrector_order": "corrector_order",
    "sigma_min": "sigma_min",
    "sigma_max": "sigma_max",
    "shift_terminal": "shift_terminal",
}
LEVEL_NAMES = {
    "karras": "use_karras_sigmas",
    "exponential": "use_exponential_sigmas",
    "beta": "use_beta_sigmas",
    "lu": "use_lu_lambdas",
}

_ALPHAS = sf.NoiseSchedule.scaled_linear().alphas_cumprod

#: Samplers of every kind, each with a schedule and with options of ours.
CASES = {
    "ddim": ("ddim", "linear", {}),
    "ddim-v": ("ddim", "zero-snr", {"prediction_type": "v_prediction", "spacing": "trailing"}),
    "ddim-eta": ("ddim", "linear", {"eta": 1.0}),
    "ddpm": ("ddpm", "linear", {}),
    "dpmpp_2m": ("dpmpp_2m", "scaled", {}),
    "dpmpp_2m-heun": ("dpmpp_2m", "scaled", {"solver_type": "heun"}),
    "dpmpp_2m-order-3": ("dpmpp_2m", "scaled", {"order": 3}),
    "dpmpp_2m-karras": ("dpmpp_2m", "scaled", {"karras": True}),
    "dpmpp_2m-karras-v": ("dpmpp_2m", "linear", {"karras": True, "prediction_type": "v_prediction"}),
    "dpmpp_2m_sde": ("dpmpp_2m_sde", "scaled", {"karras": True}),
    "dpmpp_sde": ("dpmpp_sde", "scaled", {"karras": True}),
    "sa_solver": (
        "sa_solver",
        "scaled",
        {"predictor_order": 3, "corrector_order": 3, "final_alpha_cumprod": float(_ALPHAS[0])},
    ),
    "lcm": ("lcm", "scaled", {}),
    "heun": ("heun", "linear", {"spacing": "trailing"}),
    "heun-karras": ("heun", "scaled", {"karras": True}),
    "euler-linspace": ("euler", "linear", {}),
    "euler-karras": ("euler", "scaled", {"karras": True, "spacing": "trailing"}),
    "euler-karras-leading": ("euler", "linear", {"karras": True, "spacing": "leading", "steps_offset": 1}),
    "euler_ancestral": ("euler_ancestral", "scaled", {"spacing": "linspace"}),
    "euler": ("euler", "shift-3", {}),
    "deis": ("deis", "scaled", {"order": 3, "final_alpha_cumprod": float(_ALPHAS[0])}),
    "tcd": ("tcd", "scaled", {"eta": 0.3, "final_alpha_cumprod": float(_ALPHAS[0])}),
    "unipc": ("unipc", "scaled", {"order": 3}),
    "dpmpp_2s": ("dpmpp_2s", "scaled", {"order": 3}),
    "kdpm2": ("kdpm2", "scaled", {"karras": True}),
    "kdpm2_ancestral": ("kdpm2_ancestral", "scaled", {}),
    "unipc-karras": ("unipc", "linear", {"karras": True, "disable_corrector": [7]}),
    "heun-flow": ("heun", "shift-3", {}),
    "lcm-flow": ("lcm", "shift-3", {}),
    "unipc-flow": ("unipc", "shift-3", {}),
    "unipc-v": ("unipc", "zero-snr", {"prediction_type": "v_prediction", "spacing": "trailing", "order": 1}),
}

#: Likewise, which diffusers begins in the middle by steps that do not fit the state, and we do not.
FROM_THE_START = {"plms": ("plms", "scaled", {}), "lms": ("lms", "scaled", {})}


def model(x, t, cond):
    """A smooth function of state, time and conditioning."""
    time, y = t[:, None] / 1000, cond["y"][:, None]
    return np.tanh(x.astype(np.float64) @ WEIGHTS + 0.3 * y) + 0.5 * np.sin(3 * time + y)


class BrownianPath:
    """A noise sampler over one path, whose increments between the levels that it is asked for are those drawn.

    Args:
        draw: Gives standard normal noise, anew at each call.
    """

    def __init__(self, draw):
        self._draw, self._begin, self._at, self._change = draw, None, None, 0.0

    def __call__(self, sigma, sigma_next):
        """The path's change from one level to a lower one, as standard normal noise."""
        if sigma != self._begin:
            self._begin, self._at, self._change = sigma, sigma, 0.0
        self._change = self._change + (self._at - sigma_next) ** 0.5 * self._draw()
        self._at = sigma_next
        return self._change / (sigma - sigma_next) ** 0.5


def scheduler_class(name):
    """A class of diffusers. One needs torchsde, for noise that ``run`` replaces: nothing stands in its place."""
    import diffusers

    if name != "DPMSolverSDEScheduler" or importlib.util.find_spec("torchsde"):
        return getattr(diffusers, name)
    sys.modules["torchsde"] = types.ModuleType("torchsde")
    try:
        return getattr(importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde"), name)
    finally:
        del sys.modules["torchsde"]


def engine(schedule, prediction_type="epsilon"):
    """Our engine on the model."""
    cond = {"y": sf.CondInput(dtype="float32", shape=(), null=0.0)}
    kind = "flow" if schedule.is_flow else prediction_type
    return sf.Engine.from_callable(model, shape=(SIZE,), schedule=schedule, prediction_type=kind, cond=cond)


def noise_schedule(name):
    """Our schedule of the same noise levels."""
    import diffusers

    if "shift" in SCHEDULES[name]:
        return sf.NoiseSchedule.flow(**SCHEDULES[name])
    return sf.NoiseSchedule.from_alphas_cumprod(diffusers.DDIMScheduler(**SCHEDULES[name]).alphas_cumprod.double())


def scheduler(sampler, schedule, options, **timesteps):
    """diffusers' scheduler with these options of ours, its noise levels in float64."""
    config = {CONFIG_NAMES[name]: value for name, value in options.items() if name in CONFIG_NAMES}
    if "levels" in options:
        config[LEVEL_NAMES[options["levels"]]] = True
    if sampler in ("dpmpp_2m", "dpmpp_2s"):
        config |= {"algorithm_type": "dpmsolver++" if config.pop("predict_x0", True) else "dpmsolver"}
    if sampler == "lms":  # its order is an argument of step
        config.pop("solver_order", None)
    if sampler in ("ddim", "ddpm", "lcm", "heun") and "shift" not in SCHEDULES[schedule]:
        config |= {"clip_sample": "clip" in options, "clip_sample_range": options.get("clip")}
    if sampler == "sa_solver":
        config["algorithm_type"] = "data_prediction" if options.get("predict_x0", True) else "noise_prediction"
        config.pop("predict_x0", None)
    if sampler == "dpmpp_2m_sde":
        config["algorithm_type"] = "sde-dpmsolver++"
    if sampler == "ddpm":
        config["variance_type"] = "fixed_small" if options.get("variance") == "posterior" else "fixed_large"
    if sampler == "plms":
        config |= {"skip_prk_steps": True, "set_alpha_to_one": "final_alpha_cumprod" not in options}
    elif "final_alpha_cumprod" in options and sampler not in ("deis", "sa_solver", "tcd"):  # which always end there
        config |= {"set_alpha_to_one": False} if sampler == "ddim" else {"final_sigmas_type": "sigma_min"}
    if "dynamic_threshold" in options:
        ratio, largest = options["dynamic_threshold"]
        config |= {"thresholding": True, "dynamic_thresholding_ratio": ratio, "sample_max_value": largest}
    names, levels = FLOW_SCHEDULERS if "shift" in SCHEDULES[schedule] else SCHEDULERS, SCHEDULES[schedule]
    if names is FLOW_SCHEDULERS and sampler in ("unipc", "dpmpp_2m"):
        levels = {"use_flow_sigmas": True, "flow_shift": levels["shift"], "prediction_type": "flow_prediction"}
    found = scheduler_class(names[sampler])(**levels, **config)
    for name in {"alphas_cumprod", "final_alpha_cumprod"} & vars(found).keys():
        setattr(found, name, getattr(found, name).double())
    # In float32 a difference of squares has few digits where two levels are close, as those of 999 steps are.
    with double_levels(found) if sampler in ("kdpm2_ancestral", "euler_ancestral") else nullcontext():
        found.set_timesteps(**timesteps)
    if hasattr(found, "sigmas"):
        found.sigmas = found.sigmas.double()
        found.set_begin_index(0)  # it would skip a step where Karras' first timesteps coincide
    return found


def configured(name, config, steps, **given):
    """diffusers' scheduler of a configuration, its noise levels in float64.

    Args:
        name: Its class.
        config: Entries, as of any class.
        steps: How many it takes.
        given: More arguments of ``set_timesteps``.
    """
    found = scheduler_class(name).from_config(config)
    for levels in {"alphas_cumprod", "final_alpha_cumprod"} & vars(found).keys():
        setattr(found, levels, getattr(found, levels).double())
    with double_levels(found):
        found.set_timesteps(steps, **given)
    if hasattr(found, "sigmas"):
        found.sigmas = found.sigmas.double()
        found.set_begin_index(0)  # a first timestep that comes twice is taken for the second
    return found


def double_levels(scheduler):
    """Has ``set_timesteps`` keep its levels in float64: in float32 a difference of squares loses all digits where one
    level is far below the one before."""
    wide = types.SimpleNamespace(**{**vars(np), "float32": np.float64})
    return mock.patch.object(sys.modules[type(scheduler).__module__], "np", wide, create=True)  # one has torch alone


def prepared(name, steps):
    """diffusers' scheduler, options of its step, our engine and arguments of its ``sample``.

    Args:
        name: Of ``CASES`` or ``FROM_THE_START``.
        steps: How many.
    """
    sampler, schedule, options = {**CASES, **FROM_THE_START}[name]
    theirs = scheduler(sampler, schedule, options, num_inference_steps=steps)
    step_options = {"eta": options["eta"]} if "eta" in options else {}
    arguments = {"sampler": sampler, "steps": steps, "cond": 1.0, "seed": SEED, "noise": NOISE, **options}
    kind = arguments.pop("prediction_type", "epsilon")
    return theirs, step_options, engine(noise_schedule(schedule), kind), arguments


def run(
    scheduler,
    monkeypatch,
    guidance_scale=1.0,
    *,
    guidance_rescale=0.0,
    blend=None,
    x=None,
    begin=0,
    after=None,
    **step_options,
):
    """The loop of diffusers' pipelines over this model, with our noise.

    Args:
        scheduler: With its timesteps set.
        monkeypatch: Replaces the generator's noise by ours.
        guidance_scale, guidance_rescale: As in the pipelines.
        blend: ``blend(step, t, x, cond, uncond)`` is the guided prediction, in the place of both.
        x: The first state; None: our noise at the scheduler's scale.
        begin: Index of the first timestep of the run.
        after: ``after(i, x)`` changes the state after the i-th of all timesteps.
        step_options: Of ``scheduler.step``.
    """
    import torch
    from diffusers.guiders.guider_utils import rescale_noise_cfg

    steps = iter(range(len(scheduler.timesteps)))

    def our_noise(*_args, **_options):
        return torch.from_numpy(np.stack([sf.normal(SEED + i, (SIZE, 1), step=step, stream=1) for i in range(BATCH)]))

    module = sys.modules[type(scheduler).__module__]
    monkeypatch.setattr(module, "randn_tensor", our_noise, raising=False)
    monkeypatch.setattr(module, "BrownianTreeNoiseSampler", lambda *_: BrownianPath(our_noise), raising=False)
    if x is None:
        x = torch.from_numpy(NOISE).double() * getattr(scheduler, "init_noise_sigma", 1.0)
    x = x[..., None]  # thresholding needs a dimension after the channels
    if begin and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    for i, t in enumerate(scheduler.timesteps):
        if i < begin:
            continue
        step = next(steps)
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        rows, times = seen[..., 0].numpy(), np.full(BATCH, t.item())
        uncond, cond = (torch.from_numpy(model(rows, times, {"y": np.full(BATCH, y)}))[..., None] for y in (0.0, 1.0))
        output = uncond + guidance_scale * (cond - uncond) if blend is None else blend(step, t, x, cond, uncond)
        if guidance_rescale:
            output = rescale_noise_cfg(output, cond, guidance_rescale)
        x = scheduler.step(output, t, x, **step_options, return_dict=False)[0]
        if after is not None:
            x = after(i, x)
    return x[..., 0].numpy()
