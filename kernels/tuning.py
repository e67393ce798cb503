"""The fastest configuration of the step on the GPU at hand, for torch tensors. Needs ``stepfuse[kernels]``."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.testing

from stepfuse.kernels.checks import on_device, require_state
from stepfuse.kernels.configs import Config, config_for, layouts_for
from stepfuse.kernels.step import fused_step


def tune(x: torch.Tensor, prediction: torch.Tensor, rows: torch.Tensor, **arguments: Any) -> Config:
    """Times ``fused_step`` with these arguments in each configuration, on copies: nothing that is given changes.

    For a loop whose steps are alike: call it once before, and pass what it returns as ``config``. The result of a step
    does not depend on it. It waits for the device.

    Args:
        x: As of ``fused_step``, like ``prediction``, ``rows`` and all others but ``config``.
        prediction: Network output.
        rows: One row a slot, or one for all.
        **arguments: What else ``fused_step`` is to be given.

    Returns:
        The configuration of the least median time.

    Raises:
        TypeError: If ``config`` is given, or what ``fused_step`` raises.
        ValueError: If Triton interprets, or what ``fused_step`` raises.
    """
    if triton.knobs.runtime.interpret:
        raise ValueError("nothing can be timed under TRITON_INTERPRET: unset it, or leave config out")
    if "config" in arguments:
        raise TypeError("config must be left out: it is what is looked for")
    require_state("x", x)
    copies: dict[int, Any] = {}  # of one tensor one: out may be x

    def copied(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return copies.setdefault(id(value), value.clone())

    x, prediction, rows = copied(x), copied(prediction), copied(rows)
    arguments = {name: copied(value) for name, value in arguments.items()}
    slots, n = x.shape[0], x[:1].numel()
    usual = config_for(slots, n)
    # The usual one first: of equals it is taken.
    configs = sorted(layouts_for(n).values(), key=lambda config: config != usual)
    if len(configs) == 1:
        return usual
    return min(configs, key=lambda config: _seconds(x, prediction, rows, arguments, config))


def _seconds(x: torch.Tensor, prediction: torch.Tensor, rows: torch.Tensor, arguments: Any, config: Config) -> float:
    def run() -> None:
        fused_step(x, prediction, rows, config=config, **arguments)

    with on_device(x.device):
        torch.cuda.synchronize()  # it is timed on another stream than the one that makes the copies
        # As a graph: a small step is over before the next could be launched.
        return float(triton.testing.do_bench_cudagraph(run, rep=5, return_mode="median"))
