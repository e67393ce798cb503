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
    from stepfuse.integrations.diffusers.compilation import compile as compile
    from stepfuse.integrations.diffusers.schedulers import (
        DDIMInverseScheduler,
        DDIMScheduler,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        LCMScheduler,
    )

__all__ = [
    "DDIMInverseScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "LCMScheduler",
    "compile",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "compilation" if name == "compile" else "schedulers"
    try:
        return getattr(import_module(f"{__name__}.{module}"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "diffusers"):
            raise
        raise ModuleNotFoundError(
            f"{__name__}.{name} needs {error.name}: {pip_install('export')}", name=error.name
        ) from error
