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
from stepfuse.samplers.dpm_solver import dpmpp_2m
from stepfuse.samplers.edm import edm_dpmpp_2m, edm_euler
from stepfuse.samplers.implicit import ddim
from stepfuse.samplers.inversion import ddim_inverse
from stepfuse.samplers.linear_multistep import deis, plms
from stepfuse.samplers.predictor_corrector import unipc
from stepfuse.samplers.probability_flow import euler, euler_ancestral, heun
from stepfuse.samplers.table import StepTable

#: Samplers by name, as ``Engine.sample(sampler=...)`` takes them.
SAMPLERS: Mapping[str, Callable[..., StepTable]] = {
    function.__name__: cast("Callable[..., StepTable]", function)
    for function in (
        *(ddim, ddpm, ddpm_strided, dpmpp_2m, lcm, heun, euler, euler_ancestral, deis, plms, unipc),
        tcd,
        *(edm_euler, edm_dpmpp_2m, cm),
    )
}

__all__ = [
    "SAMPLERS",
    "NaiveSamplerWarning",
    "cm",
    "ddim",
    "ddim_inverse",
    "ddpm",
    "ddpm_strided",
    "deis",
    "dpmpp_2m",
    "edm_dpmpp_2m",
    "edm_euler",
    "euler",
    "euler_ancestral",
    "heun",
    "lcm",
    "plms",
    "tcd",
    "unipc",
]
