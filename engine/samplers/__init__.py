"""Samplers: each a function from a noise schedule to a StepTable.

With x the state, e the network's output and d the clean sample that it implies, a step is
``x' = q_x x + q_d d + q_e e + q_h h + q_z z``. Each function writes its paper's update in these terms, in float64. A
module holds a family of them; ``inversion`` has the way back, from an image to its noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from stepfuse.samplers.ancestral import NaiveSamplerWarning, ddpm, ddpm_strided
from stepfuse.samplers.consistency import lcm, tcd
from stepfuse.samplers.consistency_models import cm
from stepfuse.samplers.diffusion_sde import dpmpp_2m_sde, dpmpp_3m_sde, dpmpp_sde
from stepfuse.samplers.dpm_solver import dpmpp_2m
from stepfuse.samplers.dpm_solver_singlestep import dpmpp_2s
from stepfuse.samplers.edm import edm_dpmpp_2m, edm_euler
from stepfuse.samplers.implicit import ddim
from stepfuse.samplers.inversion import ddim_inverse
from stepfuse.samplers.linear_multistep import deis, ipndm, lms, plms
from stepfuse.samplers.midpoint import kdpm2, kdpm2_ancestral
from stepfuse.samplers.predictor_corrector import unipc
from stepfuse.samplers.probability_flow import euler, euler_ancestral, heun
from stepfuse.samplers.published import AYS
from stepfuse.samplers.stochastic_adams import sa_solver
from stepfuse.samplers.table import StepTable

SAMPLERS: Mapping[str, Callable[..., StepTable]] = {
    function.__name__: cast("Callable[..., StepTable]", function)
    for function in (
        ddim,
        ddpm,
        ddpm_strided,
        dpmpp_2m,
        dpmpp_2m_sde,
        dpmpp_3m_sde,
        dpmpp_sde,
        sa_solver,
        lcm,
        heun,
        euler,
        euler_ancestral,
        deis,
        plms,
        unipc,
        lms,
        kdpm2,
        kdpm2_ancestral,
        ipndm,
        dpmpp_2s,
        tcd,
        *(edm_euler, edm_dpmpp_2m, cm),
    )
}
"""Samplers by name, as ``Engine.sample(sampler=...)`` takes them.

Examples:
    >>> table = sf.samplers.SAMPLERS["ddim"](sf.NoiseSchedule.linear(), steps=20)
    >>> table.sampler
    'ddim'
"""

__all__ = [
    "AYS",
    "SAMPLERS",
    "NaiveSamplerWarning",
    "cm",
    "ddim",
    "ddim_inverse",
    "ddpm",
    "ddpm_strided",
    "deis",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "edm_dpmpp_2m",
    "edm_euler",
    "euler",
    "euler_ancestral",
    "heun",
    "ipndm",
    "kdpm2",
    "kdpm2_ancestral",
    "lcm",
    "lms",
    "plms",
    "sa_solver",
    "tcd",
    "unipc",
]
