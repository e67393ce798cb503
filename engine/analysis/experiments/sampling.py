"""What the experiments share: samplers as they run on a model and are named, conditioning by class, counted passes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.analysis.experiments.wording import plural
from stepfuse.arguments import whole_number
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.engine import Engine
from stepfuse.samplers import NaiveSamplerWarning
from stepfuse.samplers.table import StepTable

#: A sampler's name and more arguments of ``Engine.sample``: steps, eta, guidance_scale, options of its own.
SamplerChoice = tuple[str, Mapping[str, Any]]

#: How many samples of each row a result keeps as pictures.
KEPT_IMAGES = 10

#: The samplers' names in figures and sentences.
SAMPLER_TITLES = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "ddpm_strided": "naive strided DDPM",
    "dpmpp_2m": "DPM-Solver++ 2M",
    "euler": "Euler",
    "heun": "Heun",
    "lcm": "LCM",
}


@dataclass(frozen=True)
class Choice:
    """A sampler as it runs on a model.

    Attributes:
        sampler: Its name.
        table: The compiled sampler.
        options: Eta, guidance and the arguments that were given, as text: ``eta 0, guidance 3``.
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
    """Network passes that an engine has counted; see ``counted``."""

    count: int = field(default=0)


def choose(engine: Engine, samplers: Sequence[SamplerChoice]) -> list[Choice]:
    """Compiles each sampler; arguments that are left out are the model's defaults.

    Raises:
        ValueError: If ``samplers`` is empty, a name is unknown, an option is out of its sampler's range, or a model
            without conditioning is to be guided.
        TypeError: If a sampler has no option of a name that is given, or a value is of the wrong type.
    """
    if not samplers:
        raise ValueError("samplers must be at least one, got none")
    with naive_allowed():
        tables = [(name, arguments, engine.table(sampler=name, **arguments)) for name, arguments in samplers]
    return [Choice(name, table, _options_text(arguments, table)) for name, arguments, table in tables]


@contextmanager
def naive_allowed() -> Iterator[None]:
    """Silences ``NaiveSamplerWarning`` inside: an experiment runs the naive sampler to show its error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NaiveSamplerWarning)
        yield


@contextmanager
def counted(engine: Engine) -> Iterator[Passes]:
    """Counts the network passes that the engine computes inside, those of concurrent requests included."""
    passes, before = Passes(), engine.stats()["network_passes"]
    yield passes
    passes.count = engine.stats()["network_passes"] - before


def cycled_classes(info: ModelInfo, n: int) -> list[int] | None:
    """Class labels of n samples, 0, 1, 2, ... and again from 0; None for a model that does not name its classes."""
    names = _class_names(info)
    return [i % len(names) for i in range(n)] if names else None


def class_labels(info: ModelInfo, cond: Any, n: int) -> npt.NDArray[np.int64] | None:
    """Class labels of ``n`` samples, shape (n,); None if a sample is unconditional or the model names no classes."""
    names = _class_names(info)
    if not names or cond is None:
        return None
    [(name, given)] = info.cond.items()
    values = np.array(given.values(name, cond[name] if isinstance(cond, Mapping) else cond, n), dtype=np.int64)
    return values if values.shape == (n,) and ((values >= 0) & (values < len(names))).all() else None


def cond_text(info: ModelInfo, cond: Any) -> str:
    """The conditioning of one sample as text, by the class's name if it is one; empty if it is unconditional."""
    labels = class_labels(info, cond, 1)
    if labels is not None:
        return _class_names(info)[int(labels[0])]
    return "" if cond is None else str(cond)


def sampler_title(sampler: str, steps: int | None = None, options: str = "") -> str:
    """Such as ``DDIM 50 steps, eta 0``: a step count is always given with its sampler."""
    title = SAMPLER_TITLES.get(sampler, sampler)
    if steps is not None:
        title += f" {plural(steps, 'step')}"
    return f"{title}, {options}" if options else title


def require_count(name: str, value: int, least: int) -> None:
    """Checks an argument that is a count.

    Raises:
        TypeError: If ``value`` is not an integer.
        ValueError: If ``value`` is below ``least``.
    """
    if whole_number(name, value) < least:
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
