"""Configuration files of diffusers' schedulers: as it writes them, with options that people's files have."""

import json

import peers

CLASSES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmpp_2m_sde": "DPMSolverMultistepScheduler",
    "lcm": "LCMScheduler",
    "heun": "HeunDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "dpmpp_sde": "DPMSolverSDEScheduler",
    "sa_solver": "SASolverScheduler",
    "deis": "DEISMultistepScheduler",
    "plms": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lms": "LMSDiscreteScheduler",
    "dpmpp_2s": "DPMSolverSinglestepScheduler",
    "kdpm2": "KDPM2DiscreteScheduler",
    "kdpm2_ancestral": "KDPM2AncestralDiscreteScheduler",
    "tcd": "TCDScheduler",
}
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
# Of each class what is its own, so that all of it would change another sampler if it reached it.
OWN = {
    "ddim": {"set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False},
    "ddpm": {"variance_type": "fixed_large", "clip_sample_range": 2.0},
    "dpmpp_2m": {"final_sigmas_type": "sigma_min", "use_karras_sigmas": True, "lower_order_final": False},
    "dpmpp_2m_sde": {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun", "timestep_spacing": "trailing"},
    "lcm": {"original_inference_steps": 100, "clip_sample": True},
    "heun": {"use_karras_sigmas": True},
    "euler": {"use_karras_sigmas": True, "timestep_spacing": "trailing"},
    "euler_ancestral": {"steps_offset": 1, "timestep_spacing": "leading"},
    "dpmpp_sde": {"use_karras_sigmas": True, "timestep_spacing": "trailing"},
    "sa_solver": {"predictor_order": 3, "corrector_order": 1, "use_karras_sigmas": True},
    "deis": {"solver_order": 3, "timestep_spacing": "trailing", "lower_order_final": False},
    "plms": {"skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": True},
    "unipc": {"solver_order": 3, "use_karras_sigmas": True, "disable_corrector": [1], "predict_x0": False},
    "lms": {"use_karras_sigmas": True, "timestep_spacing": "leading", "steps_offset": 1},
    "kdpm2": {"use_karras_sigmas": True},
    "dpmpp_2s": {"final_sigmas_type": "sigma_min", "solver_order": 3, "lower_order_final": True},
    "kdpm2_ancestral": {"timestep_spacing": "trailing"},
    "tcd": {"original_inference_steps": 25, "clip_sample": True},
}
#: The same where states or noise levels are of other kinds, by class.
OTHERS = {
    "FlowMatchEulerDiscreteScheduler": {"shift": 3.0, "shift_terminal": 0.1, "use_beta_sigmas": True},
    "FlowMatchHeunDiscreteScheduler": {"shift": 2.0},
    "FlowMatchLCMScheduler": {"shift": 3.0, "use_karras_sigmas": True},
    "EDMEulerScheduler": {"sigma_data": 1.0, "sigma_max": 40.0, "rho": 3.0, "final_sigmas_type": "sigma_min"},
    "EDMDPMSolverMultistepScheduler": {
        "solver_order": 3,
        "sigma_schedule": "exponential",
        "prediction_type": "v_prediction",
        "lower_order_final": False,
    },
    "CMStochasticIterativeScheduler": {"s_noise": 0.9, "rho": 5.0, "clip_denoised": False},
}
#: Files that many people have: by what they are of.
KNOWN = {
    "zero-snr": (
        "DDIMScheduler",
        {
            **SCALED,
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
            "clip_sample": False,
        },
    ),
    "pixels": ("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2", "thresholding": True, "sample_max_value": 1.5}),
    "ends": (
        "EulerDiscreteScheduler",
        {**SCALED, "use_exponential_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0},
    ),
    "wan": (
        "UniPCMultistepScheduler",
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0},
    ),
}


def written(name, options):
    """The configuration that diffusers writes of a scheduler."""
    return json.loads(peers.scheduler_class(name)(**options).to_json_string())


def saved(sampler):
    """That of one of ``CLASSES``."""
    return written(CLASSES[sampler], {**SCALED, **OWN[sampler]})


def files():
    """All of them, by name."""
    others = {name: written(name, options) for name, options in OTHERS.items()}
    known = {name: written(*made) for name, made in KNOWN.items()}
    return {**{name: saved(name) for name in CLASSES}, **others, **known}
