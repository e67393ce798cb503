"""Which weights of a pipeline the pairs of a LoRA change, and why one does not fit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from stepfuse.bundle.bundle import DENOISER
from stepfuse.errors import LoraError
from stepfuse.lora.file import Lora, Pair, first_of
from stepfuse.lora.names import (
    DENOISER_PART,
    TEXT_PARTS,
    fused_modules,
    names_of_denoiser,
    names_of_text_encoder,
)

_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}
_FAMILIES = {"joint_blocks": "Stable Diffusion 3", "double_blocks": "Flux", "single_transformer_blocks": "Flux"}
_WEIGHT = ".weight"


class Target(Protocol):
    """A weight that a pair may change."""

    @property
    def key(self) -> tuple[str, str]:
        """ONNX file and initializer."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """As ``Pair.sizes``."""


AnyTarget = TypeVar("AnyTarget", bound=Target)


def sizes_of(shape: tuple[int, ...], *, transposed: bool) -> tuple[int, ...]:
    """As ``Pair.sizes``, of a weight of this shape, which the graph may hold transposed."""
    sizes = shape[::-1] if transposed else shape
    return sizes[:2] if all(size == 1 for size in sizes[2:]) else sizes


@dataclass(frozen=True)
class Match(Generic[AnyTarget]):
    """The weights that a LoRA changes, each with its pair or the rows of one, in the file's order.

    Attributes:
        changes: Weights and what changes them.
        fitting: How many pairs of the file fit.
        misfits: How many do not, and how many of its keys are of none.
    """

    changes: list[tuple[AnyTarget, Pair]]
    fitting: int
    misfits: int


class Targets(Generic[AnyTarget]):
    """The weights of a pipeline's networks, by part and flat module name, under each of their names.

    Args:
        where: The bundle, for messages.
        weights: All that a pair may change.
    """

    def __init__(self, where: object, weights: Iterable[AnyTarget]) -> None:
        self._where = where
        parts: dict[tuple[str, str], dict[str, AnyTarget]] = {}
        for weight in weights:
            model, name = weight.key
            if name.endswith(_WEIGHT):
                part, module = _part_of(model, name.removesuffix(_WEIGHT))
                parts.setdefault((model, part), {})[module] = weight
        self._modules: dict[tuple[str, str], list[AnyTarget]] = {}  # several that are one in the first code
        for (model, part), targets in parts.items():
            names = names_of_denoiser(targets) if model == DENOISER else names_of_text_encoder(targets)
            self._modules |= {(part, alias): [targets[module]] for alias, module in names.items()}
            if model == DENOISER:
                fused = fused_modules(targets)
                self._modules |= {(part, alias): [targets[one] for one in modules] for alias, modules in fused.items()}

    def match(self, lora: Lora, *, strict: bool = True) -> Match[AnyTarget]:
        """The weights that a LoRA changes.

        Args:
            lora: The LoRA.
            strict: Whether all of it must fit.

        Raises:
            LoraError: If it does not fit; the message counts the pairs that do, names those that do not, and says which
                base model it seems made for.
        """
        changes: dict[tuple[str, str], tuple[AnyTarget, Pair]] = {}
        unknown, misshapen, fitting = list(lora.strays), [], 0
        for pair in lora.pairs:
            targets = self._modules.get((pair.part, pair.module), [])
            if not targets and not self._is_unread(pair):
                unknown.append(pair.key)
            elif targets and (sizes := _sizes_of_all(targets)) != pair.sizes:
                misshapen.append(f"{pair.key} ({pair.sizes} for {sizes})")
            else:
                fitting += 1
                rows = pair.split([target.sizes[0] for target in targets])
                for target, change in zip(targets, rows, strict=True):
                    if target.key in changes:
                        raise LoraError(f"{lora.name}: {pair.key} and {changes[target.key][1].key} are the same weight")
                    changes[target.key] = target, change
        if (unknown or misshapen) and (strict or not changes):
            raise LoraError(self._misfit(lora, fitting, unknown, misshapen))
        if not changes:
            raise LoraError(f"{lora.name} must change a weight that {self._where} reads, got none")
        return Match(list(changes.values()), fitting, len(unknown) + len(misshapen))

    def _is_unread(self, pair: Pair) -> bool:
        """Whether a pair changes a text encoder's last layer, which is not exported where penultimate states are used.

        The whole layer is missing then, and the one before it has a weight of the same name and shape.
        """
        match = re.fullmatch(r"(.*layers_)(\d+)(_.*)", pair.module)
        if pair.part not in TEXT_PARTS or match is None:
            return False
        before = self._modules.get((pair.part, f"{match[1]}{int(match[2]) - 1}{match[3]}"), [])
        layer = f"{match[1]}{match[2]}_"
        is_missing = not any(part == pair.part and name.startswith(layer) for part, name in self._modules)
        return is_missing and [one.sizes for one in before] == [pair.sizes]

    def _misfit(self, lora: Lora, fitting: int, unknown: list[str], misshapen: list[str]) -> str:
        reasons = [f"{lora.name} must fit {self._where}: {fitting} of {len(lora.pairs)} pairs do"]
        if unknown:
            reasons.append(f"this pipeline has no {first_of(unknown)}")
        if misshapen:
            reasons.append(f"another shape have {first_of(misshapen)}")
        width = next((one.sizes[1] for (_, name), [one, *_] in self._modules.items() if _is_cross(name)), None)
        own = [name for _, name in self._modules]
        if (made_for := _made_for(lora, width, own)) is not None:
            here = f", and this network has cross-attention of width {width}" if width else ""
            reasons.append(f"it seems made for {made_for}{here}")
        return "; ".join(reasons)


def _part_of(model: str, module: str) -> tuple[str, str]:
    """The part of the pipeline that a module of an ONNX file is of, and its name in there."""
    if model == DENOISER:
        return DENOISER_PART, module
    part, _, rest = module.partition(".")
    return (part, rest) if part in TEXT_PARTS else (TEXT_PARTS[0], module)


def _sizes_of_all(targets: Sequence[Target]) -> tuple[int, ...]:
    """As ``Pair.sizes``, of weights whose rows follow each other."""
    return (sum(target.sizes[0] for target in targets), *targets[0].sizes[1:])


def _made_for(lora: Lora, width: int | None, modules: Iterable[str]) -> str | None:
    """The base model that a LoRA was trained for, by its widths or names; None if it is not known to be another one."""
    families = {mark: one for mark, one in _FAMILIES.items() if not any(mark in module for module in modules)}
    for pair in lora.pairs:
        if _is_cross(pair.module) and (its := pair.sizes[1]) != width:
            return f"{_WIDTHS.get(its, 'another base')} (cross-attention of width {its})"
        for mark, family in families.items():
            if mark in pair.module:
                return family
    return None


def _is_cross(module: str) -> bool:
    return module.endswith("attn2_to_k")
