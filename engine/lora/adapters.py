"""The LoRAs of a running network: registered by name, kept as factors, and chosen by each request."""

from __future__ import annotations

import itertools
import math
import os
import threading
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stepfuse.arguments import number
from stepfuse.display import NAME, brief, byte_size, did_you_mean, listed, printable
from stepfuse.errors import LoraError

if TYPE_CHECKING:  # what reads files and graphs is imported where LoRAs are: most engines have none
    from stepfuse.lora.file import Pair
    from stepfuse.lora.graph import AdaptableWeight

Factors = dict[str, npt.NDArray[Any]]

_LARGEST = float(np.finfo(np.float32).max)

#: The number of the network without any LoRA.
PLAIN = 0

#: Memory of the LoRAs whose files the caller has named: what they take, they are to have.
UNBOUNDED = 1 << 50


@dataclass(frozen=True)
class LoraInfo:
    """A LoRA that is registered.

    Attributes:
        name: What requests call it.
        sha256: Digest of its file.
        nbytes: Memory that its factors take.
        weights: How many weights it changes.

    Examples:
        >>> sf.LoraInfo("style", "0" * 64, 4096, 1).weights
        1
    """

    name: str
    sha256: str
    nbytes: int
    weights: int


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA, with its factors as the graph takes them.

    Attributes:
        info: What it is.
        pairs: ``down`` and ``up``, its own scale in the latter, by ONNX file and weight.
    """

    info: LoraInfo
    pairs: Mapping[tuple[str, str], tuple[npt.NDArray[Any], npt.NDArray[Any]]]


@dataclass(frozen=True, eq=False)
class AdapterSet:
    """What a request has chosen: LoRAs, each with a scale that is not 0. Equal choices are one object.

    It keeps the factors: a LoRA that is removed is gone when the last request that has chosen it is.

    Attributes:
        number: Its number in the loop, from 1 on.
        scales: Each LoRA and its scale, by name.
    """

    number: int
    scales: Mapping[str, tuple[Adapter, float]]

    @property
    def record(self) -> dict[str, dict[str, Any]]:
        """What a picture says of it: ``sha256`` of each file and ``scale``, by name."""
        return {name: {"sha256": one.info.sha256, "scale": scale} for name, (one, scale) in self.scales.items()}


class Adapters:
    """Calls from any thread are safe.

    Args:
        where: The bundle, for messages.
        weights: Those of the networks that are adapted.
        most_bytes: Memory that all factors together may take, those of removed LoRAs that requests still use included.
    """

    def __init__(self, where: object, weights: Iterable[AdaptableWeight], most_bytes: int) -> None:
        from stepfuse.lora.match import Targets

        self._where = where
        self._weights = list(weights)
        self._models = {one.model for one in self._weights}
        self._targets = Targets(where, self._weights)
        self._most_bytes = most_bytes
        self._numbers = itertools.count(PLAIN + 1)
        self._named: dict[str, Adapter] = {}
        self._alive: weakref.WeakSet[Adapter] = weakref.WeakSet()
        self._sets: weakref.WeakValueDictionary[tuple[Any, ...], AdapterSet] = weakref.WeakValueDictionary()
        self._numbered: weakref.WeakValueDictionary[int, AdapterSet] = weakref.WeakValueDictionary()
        self._changing = threading.Lock()
        largest = max((math.prod(one.down_shape(1)) + math.prod(one.up_shape(1)) for one in self._weights), default=0)
        self._zeros = np.zeros(largest, np.float32)  # of all weights that a set leaves as they are

    @property
    def infos(self) -> dict[str, LoraInfo]:
        """The LoRAs that are registered, by name."""
        return {name: one.info for name, one in list(self._named.items())}

    def add(self, name: str, file: str | os.PathLike[str]) -> None:
        """Registers a LoRA. Requests that run are not held up: the file is read on the caller's thread.

        Raises:
            LoraError: If the file is no LoRA of a supported kind or does not fit, changes a network or a weight that is
                not adapted here, or its factors do not fit the memory.
            ValueError: If the name is empty, longer than 200 characters, or registered already.
            TypeError: If it is no text.
        """
        if not isinstance(name, str):
            raise TypeError(f"name must be a text, got {name!r}")
        if not name or len(name) > NAME or printable(name) != name:
            raise ValueError(f"name must have 1 to {NAME} printable characters, got {printable(name, NAME)!r}")
        self._require_new(name)
        adapter = self._read(name, file)
        with self._changing:
            self._require_new(name)
            taken = sum(one.info.nbytes for one in self._alive)
            if taken + adapter.info.nbytes > self._most_bytes:
                held = ", ".join(f"{one.name} {byte_size(one.nbytes)}" for one in self.infos.values()) or "none"
                removed = taken - sum(one.nbytes for one in self.infos.values())
                used = f", and {byte_size(removed)} of removed ones that requests use" if removed else ""
                raise LoraError(
                    f"the factors of {name} must fit lora_bytes={self._most_bytes} beside those of others, got"
                    f" {byte_size(adapter.info.nbytes)} beside {held}{used}: remove one, or load with more lora_bytes"
                )
            self._alive.add(adapter)
            self._named[name] = adapter

    def remove(self, name: str) -> None:
        """Takes a LoRA's name away. Requests that have chosen it keep its factors to their end.

        Raises:
            ValueError: If none has this name.
        """
        with self._changing:
            self._require(name, "name")
            del self._named[name]

    def choose(self, given: Any) -> AdapterSet | None:
        """The set that a request's ``lora`` stands for, or one that was chosen before; None: the network as it is.

        Raises:
            ValueError: If a name is not registered, or a scale not finite.
            TypeError: If it is no mapping of names to numbers.
        """
        if given is None or isinstance(given, AdapterSet):
            return given
        if not isinstance(given, Mapping):
            raise TypeError(f"lora must be a dict of scales by name, got {brief(given)}")
        scales = {}
        with self._changing:
            for name, scale in given.items():
                adapter = self._require(name, "lora")
                value = float(number("lora's scales", scale))
                if not abs(value) <= _LARGEST:
                    raise ValueError(f"lora must have finite scales, at most {_LARGEST:g}, got {value:g} for {name}")
                if value != 0:
                    scales[name] = adapter, value
            if not scales:
                return None
            key = tuple(sorted((id(adapter), scale) for adapter, scale in scales.values()))
            found = self._sets.get(key)
            if found is None:
                found = AdapterSet(next(self._numbers), dict(sorted(scales.items())))
                self._sets[key] = self._numbered[found.number] = found
            return found

    def factors(self, which: int, model: str) -> Factors:
        """What the inputs of an adapted graph are given for a set: by name, all of them.

        Args:
            which: Number of a set that a request holds, or ``PLAIN``.
            model: The ONNX file.
        """
        chosen = () if which == PLAIN else self._numbered[which].scales.values()
        found: Factors = {}
        for weight in self._weights:
            if weight.model != model or not weight.layer:
                continue
            pairs = [(*adapter.pairs[weight.key], scale) for adapter, scale in chosen if weight.key in adapter.pairs]
            found[weight.down], found[weight.up] = _combined(weight, pairs) if pairs else self._none(weight)
        return found

    def _none(self, weight: AdaptableWeight) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Factors of rank 1 that are zero."""
        shapes = weight.down_shape(1), weight.up_shape(1)
        down, up = (self._zeros.view(weight.dtype)[: math.prod(shape)].reshape(shape) for shape in shapes)
        return down, up

    def _require_new(self, name: str) -> None:
        if name in self._named:
            raise ValueError(f"name must be new, got {name!r}, which is registered: remove it first")

    def _require(self, name: Any, argument: str) -> Adapter:
        adapter = self._named.get(name) if isinstance(name, str) else None
        if adapter is None:
            known = listed(self._named) or "none"
            hint = did_you_mean(name, self._named) if isinstance(name, str) else ""
            raise ValueError(f"{argument} must be of the LoRAs that are registered ({known}), got {brief(name)}{hint}")
        return adapter

    def _read(self, name: str, file: str | os.PathLike[str]) -> Adapter:
        from stepfuse.lora.file import Lora
        from stepfuse.lora.names import TEXT_PARTS

        lora = Lora.read(file)
        bake = f"fuse it into a bundle: stepfuse lora {self._where} {file} -o NEW-BUNDLE"
        texts = [pair.key for pair in lora.pairs if pair.part in TEXT_PARTS]
        if texts and len(self._models) == 1:
            raise LoraError(
                f"{lora.name} must change the denoiser alone, got {texts[0]}: an Engine runs no text encoder; load the"
                f" pipeline with TextToImage, or {bake}"
            )
        pairs = {}
        for weight, pair in self._targets.match(lora).changes:
            if not weight.layer:
                raise LoraError(f"{lora.name} must change weights of plain layers, got {pair.key}: {bake}")
            pairs[weight.key] = _factors(weight, pair)
        nbytes = sum(factor.nbytes for pair in pairs.values() for factor in pair)
        return Adapter(LoraInfo(name, lora.sha256, nbytes, len(pairs)), pairs)


def require_adapters(adapters: Adapters | None) -> Adapters:
    """Those of a network that has some.

    Raises:
        ValueError: If it has none.
    """
    if adapters is None:
        raise ValueError("LoRAs must be given memory to be added to a running network: load it with lora_bytes")
    return adapters


def chosen(adapters: Adapters | None, given: Any) -> AdapterSet | None:
    """As ``Adapters.choose``; of a network without adapters, nothing can be chosen.

    Raises:
        ValueError: As that does, or if something is chosen of a network without adapters.
        TypeError: As that does.
    """
    if adapters is not None:
        return adapters.choose(given)
    if given:
        raise ValueError(
            f"lora must be left out where LoRAs have no memory, got {brief(given)}: load with lora_bytes, on the CPU in"
            " ONNX Runtime, and add_lora"
        )
    return None


def _factors(weight: AdaptableWeight, pair: Pair) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The matrices of a pair as the graph takes them."""
    rank = len(pair.down)
    down, up = pair.down.reshape(rank, -1), np.float32(pair.scale) * pair.up.reshape(-1, rank)
    if weight.layer == "MatMul":
        down, up = down.T, up.T
    with np.errstate(over="ignore"):  # what is not finite is refused
        found = [
            np.ascontiguousarray(factor, weight.dtype).reshape(shape)
            for factor, shape in ((down, weight.down_shape(rank)), (up, weight.up_shape(rank)))
        ]
    if not all(np.isfinite(factor).all() for factor in found):
        raise LoraError(f"{pair.key}: factors must be finite in {weight.dtype}, as the network computes")
    return found[0], found[1]


def _combined(
    weight: AdaptableWeight, pairs: list[tuple[npt.NDArray[Any], npt.NDArray[Any], float]]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The factors whose product is the sum of the pairs' products, each times its scale."""
    ranks = (0, 1) if weight.layer == "Conv" else (1, 0)  # the axes
    with np.errstate(over="ignore"):  # in float16: the sample fails, as its state is not finite
        ups = [(up * np.float32(scale)).astype(up.dtype) for _, up, scale in pairs]
    downs = [down for down, _, _ in pairs]
    if len(pairs) == 1:
        return downs[0], ups[0]
    return np.concatenate(downs, ranks[0]), np.concatenate(ups, ranks[1])
