"""Which of our samplers each class of diffusers' schedulers is, and what reads its entries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stepfuse.integrations.readers.dpm_solver import read_dpmpp_2m, read_dpmpp_2s
from stepfuse.integrations.readers.edm import read_cm, read_edm_dpmpp_2m, read_edm_euler
from stepfuse.integrations.readers.entries import Entries
from stepfuse.integrations.readers.flow import FLOW, flow_sampler_of
from stepfuse.integrations.readers.multistep import read_deis, read_plms, read_sa_solver, read_unipc
from stepfuse.integrations.readers.one_step import read_ddim, read_ddpm, read_lcm, read_tcd
from stepfuse.integrations.readers.probability_flow import (
    read_dpmpp_sde,
    read_euler,
    read_euler_ancestral,
    read_heun,
    read_kdpm2,
    read_lms,
)
from stepfuse.samplers.schedule import NoiseSchedule

DPM_SOLVER = "DPMSolverMultistepScheduler"
#: Each ``algorithm_type`` by which a class is one of our samplers.
ALGORITHMS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    DPM_SOLVER: {"dpmpp_2m": ("dpmsolver++", "dpmsolver"), "dpmpp_2m_sde": ("sde-dpmsolver++",)},
    "DPMSolverSinglestepScheduler": {"dpmpp_2s": ("dpmsolver++", "dpmsolver")},
    "DEISMultistepScheduler": {"deis": ("deis", "dpmsolver++", "dpmsolver")},
    "SASolverScheduler": {"sa_solver": ("data_prediction", "noise_prediction")},
}


def with_algorithm(name: str, sampler: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration by which a class is this sampler: ``from_config(config, algorithm_type=...)``."""
    kinds = ALGORITHMS.get(name, {}).get(sampler)
    if kinds is None or config.get("algorithm_type") in kinds:
        return config
    return {**config, "algorithm_type": kinds[0]}


READERS: dict[str, Callable[[Entries, NoiseSchedule], dict[str, Any]]] = {
    "DDIMScheduler": read_ddim,
    "DDPMScheduler": read_ddpm,
    DPM_SOLVER: read_dpmpp_2m,
    "LCMScheduler": read_lcm,
    "HeunDiscreteScheduler": read_heun,
    "EulerDiscreteScheduler": read_euler,
    "EulerAncestralDiscreteScheduler": read_euler_ancestral,
    FLOW: lambda config, schedule: flow_sampler_of(config),
    "DEISMultistepScheduler": read_deis,
    "DPMSolverSDEScheduler": read_dpmpp_sde,
    "SASolverScheduler": read_sa_solver,
    "PNDMScheduler": read_plms,
    "UniPCMultistepScheduler": read_unipc,
    "LMSDiscreteScheduler": read_lms,
    "DPMSolverSinglestepScheduler": read_dpmpp_2s,
    "KDPM2DiscreteScheduler": read_kdpm2,
    "KDPM2AncestralDiscreteScheduler": read_kdpm2,
    "TCDScheduler": read_tcd,
    "FlowMatchHeunDiscreteScheduler": lambda config, schedule: flow_sampler_of(config),
    "FlowMatchLCMScheduler": lambda config, schedule: flow_sampler_of(config),
    "EDMEulerScheduler": read_edm_euler,
    "EDMDPMSolverMultistepScheduler": read_edm_dpmpp_2m,
    "CMStochasticIterativeScheduler": read_cm,
}
