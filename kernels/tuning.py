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
    """The fastest tile configuration of ``fused_step`` with these arguments, timed on copies of them.

    For a loop whose steps have the same shapes: call it once before the loop, and pass its result as ``config``. The
    result of a step does not depend on it. It synchronizes with the device.

    Args:
        x: State, (B, ...), as for ``fused_step``.
        prediction: Network output, (R, ...).
        rows: One row a slot, (B, 16), or one for all, (16,).
        **arguments: Other arguments of ``fused_step``, save ``config``.

    Returns:
        The configuration with the smallest median time.

    Raises:
        TypeError: If ``config`` is given, or ``fused_step`` raises it for these arguments.
        ValueError: If Triton interprets, or ``fused_step`` raises it for these arguments.

    Examples:
        >>> import torch
        >>> from stepfuse.kernels import fused_step, tune
        >>> table = sf.samplers.ddim(sf.NoiseSchedule.linear(), steps=4)
        >>> x, eps = torch.randn(2, 8, 4, 64, 64, device="cuda")  # doctest: +SKIP
        >>> row = torch.from_numpy(table[0].copy()).cuda()  # doctest: +SKIP
        >>> x = fused_step(x, eps, row, config=tune(x, eps, row))  # doctest: +SKIP
    """
    if triton.knobs.runtime.interpret:
        raise ValueError("nothing can be timed under TRITON_INTERPRET: unset it, or leave config out")
    if "config" in arguments:
        raise TypeError("config must be left out: it is what is looked for")
    require_state("x", x)
    copies: dict[int, Any] = {}  # by the tensor's id: where out is x, both are the same copy

    def copied(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return copies.setdefault(id(value), value.clone())

    x, prediction, rows = copied(x), copied(prediction), copied(rows)
    arguments = {name: copied(value) for name, value in arguments.items()}
    slots, n = x.shape[0], x[:1].numel()
    usual = config_for(slots, n)
    # The usual one first, since min takes the first of equals.
    configs = sorted(layouts_for(n).values(), key=lambda config: config != usual)
    if len(configs) == 1:
        return usual
    return min(configs, key=lambda config: _seconds(x, prediction, rows, arguments, config))


def _seconds(x: torch.Tensor, prediction: torch.Tensor, rows: torch.Tensor, arguments: Any, config: Config) -> float:
    def run() -> None:
        fused_step(x, prediction, rows, config=config, **arguments)

    with on_device(x.device):
        torch.cuda.synchronize()  # the copies are made on another stream than the timed one
        # In a graph, since a small step takes less time than its launch from the host.
        return float(triton.testing.do_bench_cudagraph(run, rep=5, return_mode="median"))
