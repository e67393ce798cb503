"""What a module's prediction depends on, in short: to see whether it has changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import torch

_VALUES = 64  # of each parameter
_ROUNDING = 1e-6  # of the magnitude: what is left where a LoRA was fused and taken out again
#: Types of settings that are values.
PLAIN = (bool, int, float, str, type(None))
# torch's own, a configuration, and what fuse_lora notes beside the weights that it changes.
_NOT_SETTINGS = {*vars(torch.nn.Module()), "_internal_dict", "lora_scale"} - {"training"}

Fingerprint = list[tuple[str, Any]]


@dataclass(frozen=True, eq=False)
class _Sums:
    """Of some values of a parameter, and of their magnitudes; equal within float32's rounding."""

    total: float
    magnitude: float

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Sums) and abs(self.total - other.total) <= _ROUNDING * self.magnitude


def fingerprint(module: torch.nn.Module) -> Fingerprint:
    """Names of a module's parameters with sums of some of their values, and its parts' settings.

    Weights that are loaded, fused or cast change the first. A LoRA's scale, an adapter that is disabled, FreeU,
    another attention processor and diffusers' own hooks, as of caches, change the second; torch's hooks do not.
    """
    found: Fingerprint = []
    for name, parameter in module.named_parameters():
        values = parameter.detach().reshape(-1)
        some = values[:: max(1, len(values) // _VALUES)]
        some = some.cpu().double()
        found.append((name, _Sums(float(some.sum()), float(some.abs().sum()))))
    return found + settings(module)


def settings(module: torch.nn.Module) -> Fingerprint:
    """The settings of a module's parts, by the names of the parts: plain values, and types of what else they hold."""
    found: Fingerprint = []
    for name, part in module.named_modules():
        of_part = {key: _setting(value) for key, value in vars(part).items() if key not in _NOT_SETTINGS}
        of_part["_diffusers_hook"] = cache_hooks(part)
        found.append((name, {key: value for key, value in of_part.items() if not _is_void(value)}))
    return found


def cache_hooks(part: torch.nn.Module) -> list[str]:
    """Names of diffusers' own hooks on a part: caches, group offloading. Pipelines leave a registry without any."""
    return list(getattr(getattr(part, "_diffusers_hook", None), "hooks", ()))


def tensors(module: torch.nn.Module) -> Fingerprint:
    """Where a module's parameters and buffers lie, and what they are, by name: the same after a change in place.

    No value is read, so that nothing waits for a GPU.
    """
    return [(name, (_address(one), one.shape, one.dtype, one.device)) for name, one in _tensors(module)]


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _address(tensor: torch.Tensor) -> int:
    try:
        return int(tensor.data_ptr())
    except RuntimeError:  # quantized ones may have no memory of their own
        return id(tensor)


def _is_void(value: Any) -> bool:
    """Whether a setting is what is left of one that was taken back."""
    return value is None or value is False or value in ({}, [])


def _setting(value: Any) -> Any:
    """A plain value, what a collection holds of them, or else a type, how many it holds, and its plain attributes."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Mapping):
        return {str(key): _setting(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [_setting(one) for one in value]
    if isinstance(value, torch.Tensor):
        return type(value).__name__, 0
    held = {name: one for name, one in getattr(value, "__dict__", {}).items() if isinstance(one, PLAIN)}
    return type(value).__name__, len(value) if isinstance(value, Sized) else 0, held
