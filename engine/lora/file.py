"""A LoRA as a file: pairs of small matrices, each a change of one weight (Hu et al., 2021, section 4.1)."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.display import NAME
from stepfuse.errors import LoraError
from stepfuse.lora.names import split_name
from stepfuse.lora.safetensors import Tensor, read_safetensors
from stepfuse.lora.scales import Scales, read_scales

_BEHIND = r"(?:(?<=_lora)|(?<=_lora[12]))"  # of modules' names that say what they are themselves
_DOWN = re.compile(
    rf"(.+?)(?:\.lora_A(?:\.[^.]+)?|\.lora_down|\.lora\.down|\.lora_linear_layer\.down|{_BEHIND}\.down)\.weight"
)
_UP = re.compile(rf"(.+?)(?:\.lora_B(?:\.[^.]+)?|\.lora_up|\.lora\.up|\.lora_linear_layer\.up|{_BEHIND}\.up)\.weight")
_ALPHA = re.compile(r"(.+?)(?:\.lora|\.lora_linear_layer)?\.alpha")

#: Kinds of adapters that are no LoRA, by patterns of their keys.
_OTHERS = {
    r"dora_scale|lora_magnitude_vector": "DoRA",
    r"hada_w\d": "LoHa",
    r"lokr_w\d|lokr_t\d": "LoKr",
    r"lora_mid|lora_t1|lora_t2": "LoCon with a Tucker core",
    r"oft_blocks|oft_diag|oft_R": "OFT",
    r"on_input": "IA3",
    r"lora_embedding_": "a LoRA of an embedding",
    r"\.(diff|diff_b|w_norm|b_norm)$": "a full difference of weights",
    r"\.(lora_B|lora_up|lora\.up)(\..+)?\.bias$": "a LoRA with biases",
}
_MAX_KEY = 1000  # characters
_MATRICES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ""}
_NUMBERS = {"I64": "<i8", "I32": "<i4"}  # alphas may be whole numbers


@dataclass(frozen=True)
class Pair:
    """The change of one weight: ``scale * up @ down``, of shape (out, in) or (out, in, height, width).

    Attributes:
        key: The module as the file names it.
        part: ``denoiser``, ``text_encoder``, ``text_encoder_2`` or ``text_encoder_3``.
        module: The module's name, flat.
        down: (rank, in) or (rank, in, height, width).
        up: (out, rank) or (out, rank, 1, 1).
        scale: alpha / rank, or alpha / sqrt(rank) where the file says so (rsLoRA; Kalajdzievski, 2023).
    """

    key: str
    part: str
    module: str
    down: npt.NDArray[np.float32]
    up: npt.NDArray[np.float32]
    scale: float

    @property
    def sizes(self) -> tuple[int, ...]:
        """(out, in) of a matrix and of a 1 x 1 convolution, (out, in, height, width) of others."""
        kernel = self.down.shape[2:]
        return (len(self.up), self.down.shape[1], *(() if math.prod(kernel) == 1 else kernel))

    def split(self, sizes: Sequence[int]) -> list[Pair]:
        """The changes of several weights whose rows, of these numbers, follow each other in this one."""
        ends = list(itertools.accumulate(sizes))
        return [replace(self, up=self.up[end - size : end]) for size, end in zip(sizes, ends, strict=True)]

    def delta(self, scale: float) -> npt.NDArray[np.float32]:
        """The change, times ``scale``, as a matrix (out, in * height * width) in float32."""
        rank = len(self.down)
        product = self.up.reshape(-1, rank) @ self.down.reshape(rank, -1)
        return np.float32(self.scale * scale) * product


@dataclass(frozen=True)
class Lora:
    """A LoRA file, read.

    Attributes:
        name: The file's name, without its ending.
        sha256: Of the file.
        pairs: One for each weight.
        strays: Keys that belong to no pair.
    """

    name: str
    sha256: str
    pairs: tuple[Pair, ...]
    strays: tuple[str, ...]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Lora:
        """Reads a safetensors file with the keys of diffusers, PEFT or kohya's scripts.

        Raises:
            LoraError: If it is no such file, or an adapter of another kind; the message names it.
        """
        file = Path(path)
        if file.suffix != ".safetensors":
            raise LoraError(f"a LoRA must be a .safetensors file, got {file}: pickled ones are not read")
        if not file.is_file():
            raise LoraError(f"a LoRA must be a file, got {file}, which is not there")
        try:
            content = file.read_bytes()
            tensors, metadata = read_safetensors(content)
        except OSError as error:
            raise LoraError(f"{file} is not readable: {error}") from error
        except ValueError as error:
            raise LoraError(f"{file} must be a safetensors file: {error}") from error
        if long := next((key for key in tensors if len(key) > _MAX_KEY), None):
            raise LoraError(f"{file}: keys must have at most {_MAX_KEY} characters, got {long[:NAME]!r}...")
        _refuse_others(file, tensors)
        pairs, strays = _pairs(file, tensors, read_scales(file, metadata))
        if not pairs:
            raise LoraError(f"{file} must hold pairs of matrices of a LoRA, got {first_of(tensors) or 'no keys'}")
        return cls(file.stem, hashlib.sha256(content).hexdigest(), pairs, strays)


def first_of(names: Iterable[str], count: int = 3) -> str:
    """The first few names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - count} more" if len(listed) > count else ""
    return ", ".join(listed[:count]) + more


def _refuse_others(file: Path, keys: Mapping[str, Any]) -> None:
    for pattern, kind in _OTHERS.items():
        if found := next((key for key in keys if re.search(pattern, key)), None):
            raise LoraError(f"{file} must be a LoRA of linear layers and convolutions, got {kind} ({found})")


def _pairs(file: Path, tensors: Mapping[str, Tensor], scales: Scales) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    downs: dict[str, Tensor] = {}
    ups: dict[str, Tensor] = {}
    alphas: dict[str, Tensor] = {}
    strays = []
    for key, tensor in tensors.items():
        for pattern, found in ((_DOWN, downs), (_UP, ups), (_ALPHA, alphas)):
            if match := pattern.fullmatch(key):
                if match[1] in found:
                    raise LoraError(f"{file}: {match[1]} must have one matrix of each kind, got another in {key}")
                found[match[1]] = tensor
                break
        else:
            strays.append(key)
    for name in sorted(downs.keys() ^ ups.keys()):
        raise LoraError(f"{file}: {name} must have both matrices of a pair, got one")
    strays += [f"{name}.alpha" for name in alphas.keys() - downs.keys()]
    pairs = []
    for name in sorted(downs):  # safetensors has no order
        down, up = (_array(file, name, one, _MATRICES) for one in (downs[name], ups[name]))
        if down.ndim not in (2, 4) or up.ndim not in (2, 4) or up.shape[1:] != (len(down), *[1] * (up.ndim - 2)):
            raise LoraError(f"{file}: {name} must be a pair (rank, in) and (out, rank), got {down.shape}, {up.shape}")
        alpha = _alpha(file, name, alphas[name]) if name in alphas else None
        part, module = split_name(name)
        pairs.append(Pair(name, part, module, down, up, scales.scale(name, len(down), alpha)))
    return tuple(pairs), tuple(sorted(strays))


def _alpha(file: Path, name: str, tensor: Tensor) -> float:
    values = _array(file, f"{name}.alpha", tensor, {**_MATRICES, **_NUMBERS})
    if values.size != 1:
        raise LoraError(f"{file}: {name}.alpha must be one number, got shape {values.shape}")
    return float(values.reshape(()))


def _array(file: Path, name: str, tensor: Tensor, dtypes: Mapping[str, str]) -> npt.NDArray[np.float32]:
    kind, shape, data = tensor
    if kind == "BF16":  # the upper half of a float32
        values = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    elif kind in dtypes:
        with np.errstate(over="ignore"):
            values = np.frombuffer(data, dtypes[kind]).astype(np.float32)
    else:
        raise LoraError(f"{file}: {name} must be numbers of 16 bits or more, {' or '.join(dtypes)}, got {kind}")
    if not values.size or not np.isfinite(values).all():
        raise LoraError(f"{file}: {name} must be finite numbers, got NaN, infinity or nothing")
    return values.reshape(shape)
