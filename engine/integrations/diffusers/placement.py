"""Where a pipeline runs: on a GPU, a compiled call needs the whole of its networks there."""

from __future__ import annotations

from typing import Any

#: Components that predict, or have a part in each prediction. A pipeline has some of them.
NETWORKS = ("unet", "transformer", "transformer_2", "controlnet")

_ORIGINAL = "or call pipe.original, which diffusers steps"


def runs_on_gpu(pipe: Any, network: str | None) -> bool:
    """Whether a pipeline runs on a GPU, where a compiled call is to leave its states.

    Args:
        pipe: The pipeline.
        network: Name of the component that predicts; None: it has none.

    Raises:
        ValueError: If it does, and accelerate moves one of its networks during a call, or one is on several devices,
            or on another one.
        ModuleNotFoundError: If it does, and Triton is missing.
    """
    if network is None or pipe._execution_device.type != "cuda":
        return False
    for name, module in networks_of(pipe).items():
        _check(name, module, pipe._execution_device)
    from stepfuse.kernels import fused_step  # noqa: F401, which says what is to be installed

    return True


def networks_of(pipe: Any) -> dict[str, Any]:
    """Those of ``NETWORKS`` that a pipeline has, by name."""
    found = {name: getattr(pipe, name, None) for name in NETWORKS}
    return {name: module for name, module in found.items() if module is not None}


def _check(network: str, module: Any, device: Any) -> None:
    hooked = next((part for part in module.modules() if getattr(part, "_hf_hook", None) is not None), None)
    if hooked is not None:
        raise ValueError(
            f"{network} must stay on {device} during a call, got a hook of accelerate that moves it"
            f" ({type(hooked._hf_hook).__name__}), as of enable_model_cpu_offload, enable_sequential_cpu_offload or"
            f" device_map: pipe.remove_all_hooks() and pipe.to('cuda'), {_ORIGINAL}"
        )
    found = {parameter.device for parameter in module.parameters()}
    if len(found) > 1 or any(one.type != "cuda" or device.index not in (None, one.index) for one in found):
        where = ", ".join(sorted(map(str, found)))
        raise ValueError(
            f"{network} must be on {device} as a whole, where the pipeline runs, got {where}: pipe.to('cuda'),"
            f" {_ORIGINAL}"
        )
