"""Every sampler against diffusers' scheduler of the same name: same schedule, model and noise, whole runs.

Ours runs through the engine's loop in float32, diffusers' code on float64 tensors: see ``peers.py``.
"""

import itertools

import numpy as np
import peers
import pytest
import tolerances

import stepfuse as sf

diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning:diffusers")

FLOWS = [name for name, levels in peers.SCHEDULES.items() if "shift" in levels]
PRESERVING = [name for name in peers.SCHEDULES if name not in FLOWS]
STEPS = (1, 2, 5, 7, 10, 20, 50)
MULTISTEP_STEPS = (1, 2, 3, 5, 7, 10, 25, 50)

V, X0 = {"prediction_type": "v_prediction"}, {"prediction_type": "sample"}
FIRST_ALPHA = {"final_alpha_cumprod": None}  # the schedule's first, filled in by the test
PREDICTIONS = {"eps": {}, "v": V, "x0": X0, "guided": {"guidance_scale": 3.0}}
CLIPPED = {"clip": {"clip": 1.0}, "clip-v": {**V, "clip": 0.7}}
SPACED = {name: {"spacing": name} for name in ("leading", "trailing", "linspace")}
SPACED["offset"] = {"spacing": "leading", "steps_offset": 1}
LEVELS = {"exponential": {"levels": "exponential"}, "beta": {"levels": "beta"}}
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
        "order-1": {"order": 1},
        "heun": {"solver_type": "heun"},
        "sigma-min": FIRST_ALPHA,
        "second-order-end": {**FIRST_ALPHA, "lower_order_final": False},
        "order-3": {"order": 3},
        "order-3-end": {**V, **FIRST_ALPHA, "order": 3, "lower_order_final": False},
        "euler-end": {**FIRST_ALPHA, "lower_order_final": False, "euler_at_final": True},
        "noise": {**FIRST_ALPHA, "predict_x0": False},
        "noise-heun-order-3": {**X0, **FIRST_ALPHA, "predict_x0": False, "order": 3, "solver_type": "heun"},
    },
    "dpmpp_2m_sde": {
        **PREDICTIONS,
        "trailing": {"spacing": "trailing"},
        "karras": {"karras": True},
        "karras-v": {**V, "karras": True},
        "order-1": {"order": 1},
        "heun": {"solver_type": "heun"},
        "heun-karras": {"solver_type": "heun", "karras": True},
        **LEVELS,
        "sigma-min": FIRST_ALPHA,
        "second-order-end": {**FIRST_ALPHA, "lower_order_final": False},
    },
    "dpmpp_sde": {  # diffusers has no "sample"
        "eps": {},
        **LEVELS,
        "v": V,
        "guided": {"guidance_scale": 3.0},
        **SPACED,
        "karras": {"karras": True},
        "karras-v": {**V, "karras": True, "spacing": "trailing"},
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
    "euler": {**PREDICTIONS, **SPACED, "karras": {"karras": True}, "karras-v": {**V, "karras": True}},
    "euler_ancestral": {"eps": {}, "v": V, "guided": {"guidance_scale": 3.0}, **SPACED},  # diffusers has no "sample"
    "deis": {
        name: {**FIRST_ALPHA, **options}
        for name, options in {
            **PREDICTIONS,
            "trailing": {"spacing": "trailing"},
            "karras": {"karras": True},
            "order-1": {"order": 1},
            "order-3": {"order": 3},
            "order-3-v": {**V, "order": 3},
            "third-order-end": {"order": 3, "lower_order_final": False},
        }.items()
    },
    "sa_solver": {
        name: {**FIRST_ALPHA, **options}
        for name, options in {
            **PREDICTIONS,
            "leading": {"spacing": "leading", "steps_offset": 1},
            "trailing": {"spacing": "trailing"},
            "karras": {"karras": True},
            "orders-1": {"predictor_order": 1, "corrector_order": 1},
            "orders-1-2": {"predictor_order": 1, "corrector_order": 2},
            "orders-3": {"predictor_order": 3, "corrector_order": 3},
            "orders-3-4": {"predictor_order": 3, "corrector_order": 4, "karras": True},
            "high-orders-end": {"predictor_order": 3, "corrector_order": 4, "lower_order_final": False},
            "noise": {"predict_x0": False},
            "noise-orders-3-v": {**V, "predict_x0": False, "predictor_order": 3, "corrector_order": 3},
        }.items()
    },
    "plms": {"eps": {}, "v": V, "guided": {"guidance_scale": 3.0}, **SPACED, "final-alpha": FIRST_ALPHA},
    "unipc": {
        **PREDICTIONS,
        **SPACED,
        "karras": {"karras": True},
        "karras-v": {**V, "karras": True, "order": 3},
        "order-1": {"order": 1},
        "order-3": {"order": 3},
        "order-3-x0": {**X0, "order": 3, "spacing": "trailing"},
        # diffusers' last step to a clean sample is NaN with these.
        "bh1": {**FIRST_ALPHA, "solver_type": "bh1"},
        "bh1-order-3": {**FIRST_ALPHA, "solver_type": "bh1", "order": 3},
        "second-order-end": {**FIRST_ALPHA, "lower_order_final": False},
        "third-order-end": {**FIRST_ALPHA, "lower_order_final": False, "order": 3},
        "noise": {**FIRST_ALPHA, "predict_x0": False},
        "noise-v-order-3": {**V, **FIRST_ALPHA, "predict_x0": False, "order": 3},
        "uncorrected": {"disable_corrector": [0, 2], "order": 3},
    },
    "tcd": {
        name: {**FIRST_ALPHA, **options}
        for name, options in {
            **PREDICTIONS,
            "no-noise": {"eta": 0.0},
            "all-noise-v": {**V, "eta": 1.0},
            "finer-solver": {"original_steps": 100, "eta": 0.7},
        }.items()
    },
}
CASES["lms"] = {
    **LEVELS,
    **PREDICTIONS,
    **SPACED,
    "karras": {"karras": True},
    "karras-v": {**V, "karras": True, "spacing": "trailing"},
    "order-1": {"order": 1},
    "order-2": {"order": 2},
    "order-3": {"order": 3},
}
_MIDPOINT = {
    **LEVELS,
    "eps": {},
    "v": V,
    "guided": {"guidance_scale": 3.0},
    **SPACED,
    "karras": {"karras": True},
    "karras-v": {**V, "karras": True, "spacing": "trailing"},
}
CASES |= {"kdpm2": _MIDPOINT, "kdpm2_ancestral": _MIDPOINT}
CASES["dpmpp_2s"] = {
    **LEVELS,
    **PREDICTIONS,
    "karras": {"karras": True},
    "karras-v": {**V, "karras": True, "order": 3},
    "order-1": {"order": 1},
    "order-3": {"order": 3},
    "order-3-x0": {**X0, "order": 3},
    "heun": {**FIRST_ALPHA, "solver_type": "heun"},
    "heun-order-3": {**FIRST_ALPHA, "solver_type": "heun", "order": 3},
    "lower-order-end": {**FIRST_ALPHA, "order": 3, "lower_order_final": True},
    "noise": {**FIRST_ALPHA, "predict_x0": False},
    "noise-order-3": {**FIRST_ALPHA, "predict_x0": False, "order": 3},
    "noise-heun-order-3": {**V, **FIRST_ALPHA, "predict_x0": False, "order": 3, "solver_type": "heun"},
}
ALL_COUNTS = {"lms", "kdpm2", "kdpm2_ancestral", "dpmpp_2s"}  # every number of steps in these cases alone: eps, karras
NO_ZERO_SNR = {
    "dpmpp_sde",
    "sa_solver",
    "heun",
    "deis",
    "plms",
    *ALL_COUNTS,
}  # diffusers' classes have no such schedule
FLOW_CASES = {
    "euler": {"flow": {}, "guided": {"guidance_scale": 3.0}},
    "heun": {"flow": {}, "guided": {"guidance_scale": 3.0}},
    "lcm": {"flow": {}, "guided": {"guidance_scale": 3.0}, **LEVELS},
    "unipc": {"flow": {}, "order-1": {"order": 1}, "order-3": {"order": 3, "guidance_scale": 3.0}},
    "dpmpp_2m": {"flow": {}, "order-1": {"order": 1}, "order-3": {"order": 3, "guidance_scale": 3.0}},
}

# Cases of 999 steps, where not the first: the model's noise estimates grow to thousands with lcm, diffusers integrates
# numerically in each step of lms, and tcd and lcm take no more steps than the solver that they were distilled from.
LONG_CASES = {
    "lcm": {**V, "original_steps": 1000},
    "tcd": {**FIRST_ALPHA, "original_steps": 1000},
    "lms": {"order": 1},
}

DPM_CASES = ("order-1", "heun", "order-3", "order-3-end", "euler-end", "noise", "noise-heun-order-3")
# Samplers that are not run with every case on every schedule, for time.
FEWER_SCHEDULES = ("dpmpp_2m_sde", "dpmpp_sde", "sa_solver", "deis", "plms", "unipc", *ALL_COUNTS)


def comparable(sampler, case, steps, schedule):
    """Whether both sides define the run, and float32 can hold it."""
    options = CASES[sampler][case]
    if steps == 1000 and (sampler != "ddpm" or "steps_offset" in options):
        return False
    if schedule == "zero-snr":  # nothing follows from eps at pure noise
        if "predict_x0" in options:
            return False  # with hardly any signal diffusers divides a state of float32 by it
        return sampler not in NO_ZERO_SNR and "prediction_type" in options
    if sampler in ("dpmpp_2m", "dpmpp_2m_sde") and "karras" in options and schedule == "cosine":
        return False  # diffusers truncates these timesteps where it rounds all others
    whole = ("eps", "karras", "heun", "second-order-end", "orders-3", "high-orders-end")
    if sampler in ("dpmpp_2m_sde", "dpmpp_sde", "sa_solver") and case not in whole:
        return schedule == "scaled" and steps in (2, 7, 50)
    if "karras" in options and sampler in ("deis", "sa_solver") and steps == 1:
        return False  # diffusers' only step leads from the noisiest level to itself
    if sampler in ALL_COUNTS and case not in ("eps", "karras") and steps in (1, 3, 7, 25):
        return False
    if sampler == "tcd":  # its steps are some of the solver's, 50 if not said
        return steps in MULTISTEP_STEPS and (schedule == "scaled" or case == "eps")
    if sampler in FEWER_SCHEDULES:
        return schedule == "scaled" or (schedule == "cosine" and case in ("eps", "order-3", "karras", "bh1-order-3"))
    if sampler == "dpmpp_2m" and case in DPM_CASES:
        return schedule == "scaled" and steps in (1, 2, 5, 10, 50)
    # A clamped sample's rounding enters Heun's slope as 1 / sigma: over the whole range at once, that is too much.
    return not (sampler == "heun" and "clip" in options and steps == 2)


def grid():
    for sampler, cases in CASES.items():
        counts = MULTISTEP_STEPS if sampler in (*FEWER_SCHEDULES, "tcd") else (*STEPS, 1000)
        for case, steps, schedule in itertools.product(cases, counts, PRESERVING):
            if comparable(sampler, case, steps, schedule):
                options = CASES[sampler][case]
                yield pytest.param(sampler, options, steps, schedule, id=f"{sampler}-{case}-{steps}-{schedule}")
        for steps in sorted({3, 25, 999} - set(counts)):
            options = LONG_CASES.get(sampler, cases["eps"]) if steps == 999 else cases["eps"]
            yield pytest.param(sampler, options, steps, "scaled", id=f"{sampler}-{steps}")
    for sampler, cases in FLOW_CASES.items():
        for case, steps, schedule in itertools.product(cases, MULTISTEP_STEPS, FLOWS):
            yield pytest.param(sampler, cases[case], steps, schedule, id=f"{sampler}-{case}-{steps}-{schedule}")
        yield pytest.param(sampler, {}, 999, "shift-3", id=f"{sampler}-flow-999")


def ours(schedule, table):
    with peers.engine(schedule, table.options.get("prediction_type", "epsilon")) as engine:
        return engine.sample(peers.BATCH, cond=1.0, table=table, noise=peers.NOISE, seed=peers.SEED)


@pytest.mark.parametrize(("sampler", "options", "steps", "schedule"), list(grid()))
def test_sampler_is_diffusers(sampler, options, steps, schedule, monkeypatch):
    options, levels = dict(options), peers.noise_schedule(schedule)
    if "final_alpha_cumprod" in options:
        options["final_alpha_cumprod"] = levels.alphas_cumprod[0]
    step_options = {"eta": options.get("eta", 0.0), "use_clipped_model_output": "clipped_eps" in options}
    if sampler == "tcd":
        step_options = {name: options[name] for name in ("eta",) if name in options}  # its own default is 0.3
    want = peers.run(
        peers.scheduler(sampler, schedule, options, num_inference_steps=steps),
        monkeypatch,
        options.get("guidance_scale", 1.0),
        **(step_options if sampler in ("ddim", "tcd") else {}),
        **({"order": options.get("order", 4)} if sampler == "lms" else {}),
    )
    parity = {"fixed_stride": True} if sampler in ("ddim", "plms") else {}
    got = ours(levels, getattr(sf.samplers, sampler)(levels, steps, **options, **parity))
    assert np.abs(got - want).max() < peers.TOLERANCES[sampler] * np.abs(want).max()


@pytest.mark.parametrize("steps", [2, 3, 5, 10, 50])
def test_ipndm_is_diffusers(steps, monkeypatch):
    """Its levels are its own, and the schedule here holds these alone, but for the first: there is no signal there, and
    noise over signal is infinite."""
    import torch

    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(steps)
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas = (1 - scheduler.betas**2) ** 0.5
    scheduler.timesteps = torch.arange(steps - 1.0, -1.0, -1.0)  # of the schedule here
    want = peers.run(scheduler, monkeypatch, x=torch.from_numpy(peers.NOISE).double(), begin=1)
    levels = sf.NoiseSchedule.from_alphas_cumprod(scheduler.alphas[1:-1].flip(0) ** 2)
    table = sf.samplers.ipndm(levels, timesteps=range(steps - 2, -1, -1), prediction_type="v_prediction")
    assert np.abs(ours(levels, table) - want).max() < tolerances.MULTISTEP * np.abs(want).max()


EXPLICIT = dict.fromkeys(("ddpm", "dpmpp_2m", "lcm", "heun", "euler"), "scaled")


@pytest.mark.parametrize(("sampler", "schedule"), [*EXPLICIT.items(), ("euler", "shift-1")])
def test_explicit_timesteps_are_diffusers(sampler, schedule, monkeypatch):
    timesteps = [979, 900, 519, 100, 99, 19]
    want = peers.run(peers.scheduler(sampler, schedule, {}, timesteps=timesteps), monkeypatch)
    levels = peers.noise_schedule(schedule)
    got = ours(levels, getattr(sf.samplers, sampler)(levels, timesteps=timesteps))
    assert np.abs(got - want).max() < peers.TOLERANCES[sampler] * np.abs(want).max()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [2, 10, 50])
def test_ddim_with_all_noise_is_respaced_ddpm(steps, prediction_type):
    """Song et al. (2021), section 4.1: eta = 1 is DDPM, with the posterior's variance."""
    levels, options = peers.noise_schedule("linear"), {"prediction_type": prediction_type}
    ddim = ours(levels, sf.samplers.ddim(levels, steps, eta=1.0, **options))
    ddpm = ours(levels, sf.samplers.ddpm(levels, steps, variance="posterior", **options))
    assert np.abs(ddim - ddpm).max() < tolerances.ONE_STEP * np.abs(ddpm).max()


def test_a_first_order_step_on_the_sde_is_ddim_with_all_noise():
    levels, timesteps = peers.noise_schedule("scaled"), [979, 700, 519, 100, 19]
    sde = sf.samplers.dpmpp_2m_sde(levels, timesteps=timesteps, order=1)
    ddim = sf.samplers.ddim(levels, timesteps=timesteps, eta=1.0)
    assert np.abs(ours(levels, sde) - ours(levels, ddim)).max() < tolerances.ONE_STEP


def test_without_noise_the_sde_is_the_ode():
    levels = peers.noise_schedule("scaled")
    for options in ({}, {"karras": True, "solver_type": "heun"}):
        np.testing.assert_array_equal(
            sf.samplers.dpmpp_2m_sde(levels, 20, eta=0.0, **options).rows,
            sf.samplers.dpmpp_2m(levels, 20, **options).rows,
        )
