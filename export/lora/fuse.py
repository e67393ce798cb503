"""LoRAs fused into a bundle's weights, and taken out again to the byte."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stepfuse.arguments import number
from stepfuse.bundle.bundle import DENOISER, Bundle
from stepfuse.bundle.folder import read_folder
from stepfuse.bundle.new_folder import copy_files, write_folder
from stepfuse.bundle.pipeline_info import TEXT_ENCODER
from stepfuse.display import printable
from stepfuse.errors import BundleError, ExportError
from stepfuse.export.lora.file import Lora, Pair, first_of
from stepfuse.export.lora.names import DENOISER_PART, TEXT_PARTS, names_of_denoiser, names_of_text_encoder
from stepfuse.export.lora.store import LORAS, ORIGINALS, QUANTIZATION, store, stored
from stepfuse.export.onnx.initializers import Float, Weight, read_weights, transposed_weights

log = logging.getLogger("stepfuse")

_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}
_FAMILIES = {"joint_blocks": "Stable Diffusion 3", "double_blocks": "Flux", "single_transformer_blocks": "Flux"}


def fuse_lora(
    bundle: str | os.PathLike[str] | Bundle,
    lora: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    scale: float = 1.0,
    strict: bool = True,
    overwrite: bool = False,
) -> Bundle:
    """Writes a bundle with a LoRA added to its weights: W + scale * (alpha / rank) * up @ down.

    The sum is taken in float32 and rounded once, to the weights' own type. The original weights are kept in the bundle,
    so that ``unfuse_lora`` restores them to the byte; another LoRA is fused on top.

    Args:
        bundle: A folder, or a bundle, written by ``stepfuse.export``.
        lora: A safetensors file, with keys as diffusers, PEFT or kohya's scripts write them.
        out: The folder to make.
        scale: Strength; a negative one subtracts it.
        strict: Whether all of it must fit; False fuses what does and logs how much.
        overwrite: Whether a bundle that is there already is replaced, which may be ``bundle`` itself.

    Raises:
        ExportError: If the file is no LoRA of a supported kind, does not fit, or leaves a weight that is not finite; or
            the bundle is in int8. The message of one that does not fit counts the pairs that do, names those that do
            not, and says which base model it seems made for.
        BundleError: If the bundle cannot be used, or ``out`` is there already.
        ValueError: If ``scale`` is not finite.

    Examples:
        >>> from stepfuse.export import fuse_lora
        >>> bundle = fuse_lora("my-pipeline", "style.safetensors", "my-style", scale=0.8)
        >>> sf.Bundle.load("my-style").pipeline is None
        False
    """
    scale = number("scale", scale)
    loaded = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    adapter = Lora.read(lora)
    changes = _match(loaded, adapter, scale, strict)
    before = stored(loaded)
    touched = {change.key: change.target.weight for change in changes}

    def change_copy(folder: Path) -> None:
        for change in changes:
            weight = _moved(change.target.weight, folder)
            weight.write(change.apply(weight.read()))
        store(folder / ORIGINALS, touched | before)

    earlier = loaded.export.get(LORAS, [])
    if not isinstance(earlier, list):
        raise BundleError(f"{loaded.path}: export: {LORAS} must be a list, got {type(earlier).__name__}")
    record = {"name": adapter.name, "sha256": adapter.sha256, "scale": scale}
    return _rewrite(loaded, out, [*earlier, record], change_copy, overwrite)


def unfuse_lora(
    bundle: str | os.PathLike[str] | Bundle, out: str | os.PathLike[str], *, overwrite: bool = False
) -> Bundle:
    """Writes a bundle without the LoRAs that were fused into it: its ONNX files are the original ones, to the byte.

    Args:
        bundle: A folder, or a bundle, that ``fuse_lora`` wrote.
        out: The folder to make.
        overwrite: Whether a bundle that is there already is replaced, which may be ``bundle`` itself.

    Raises:
        ExportError: If there is no LoRA in it.
        BundleError: If the bundle cannot be used, or ``out`` is there already.

    Examples:
        >>> from stepfuse.export import fuse_lora, unfuse_lora
        >>> styled = fuse_lora("my-pipeline", "style.safetensors", "with-style")
        >>> plain = unfuse_lora("with-style", "without-style")
    """
    loaded = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    before = stored(loaded)
    if not before:
        raise ExportError(f"{loaded.path} must hold weights from before a LoRA ({ORIGINALS}), got none")
    weights = {model: read_weights(loaded.path / model)[0] for model in {model for model, _ in before}}
    for (model, name), original in before.items():
        found = weights[model].get(name)
        if found is None or (found.shape, found.dtype) != (original.shape, original.dtype):
            raise BundleError(f"{loaded.path / ORIGINALS}: {name} must be a weight of {model} in its shape, but is not")

    def restore(folder: Path) -> None:
        for (model, name), original in before.items():
            _moved(weights[model][name], folder).write(original.read())

    return _rewrite(loaded, out, [], restore, overwrite)


def lora_weights(
    bundle: str | os.PathLike[str] | Bundle,
    lora: str | os.PathLike[str],
    *,
    scale: float = 1.0,
    model: str = DENOISER,
) -> dict[str, Float]:
    """The weights of one ONNX file that a LoRA changes, with the LoRA added.

    ``stepfuse.export.tensorrt.refit_engine`` replaces those of a TensorRT plan by them.

    Args:
        bundle: As in ``fuse_lora``.
        lora: As in ``fuse_lora``.
        scale: Strength.
        model: ``denoiser.onnx`` or ``text_encoder.onnx``.

    Returns:
        Values by initializer, in the shape and type that the graph has them in.

    Raises:
        ExportError: As in ``fuse_lora``.
        ValueError: As in ``fuse_lora``.

    Examples:
        >>> from stepfuse.export import lora_weights
        >>> weights = lora_weights("my-pipeline", "style.safetensors", scale=0.8)
        >>> len(weights)
        1
    """
    scale = number("scale", scale)
    loaded = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    changes = _match(loaded, Lora.read(lora), scale, strict=True)
    mine = [(change.target.weight, change) for change in changes if change.target.model == model]
    return {weight.name: change.apply(weight.read()) for weight, change in mine}


@dataclass(frozen=True)
class _TargetWeight:
    """A weight that a pair may change.

    Attributes:
        model: The ONNX file.
        weight: Where its values lie.
        transposed: Whether the graph holds the matrix as (in, out).
    """

    model: str
    weight: Weight
    transposed: bool

    @property
    def sizes(self) -> tuple[int, ...]:
        """As ``Pair.sizes``."""
        sizes = self.weight.shape[::-1] if self.transposed else self.weight.shape
        return sizes[:2] if math.prod(sizes[2:]) == 1 else sizes


@dataclass(frozen=True)
class _Change:
    """A weight and what is added to it."""

    target: _TargetWeight
    pair: Pair
    scale: float

    @property
    def key(self) -> tuple[str, str]:
        """ONNX file and initializer."""
        return self.target.model, self.target.weight.name

    def apply(self, values: Float) -> Float:
        """The weight with the pair added, in its own type."""
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
            delta = self.pair.delta(self.scale)
            delta = delta.T if self.target.transposed else delta
            changed: Float = (values.astype(np.float32) + delta.reshape(values.shape)).astype(values.dtype)
        if not np.isfinite(changed).all():
            raise ExportError(f"{self.pair.key}: scale {self.scale:g} must leave {values.dtype} weights finite")
        return changed


_Modules = Mapping[tuple[str, str], _TargetWeight]


def _match(bundle: Bundle, lora: Lora, scale: float, strict: bool) -> list[_Change]:
    """The weights that a LoRA changes, in the file's order."""
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    if QUANTIZATION in bundle.export:
        raise ExportError(f"{bundle.path} is in int8, which a LoRA cannot be added to: fuse it first, then quantize")
    modules = _modules(bundle)
    changes: dict[tuple[str, str], _Change] = {}
    unknown, misshapen, unread = list(lora.strays), [], 0
    for pair in lora.pairs:
        target = modules.get((pair.part, pair.module))
        if target is None and _is_unread(pair, modules):
            unread += 1
        elif target is None:
            unknown.append(pair.key)
        elif target.sizes != pair.sizes:
            misshapen.append(f"{pair.key} ({pair.sizes} for {target.sizes})")
        elif (change := _Change(target, pair, scale)).key in changes:
            raise ExportError(f"{lora.name}: {pair.key} and {changes[change.key].pair.key} are the same weight")
        else:
            changes[change.key] = change
    if (unknown or misshapen) and (strict or not changes):
        raise ExportError(_misfit(bundle, lora, modules, len(changes) + unread, unknown, misshapen))
    if unknown or misshapen:
        log.warning(
            "%s: %d of %d pairs fit %s and are fused", printable(lora.name), len(changes), len(lora.pairs), bundle.path
        )
    if not changes:
        raise ExportError(f"{lora.name} must change a weight that {bundle.path} reads, got none")
    return list(changes.values())


def _is_unread(pair: Pair, modules: _Modules) -> bool:
    """Whether a pair changes a text encoder's last layer, which is not exported where penultimate states are used.

    The whole layer is missing then, and the one before it has a weight of the same name and shape.
    """
    match = re.fullmatch(r"(.*layers_)(\d+)(_.*)", pair.module)
    if pair.part not in TEXT_PARTS or match is None:
        return False
    before = modules.get((pair.part, f"{match[1]}{int(match[2]) - 1}{match[3]}"))
    is_missing = not any(part == pair.part and name.startswith(f"{match[1]}{match[2]}_") for part, name in modules)
    return is_missing and before is not None and before.sizes == pair.sizes


def _modules(bundle: Bundle) -> _Modules:
    """Every weight by part and flat module name, under each of its names."""
    found: dict[tuple[str, str], _TargetWeight] = {}
    for model in (DENOISER, TEXT_ENCODER):
        if model not in bundle.files:
            continue
        weights, metadata = read_weights(bundle.path / model)
        transposed = transposed_weights(metadata)
        parts: dict[str, dict[str, _TargetWeight]] = {}
        for name, weight in weights.items():
            if name.endswith(".weight") and weight.file.name in bundle.files:
                part, module = _part_of(model, name.removesuffix(".weight"))
                parts.setdefault(part, {})[module] = _TargetWeight(model, weight, name in transposed)
        for part, targets in parts.items():
            names = names_of_denoiser(targets) if model == DENOISER else names_of_text_encoder(targets)
            found |= {(part, alias): targets[module] for alias, module in names.items()}
    return found


def _part_of(model: str, module: str) -> tuple[str, str]:
    """The part of the pipeline that a module of an ONNX file is of, and its name in there."""
    if model == DENOISER:
        return DENOISER_PART, module
    part, _, rest = module.partition(".")
    return (part, rest) if part in TEXT_PARTS else (TEXT_PARTS[0], module)


def _misfit(
    bundle: Bundle, lora: Lora, modules: _Modules, fitting: int, unknown: list[str], misshapen: list[str]
) -> str:
    reasons = [f"{lora.name} must fit {bundle.path}: {fitting} of {len(lora.pairs)} pairs do"]
    if unknown:
        reasons.append(f"this pipeline has no {first_of(unknown)}")
    if misshapen:
        reasons.append(f"another shape have {first_of(misshapen)}")
    width = next((target.sizes[1] for (_, name), target in modules.items() if _is_cross(name)), None)
    if (made_for := _made_for(lora, width)) is not None:
        here = f", and this network has cross-attention of width {width}" if width else ""
        reasons.append(f"it seems made for {made_for}{here}")
    return "; ".join(reasons)


def _made_for(lora: Lora, width: int | None) -> str | None:
    """The base model that a LoRA was trained for, by its widths or names; None if it is not known to be another one."""
    for pair in lora.pairs:
        if _is_cross(pair.module) and (its := pair.sizes[1]) != width:
            return f"{_WIDTHS.get(its, 'another base')} (cross-attention of width {its})"
        for mark, family in _FAMILIES.items():
            if mark in pair.module:
                return family
    return None


def _is_cross(module: str) -> bool:
    return module.endswith("attn2_to_k")


def _rewrite(
    bundle: Bundle,
    out: str | os.PathLike[str],
    loras: list[dict[str, Any]],
    change: Callable[[Path], None],
    overwrite: bool,
) -> Bundle:
    """Writes a copy of a bundle and changes weights in it, without its plans, which have the old weights."""
    files = {name: file for name, file in bundle.opened.items() if name != ORIGINALS}
    manifest = read_folder(bundle.path, verify=False)
    export = {key: value for key, value in bundle.export.items() if key != LORAS}
    if loras:
        export[LORAS] = loras
    manifest.pop("export", None)
    if export:
        manifest["export"] = export

    def fill(folder: Path) -> None:
        copy_files(folder, files)
        change(folder)

    written = write_folder(Path(out), manifest, fill, partial(Bundle.load, verify=False), overwrite=overwrite)
    return replace(written, path=Path(out))


def _moved(weight: Weight, folder: Path) -> Weight:
    return replace(weight, file=folder / weight.file.name)
