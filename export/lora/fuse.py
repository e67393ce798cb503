"""LoRAs fused into a bundle's weights, and taken out again to the byte."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stepfuse.arguments import number
from stepfuse.bundle.bundle import DENOISER, QUANTIZATION, Bundle
from stepfuse.bundle.folder import read_folder
from stepfuse.bundle.new_folder import copy_files, write_folder
from stepfuse.bundle.pipeline_info import TEXT_ENCODER
from stepfuse.bundle.transposed import transposed_weights
from stepfuse.display import printable
from stepfuse.errors import BundleError, ExportError
from stepfuse.export.lora.store import LORAS, ORIGINALS, store, stored
from stepfuse.export.onnx.initializers import Float, Weight, read_weights
from stepfuse.lora.file import Lora, Pair
from stepfuse.lora.match import Targets, sizes_of

log = logging.getLogger("stepfuse")


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
    touched = {change.target.key: change.target.weight for change in changes}

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
    def key(self) -> tuple[str, str]:
        """ONNX file and initializer."""
        return self.model, self.weight.name

    @property
    def sizes(self) -> tuple[int, ...]:
        """As ``Pair.sizes``."""
        return sizes_of(self.weight.shape, transposed=self.transposed)


@dataclass(frozen=True)
class _Change:
    """A weight and what is added to it."""

    target: _TargetWeight
    pair: Pair
    scale: float

    def apply(self, values: Float) -> Float:
        """The weight with the pair added, in its own type."""
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
            delta = self.pair.delta(self.scale)
            delta = delta.T if self.target.transposed else delta
            changed: Float = (values.astype(np.float32) + delta.reshape(values.shape)).astype(values.dtype)
        if not np.isfinite(changed).all():
            raise ExportError(f"{self.pair.key}: scale {self.scale:g} must leave {values.dtype} weights finite")
        return changed


def _match(bundle: Bundle, lora: Lora, scale: float, strict: bool) -> list[_Change]:
    """The weights that a LoRA changes, in the file's order."""
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    if QUANTIZATION in bundle.export:
        raise ExportError(f"{bundle.path} is in int8, which a LoRA cannot be added to: fuse it first, then quantize")
    found = Targets(bundle.path, _weights(bundle)).match(lora, strict=strict)
    if found.misfits:
        fitting = f"{found.fitting} of {len(lora.pairs)}"
        log.warning("%s: %s pairs fit %s and are fused", printable(lora.name), fitting, bundle.path)
    return [_Change(target, pair, scale) for target, pair in found.changes]


def _weights(bundle: Bundle) -> Iterator[_TargetWeight]:
    """Every weight of the denoiser and the text encoder."""
    for model in (DENOISER, TEXT_ENCODER):
        if model not in bundle.files:
            continue
        weights, metadata = read_weights(bundle.path / model)
        transposed = transposed_weights(metadata)
        for name, weight in weights.items():
            if weight.file.name in bundle.files:
                yield _TargetWeight(model, weight, name in transposed)


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
