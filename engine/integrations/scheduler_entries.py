"""The entries of diffusers' scheduler configurations: those of the classes that are read, and what may stand beside."""

from __future__ import annotations

import math
from typing import Any

_BETAS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
}
_THRESHOLD = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
_LEADING = {"timestep_spacing": "leading", "steps_offset": 0}
_LINSPACE = {"timestep_spacing": "linspace", "steps_offset": 0}
_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_ZERO_SNR = {"rescale_betas_zero_snr": False}
_LATENT = {"beta_start": 0.00085, "beta_end": 0.012}
_DISTILLED = {
    **_BETAS,
    **_LATENT,
    **_CLIP,
    **_THRESHOLD,
    **_LEADING,
    **_ZERO_SNR,
    "beta_schedule": "scaled_linear",
    "original_inference_steps": 50,
    "clip_sample": False,
    "set_alpha_to_one": True,
    "timestep_scaling": 10.0,
}
_FLOW = {
    **_SIGMAS,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "invert_sigmas": False,
    "shift_terminal": None,
    "time_shift_type": "exponential",
}
_EDM = {
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "sigma_schedule": "karras",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rho": 7.0,
    "final_sigmas_type": "zero",
}

#: The arguments of each class's constructor with what they are by default.
DEFAULTS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {**_BETAS, **_CLIP, **_THRESHOLD, **_LEADING, **_ZERO_SNR, "set_alpha_to_one": True},
    "DDPMScheduler": {**_BETAS, **_CLIP, **_THRESHOLD, **_LEADING, **_ZERO_SNR, "variance_type": "fixed_small"},
    "DPMSolverMultistepScheduler": {
        **_BETAS,
        **_THRESHOLD,
        **_LINSPACE,
        **_ZERO_SNR,
        **_SIGMAS,
        "solver_order": 2,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
        "use_lu_lambdas": False,
        "use_flow_sigmas": False,
        "flow_shift": 1.0,
        "final_sigmas_type": "zero",
        "lambda_min_clipped": -math.inf,
        "variance_type": None,
        "use_dynamic_shifting": False,
        "time_shift_type": "exponential",
    },
    "LCMScheduler": _DISTILLED,
    "HeunDiscreteScheduler": {**_BETAS, **_LATENT, **_CLIP, **_LINSPACE, **_SIGMAS, "clip_sample": False},
    "EulerDiscreteScheduler": {
        **_BETAS,
        **_LINSPACE,
        **_SIGMAS,
        **_ZERO_SNR,
        "interpolation_type": "linear",
        "sigma_min": None,
        "sigma_max": None,
        "timestep_type": "discrete",
        "final_sigmas_type": "zero",
    },
    "EulerAncestralDiscreteScheduler": {**_BETAS, **_LINSPACE, **_ZERO_SNR},
    "FlowMatchEulerDiscreteScheduler": {**_FLOW, "stochastic_sampling": False},
    "DEISMultistepScheduler": {
        **_BETAS,
        **_THRESHOLD,
        **_LINSPACE,
        **_SIGMAS,
        "solver_order": 2,
        "algorithm_type": "deis",
        "solver_type": "logrho",
        "lower_order_final": True,
        "use_flow_sigmas": False,
        "flow_shift": 1.0,
        "use_dynamic_shifting": False,
        "time_shift_type": "exponential",
    },
    "DPMSolverSDEScheduler": {**_BETAS, **_LATENT, **_LINSPACE, **_SIGMAS, "noise_sampler_seed": None},
    "SASolverScheduler": {
        **_BETAS,
        **_THRESHOLD,
        **_LINSPACE,
        **_SIGMAS,
        "predictor_order": 2,
        "corrector_order": 2,
        "tau_func": None,
        "algorithm_type": "data_prediction",
        "lower_order_final": True,
        "use_flow_sigmas": False,
        "flow_shift": 1.0,
        "lambda_min_clipped": -math.inf,
        "variance_type": None,
    },
    "PNDMScheduler": {**_BETAS, **_LEADING, "skip_prk_steps": False, "set_alpha_to_one": False},
    "UniPCMultistepScheduler": {
        **_BETAS,
        **_THRESHOLD,
        **_LINSPACE,
        **_ZERO_SNR,
        **_SIGMAS,
        "solver_order": 2,
        "predict_x0": True,
        "solver_type": "bh2",
        "lower_order_final": True,
        "disable_corrector": [],
        "solver_p": None,
        "use_flow_sigmas": False,
        "flow_shift": 1.0,
        "final_sigmas_type": "zero",
        "use_dynamic_shifting": False,
        "time_shift_type": "exponential",
        "sigma_min": None,
        "sigma_max": None,
        "shift_terminal": None,
    },
    "LMSDiscreteScheduler": {**_BETAS, **_LINSPACE, **_SIGMAS},
    "DPMSolverSinglestepScheduler": {
        **_BETAS,
        **_THRESHOLD,
        **_SIGMAS,
        "solver_order": 2,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": False,
        "use_flow_sigmas": False,
        "flow_shift": 1.0,
        "final_sigmas_type": "zero",
        "lambda_min_clipped": -math.inf,
        "variance_type": None,
        "use_dynamic_shifting": False,
        "time_shift_type": "exponential",
    },
    "KDPM2DiscreteScheduler": {**_BETAS, **_LATENT, **_LINSPACE, **_SIGMAS},
    "KDPM2AncestralDiscreteScheduler": {**_BETAS, **_LATENT, **_LINSPACE, **_SIGMAS},
    "TCDScheduler": _DISTILLED,
    "FlowMatchHeunDiscreteScheduler": {"num_train_timesteps": 1000, "shift": 1.0},
    "FlowMatchLCMScheduler": {**_FLOW, "scale_factors": None, "upscale_mode": "bicubic"},
    "EDMEulerScheduler": _EDM,
    "EDMDPMSolverMultistepScheduler": {
        **_EDM,
        **_THRESHOLD,
        "solver_order": 2,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
    },
    "CMStochasticIterativeScheduler": {
        "num_train_timesteps": 40,
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "sigma_data": 0.5,
        "s_noise": 1.0,
        "rho": 7.0,
        "clip_denoised": True,
    },
}

#: Entries of other schedulers, which stay in a file that is saved again under one of these classes: ``from_config``
#: leaves them out, and so do we.
LEFT_OVER = {
    *("sigma_data", "sigma_schedule", "rho"),  # EDM
    *("set_alpha_to_zero", "clip_denoised", "s_noise", "snr_shift_scale", "eta"),
}

#: Entries that diffusers once wrote and reads no more, with the values that change nothing; None: any value.
FORMER: dict[str, tuple[Any, ...] | None] = {
    "tensor_format": None,
    "timestep_values": (None,),
    "predict_epsilon": (True,),  # otherwise the network predicts the sample, which prediction_type says today
}

#: All entries that some scheduler has or had.
KNOWN = LEFT_OVER.union(FORMER, *DEFAULTS.values())
