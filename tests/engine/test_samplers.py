"""Every sampler against diffusers' scheduler of the same name: same schedule, model and noise, whole runs.

Ours runs through the engine's loop in float32; diffusers' code runs on float64 tensors where it lets itself: as
shipped, its float32 coefficients cancel: 1,000 steps of its DDPM are 3e-4 off its own formulas.
"""

import itertools
import sys

import numpy as np
import pytest
import tolerances
import torch

import stepfuse as sf

diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")

BATCH, SIZE, SEED = 2, 12, 7
STEPS = (1, 2, 5, 7, 10, 20, 50)
NOISE = np.stack([sf.normal(i, (SIZE,)) for i in range(BATCH)])
WEIGHTS = np.random.default_rng(0).standard_normal((SIZE, SIZE)) / SIZE**0.5

PEERS = {
    "ddim": diffusers.DDIMScheduler,
    "ddpm": diffusers.DDPMScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    "lcm": diffusers.LCMScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "euler": diffusers.FlowMatchEulerDiscreteScheduler,
}
TOLERANCES = dict.fromkeys(PEERS, tolerances.ONE_STEP) | dict.fromkeys(["dpmpp_2m", "heun"], tolerances.MULTISTEP)

SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULES = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled": SCALED,
    "zero-snr": {**SCALED, "rescale_betas_zero_snr": True},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "shift-1": {"shift": 1.0},
    "shift-3": {"shift": 3.0},
}

V, X0 = {"prediction_type": "v_prediction"}, {"prediction_type": "sample"}
FIRST_ALPHA = {"final_alpha_cumprod": None}  # the schedule's first, filled in by the test
PREDICTIONS = {"eps": {}, "v": V, "x0": X0, "guided": {"guidance_scale": 3.0}}
CLIPPED = {"clip": {"clip": 1.0}, "clip-v": {**V, "clip": 0.7}}
SPACED = {name: {"spacing": name} for name in ("leading", "trailing", "linspace")}
SPACED["offset"] = {"spacing": "leading", "steps_offset": 1}
CASES = {
    "ddim": {
        **PREDICTIONS,
        **CLIPPED,
        **SPACED,
        "eta": {"eta": 0.3},
        "eta-full": {"eta": 1.0},
        "eta-v": {**V, "eta": 0.3, "spacing": "trailing"},
        "eta-x0": {**X0, "eta": 1.0, "clip": 1.0},
        "clipped-eps": {"clip": 1.0, "clipped_eps": True},
        "clipped-eps-v": {**V, "clip": 1.0, "clipped_eps": True, "eta": 1.0},
        "final-alpha": FIRST_ALPHA,
    },
    "ddpm": {
        **PREDICTIONS,
        **CLIPPED,
        **SPACED,
        "posterior": {"variance": "posterior"},
        "posterior-v": {**V, "variance": "posterior", "clip": 1.0},
    },
    "dpmpp_2m": {
        **PREDICTIONS,
        **SPACED,
        "karras": {"karras": True},
        "karras-v": {**V, "karras": True},
        "sigma-min": FIRST_ALPHA,
        "second-order-end": {**FIRST_ALPHA, "lower_order_final": False},
    },
    "lcm": {**PREDICTIONS, **CLIPPED, "finer-solver": {"original_steps": 100}},
    "heun": {
        **PREDICTIONS,
        **SPACED,
        "karras": {"karras": True},
        "karras-v": {**V, "karras": True, "spacing": "trailing"},
        "clip": {"clip": 1.0, "karras": True},
        "clip-v": {**V, "clip": 0.7, "karras": True},
    },
    "euler": {"flow": {}, "guided": {"guidance_scale": 3.0}},
}
CONFIG_NAMES = {
    "spacing": "timestep_spacing",
    "steps_offset": "steps_offset",
    "prediction_type": "prediction_type",
    "karras": "use_karras_sigmas",
    "lower_order_final": "lower_order_final",
    "original_steps": "original_inference_steps",
}


def comparable(sampler, case, steps, schedule):
    """Whether both sides define the run, and float32 can hold it."""
    options = CASES[sampler][case]
    if (sampler == "euler") != schedule.startswith("shift"):
        return False
    if steps == 1000 and (sampler != "ddpm" or "steps_offset" in options):
        return False
    if schedule == "zero-snr":  # nothing follows from eps at pure noise; diffusers' Heun has no such schedule
        return sampler != "heun" and "prediction_type" in options
    if sampler == "dpmpp_2m" and "karras" in options and schedule == "cosine":
        return False  # diffusers truncates these timesteps where it rounds all others
    # A clamped sample's rounding enters Heun's slope as 1 / sigma: over the whole range at once, that is too much.
    return not (sampler == "heun" and "clip" in options and steps == 2)


def grid():
    for sampler, cases in CASES.items():
        for case, steps, schedule in itertools.product(cases, (*STEPS, 1000), SCHEDULES):
            if comparable(sampler, case, steps, schedule):
                yield pytest.param(sampler, case, steps, schedule, id=f"{sampler}-{case}-{steps}-{schedule}")


def model(x, t, cond):
    """Some smooth function of state, time and condition."""
    time, y = t[:, None] / 1000, cond["y"][:, None]
    return np.tanh(x.astype(np.float64) @ WEIGHTS + 0.3 * y) + 0.5 * np.sin(3 * time + y)


def ours(schedule, table):
    cond = {"y": sf.CondInput(dtype="float32", shape=(), null=0.0)}
    kind = "flow" if schedule.is_flow else table.options["prediction_type"]
    with sf.Engine.from_callable(model, shape=(SIZE,), schedule=schedule, prediction_type=kind, cond=cond) as engine:
        return engine.sample(BATCH, cond=1.0, table=table, noise=NOISE, seed=SEED)


def theirs(scheduler, monkeypatch, guidance_scale=1.0, **step_options):
    def our_noise(*_args, **_options):
        return torch.from_numpy(np.stack([sf.normal(SEED + i, (SIZE,), step=step, stream=1) for i in range(BATCH)]))

    monkeypatch.setattr(sys.modules[type(scheduler).__module__], "randn_tensor", our_noise, raising=False)
    x = torch.from_numpy(NOISE).double() * getattr(scheduler, "init_noise_sigma", 1.0)
    for step in range(len(scheduler.timesteps)):
        t = scheduler.timesteps[step]
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        uncond, cond = (model(seen.numpy(), np.full(BATCH, t.item()), {"y": np.full(BATCH, y)}) for y in (0.0, 1.0))
        output = torch.from_numpy(uncond + guidance_scale * (cond - uncond))
        x = scheduler.step(output, t, x, **step_options, return_dict=False)[0]
    return x.numpy()


def peer(sampler, schedule, options, **timesteps):
    """diffusers' scheduler with these options, its noise levels in float64."""
    config = {CONFIG_NAMES[name]: value for name, value in options.items() if name in CONFIG_NAMES}
    if sampler in ("ddim", "ddpm", "lcm", "heun"):
        config |= {"clip_sample": "clip" in options, "clip_sample_range": options.get("clip")}
    if sampler == "ddpm":
        config["variance_type"] = "fixed_small" if options.get("variance") == "posterior" else "fixed_large"
    if "final_alpha_cumprod" in options:
        config |= {"set_alpha_to_one": False} if sampler == "ddim" else {"final_sigmas_type": "sigma_min"}
    scheduler = PEERS[sampler](**SCHEDULES[schedule], **config)
    for name in {"alphas_cumprod", "final_alpha_cumprod"} & vars(scheduler).keys():
        setattr(scheduler, name, getattr(scheduler, name).double())
    scheduler.set_timesteps(**timesteps)
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = scheduler.sigmas.double()
        scheduler.set_begin_index(0)  # it would skip a step where Karras' first timesteps coincide
    return scheduler


def noise_schedule(name):
    if "shift" in SCHEDULES[name]:
        return sf.NoiseSchedule.flow(**SCHEDULES[name])
    return sf.NoiseSchedule.from_alphas_cumprod(diffusers.DDIMScheduler(**SCHEDULES[name]).alphas_cumprod.double())


@pytest.mark.parametrize(("sampler", "case", "steps", "schedule"), list(grid()))
def test_sampler_is_diffusers(sampler, case, steps, schedule, monkeypatch):
    options, levels = dict(CASES[sampler][case]), noise_schedule(schedule)
    if "final_alpha_cumprod" in options:
        options["final_alpha_cumprod"] = levels.alphas_cumprod[0]
    step_options = {"eta": options.get("eta", 0.0), "use_clipped_model_output": "clipped_eps" in options}
    want = theirs(
        peer(sampler, schedule, options, num_inference_steps=steps),
        monkeypatch,
        options.get("guidance_scale", 1.0),
        **(step_options if sampler == "ddim" else {}),
    )
    got = ours(levels, getattr(sf.samplers, sampler)(levels, steps, **options))
    assert np.abs(got - want).max() < TOLERANCES[sampler] * np.abs(want).max()


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m", "lcm", "heun", "euler"])
def test_explicit_timesteps_are_diffusers(sampler, monkeypatch):
    timesteps, schedule = [979, 900, 519, 100, 99, 19], "shift-1" if sampler == "euler" else "scaled"
    want = theirs(peer(sampler, schedule, {}, timesteps=timesteps), monkeypatch)
    levels = noise_schedule(schedule)
    got = ours(levels, getattr(sf.samplers, sampler)(levels, timesteps=timesteps))
    assert np.abs(got - want).max() < TOLERANCES[sampler] * np.abs(want).max()
