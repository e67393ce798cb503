"""What the experiments share: who is drawn by which sampler, and what comes out compared."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.bundle.model_info import ModelInfo
from stepfuse.engine import Engine
from stepfuse.samplers import NaiveSamplerWarning
from stepfuse.samplers.table import StepTable
from stepfuse.serving.in_flight import Images

#: A sampler's name and more arguments of ``Engine.sample``: steps, eta, guidance_scale, options of its own.
SamplerChoice = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Choice:
    """A sampler as it runs on a model.

    Attributes:
        sampler: Its name.
        table: Compiled.
        options: What tells it from its neighbours, to be read: ``eta 0, guidance 3``.
    """

    sampler: str
    table: StepTable
    options: str

    @property
    def steps(self) -> int:
        """Its number of steps."""
        return int(self.table.options.get("steps") or len(self.table))


@dataclass
class Passes:
    """Network passes, as an engine counted them."""

    count: int = field(default=0)


def choose(engine: Engine, samplers: Sequence[SamplerChoice]) -> list[Choice]:
    """Compiles each; arguments that are left out are the model's defaults.

    Raises:
        ValueError: If there is none, or one cannot run on the model; the message carries the value received.
        TypeError: If a sampler does not have one of its options.
    """
    if not samplers:
        raise ValueError("samplers must be at least one, got none")
    with naive_allowed():
        tables = [(name, arguments, engine.table(sampler=name, **arguments)) for name, arguments in samplers]
    return [Choice(name, table, _options_text(arguments, table)) for name, arguments, table in tables]


@contextmanager
def naive_allowed() -> Iterator[None]:
    """Inside, the naive sampler does not warn: an experiment that shows what is wrong with it knows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NaiveSamplerWarning)
        yield


@contextmanager
def counted(engine: Engine) -> Iterator[Passes]:
    """Counts the network passes that the engine makes inside. Others who use it meanwhile are counted too."""
    passes, before = Passes(), engine.stats()["network_passes"]
    yield passes
    passes.count = engine.stats()["network_passes"] - before


def in_turn(info: ModelInfo, n: int) -> list[int] | None:
    """The model's classes in turn, one a sample; None for a model that does not name its classes."""
    names = _class_names(info)
    return [i % len(names) for i in range(n)] if names else None


def class_labels(info: ModelInfo, cond: Any, n: int) -> npt.NDArray[np.int64] | None:
    """The class that each of ``n`` samples is told, shape (n,); None if one is told none, or there are no classes."""
    names = _class_names(info)
    if not names or cond is None:
        return None
    [(name, given)] = info.cond.items()
    values = np.array(given.values(name, cond[name] if isinstance(cond, Mapping) else cond, n), dtype=np.int64)
    return values if values.shape == (n,) and ((values >= 0) & (values < len(names))).all() else None


def told(info: ModelInfo, cond: Any) -> str:
    """What one sample is told, to be read; empty if nothing."""
    labels = class_labels(info, cond, 1)
    if labels is not None:
        return _class_names(info)[int(labels[0])]
    return "" if cond is None else str(cond)


def pairwise_mse(samples: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Mean squared error between every two of n samples, shape (n (n - 1) / 2,)."""
    flat = flattened(samples)
    first, second = np.triu_indices(len(flat), k=1)
    return np.array([mse(flat[i], flat[j]) for i, j in zip(first, second, strict=True)])


def mse(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Mean squared difference of two arrays of one shape."""
    return float(np.mean((np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)) ** 2))


def variance(runs: npt.ArrayLike) -> float:
    """Unbiased variance over the first axis, averaged over all others; exactly 0 where all runs are equal."""
    return float(np.asarray(runs, dtype=np.float64).var(axis=0, ddof=1).mean())


def identical(runs: Images) -> bool:
    """Whether all runs are the same bits."""
    bits = np.ascontiguousarray(runs).view(np.uint32)
    return bool((bits == bits[:1]).all())


def flattened(samples: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Each sample as a row of float64."""
    array = np.asarray(samples, dtype=np.float64)
    return array.reshape(len(array), -1)


def require_count(name: str, value: int, least: int) -> None:
    """Refuses what is no whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _class_names(info: ModelInfo) -> tuple[str, ...]:
    return next(iter(info.cond.values())).names if len(info.cond) == 1 else ()


def _options_text(arguments: Mapping[str, Any], table: StepTable) -> str:
    shown = {name: value for name, value in arguments.items() if name not in ("steps", "eta", "guidance_scale")}
    if "eta" in table.options:
        shown = {"eta": table.options["eta"], **shown}
    if (scale := table.options.get("guidance_scale", 1.0)) != 1:
        shown["guidance"] = scale
    each = (f"{value:g}" if isinstance(value, float) else str(value) for value in shown.values())
    return ", ".join(f"{name} {value}" for name, value in zip(shown, each, strict=True))
