"""diffusers' schedulers and pipelines, stepped by stepfuse: change one line of existing code.

    from stepfuse.integrations.diffusers import DDIMScheduler         # instead of: from diffusers import DDIMScheduler
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)

    pipe = stepfuse.integrations.diffusers.compile(pipe)              # or the whole loop

``DDIMPipeline`` converts its ``scheduler`` argument to diffusers' own class: set ``pipe.scheduler`` afterwards. The
names here are loaded on first use, and need torch and diffusers: the extra ``stepfuse[export]``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stepfuse.extras import pip_install

if TYPE_CHECKING:
    from stepfuse.integrations.diffusers.brownian_scheduler import DPMSolverSDEScheduler as DPMSolverSDEScheduler
    from stepfuse.integrations.diffusers.cogvideox_schedulers import CogVideoXDDIMScheduler as CogVideoXDDIMScheduler
    from stepfuse.integrations.diffusers.cogvideox_schedulers import CogVideoXDPMScheduler as CogVideoXDPMScheduler
    from stepfuse.integrations.diffusers.compilation import compile as compile
    from stepfuse.integrations.diffusers.pndm_schedulers import IPNDMScheduler as IPNDMScheduler
    from stepfuse.integrations.diffusers.pndm_schedulers import PNDMScheduler as PNDMScheduler
    from stepfuse.integrations.diffusers.schedulers import (
        DDIMInverseScheduler,
        DDIMScheduler,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        LCMScheduler,
    )
    from stepfuse.integrations.diffusers.table_schedulers import (
        CMStochasticIterativeScheduler,
        DEISMultistepScheduler,
        DPMSolverSinglestepScheduler,
        EDMDPMSolverMultistepScheduler,
        EDMEulerScheduler,
        EulerAncestralDiscreteScheduler,
        EulerDiscreteScheduler,
        FlowMatchEulerDiscreteScheduler,
        FlowMatchHeunDiscreteScheduler,
        FlowMatchLCMScheduler,
        HeunDiscreteScheduler,
        KDPM2AncestralDiscreteScheduler,
        KDPM2DiscreteScheduler,
        LMSDiscreteScheduler,
        SASolverScheduler,
        TCDScheduler,
        UniPCMultistepScheduler,
    )

__all__ = [
    "CMStochasticIterativeScheduler",
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
    "DDIMInverseScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "HeunDiscreteScheduler",
    "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
    "compile",
]

# By name, where not in one of the two that hold most.
_MODULES = {
    "CogVideoXDDIMScheduler": "cogvideox_schedulers",
    "CogVideoXDPMScheduler": "cogvideox_schedulers",
    "compile": "compilation",
    "DPMSolverSDEScheduler": "brownian_scheduler",
    "IPNDMScheduler": "pndm_schedulers",
    "PNDMScheduler": "pndm_schedulers",
}
_ROW_BY_ROW = (
    "DDIMInverseScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "LCMScheduler",
)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _MODULES.get(name, "schedulers" if name in _ROW_BY_ROW else "table_schedulers")
    try:
        return getattr(import_module(f"{__name__}.{module}"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "torchsde", "diffusers"):
            raise
        how = "pip install torchsde" if error.name == "torchsde" else pip_install("export")
        raise ModuleNotFoundError(f"{__name__}.{name} needs {error.name}: {how}", name=error.name) from error
