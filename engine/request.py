"""From the arguments of ``Engine.sample`` to one request a sample: a table, a seed, and what the sample is told."""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.bundle import ModelInfo
from stepfuse.cond import cond_per_sample
from stepfuse.samplers import SAMPLERS
from stepfuse.steptable import StepTable

_DEFAULT_STEPS = 50
_SEED_LIMIT = 1 << 64


@dataclass(frozen=True)
class Request:
    """One image to draw, as ``Engine.submit`` takes it: the arguments of ``Engine.sample`` for one sample.

    Attributes:
        cond: What the network is told.
        sampler: A name of ``stepfuse.samplers.SAMPLERS``; None is the model's default.
        steps: Number of steps; None is the model's default.
        guidance_scale: None is the model's default.
        eta: DDIM's share of added noise.
        seed: 0 to 2^64 - 1; None draws one.
        table: A compiled sampler, instead of sampler, steps, guidance_scale, eta and options.
        noise: Starting noise of one sample's shape; None draws it from the seed.
        options: The sampler's own options by name.
    """

    cond: Any = None
    sampler: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    eta: float | None = None
    seed: int | None = None
    table: StepTable | None = None
    noise: npt.ArrayLike | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleRequest:
    """One sample to draw, its arguments checked and compiled.

    Attributes:
        table: Its sampler, compiled.
        seed: Key of all its noise.
        cond: A value for each conditioning input; None where it is told nothing.
    """

    table: StepTable
    seed: int
    cond: list[npt.NDArray[Any]] | None


def resolve(
    info: ModelInfo,
    n: int,
    *,
    cond: Any,
    seed: int | Sequence[int] | None,
    table: StepTable | Sequence[StepTable] | None,
    sampler: str | Sequence[str] | None,
    steps: int | Sequence[int] | None,
    guidance_scale: float | Sequence[float] | None,
    eta: float | Sequence[float] | None,
    options: Mapping[str, Any],
) -> list[SampleRequest]:
    """One request a sample; every argument is one value for all or a sequence of one each.

    Raises:
        ValueError: If a bound is broken or lengths differ; the message carries the value received.
        TypeError: If a value is of the wrong kind.
    """
    if isinstance(n, bool) or not isinstance(n, int | np.integer):
        raise TypeError(f"n must be a whole number, got {n!r}")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    conds = cond_per_sample(info.cond, cond, n)
    seeds = _seeds(seed, n)
    if table is not None:
        given = {"sampler": sampler, "steps": steps, "guidance_scale": guidance_scale, "eta": eta, **options}
        named = [name for name, value in given.items() if value is not None]
        if named:
            raise ValueError(f"table says all about the sampler: leave out {', '.join(named)}")
        tables = _each("table", table, n)
        for distinct in {id(one): one for one in tables}.values():
            _check(info, distinct)
    else:
        tables = _tables(info, n, sampler, steps, guidance_scale, eta, options)
    return [SampleRequest(*request) for request in zip(tables, seeds, conds, strict=True)]


def compile_table(
    info: ModelInfo,
    sampler: str | None,
    steps: int | None,
    guidance_scale: float | None,
    eta: float | None,
    options: Mapping[str, Any],
) -> StepTable:
    """The table of a named sampler for this model; None is the model's default.

    Raises:
        ValueError: If there is no such sampler, or it refuses an argument.
        TypeError: If it does not have one of the options.
    """
    if sampler is None:
        sampler = info.defaults.get("sampler", "euler" if info.schedule.is_flow else "ddim")
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    if steps is None and options.get("timesteps") is None:
        steps = default_steps(info, sampler)
    if guidance_scale is None:
        guidance_scale = info.defaults.get("guidance_scale", 1.0)
    require_guidable(info, guidance_scale)
    _require_number("guidance_scale", guidance_scale)

    function = SAMPLERS[sampler]
    accepted = inspect.signature(function).parameters
    arguments = {name: value for name, value in _default_options(info).items() if name in accepted}
    arguments.update(options)
    if "prediction_type" in accepted:
        arguments["prediction_type"] = info.prediction_type
    if "eta" in accepted:
        arguments["eta"] = info.defaults.get("eta", 0.0) if eta is None else eta
        _require_number("eta", arguments["eta"])
    elif eta:
        raise ValueError(f"eta must be left out with sampler {sampler!r}, which has none, got {eta}")
    unknown = [name for name in arguments if name not in accepted]
    if unknown:
        known = ", ".join(name for name in accepted if name != "schedule")
        raise TypeError(f"sampler {sampler!r} takes {known}, got {', '.join(unknown)}")
    return function(info.schedule, steps, guidance_scale=guidance_scale, **arguments)


def starting_state(shape: tuple[int, ...], given: npt.ArrayLike | None, name: str = "noise") -> npt.NDArray[np.float32]:
    """The array that a run works in, of this shape: a copy of what is given, or memory for the loop to fill.

    Raises:
        ValueError: If the shape differs, or a number is not finite.
        TypeError: If it does not hold floating-point numbers.
    """
    if given is None:
        return np.empty(shape, dtype=np.float32)
    array = np.asarray(given)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    if array.dtype.kind != "f":
        raise TypeError(f"{name} must be floating point, got {array.dtype}")
    with np.errstate(over="ignore"):  # too large for float32 is reported below
        x = array.astype(np.float32)
    finite = np.isfinite(x)
    if not finite.all():
        where = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(f"{name} must be finite, got {array[where]} at {where}")
    return x


def _tables(
    info: ModelInfo,
    n: int,
    sampler: str | Sequence[str] | None,
    steps: int | Sequence[int] | None,
    guidance_scale: float | Sequence[float] | None,
    eta: float | Sequence[float] | None,
    options: Mapping[str, Any],
) -> list[StepTable]:
    """A table a sample; samples with the same arguments share one."""
    samplers, counts = _each("sampler", sampler, n), _each("steps", steps, n)
    scales, shares = _each("guidance_scale", guidance_scale, n), _each("eta", eta, n)
    compiled: dict[tuple[Any, ...], StepTable] = {}
    keys = list(zip(samplers, counts, scales, shares, strict=True))
    for key in keys:
        if key not in compiled:
            compiled[key] = compile_table(info, key[0], key[1], key[2], key[3], options)
    return [compiled[key] for key in keys]


def require_guidable(info: ModelInfo, guidance_scale: float) -> None:
    """Refuses guidance where there is nothing to guide by."""
    if guidance_scale != 1 and not info.cond:
        raise ValueError(f"guidance_scale must be 1 for a model that takes no conditioning, got {guidance_scale}")


def default_steps(info: ModelInfo, sampler: str) -> int:
    """Steps where the caller gives none: the model's default, and all of T for the original sampler."""
    total = info.schedule.num_train_timesteps
    if sampler == "ddpm":
        return total
    return min(int(info.defaults.get("steps", _DEFAULT_STEPS)), total)


def _default_options(info: ModelInfo) -> dict[str, Any]:
    named = ("sampler", "steps", "guidance_scale", "eta")
    return {name: value for name, value in info.defaults.items() if name not in named}


def _check(info: ModelInfo, table: Any) -> None:
    if not isinstance(table, StepTable):
        raise TypeError(f"table must be a StepTable, got {type(table).__name__}")
    table.check()
    limit = info.schedule.max_timestep
    for t in (float(table["t"].max()), float(table["t"].min())):
        if not 0 <= t <= limit:
            raise ValueError(f"table's timesteps must be between 0 and {limit:g} for this model, got {t:g}")


def _seeds(seed: int | Sequence[int] | None, n: int) -> list[int]:
    if seed is None:
        seed = secrets.randbits(64)
    if isinstance(seed, int | np.integer) and not isinstance(seed, bool):
        _require_seed(int(seed))
        return [(int(seed) + i) % _SEED_LIMIT for i in range(n)]
    seeds = _each("seed", seed, n)
    for one in seeds:
        if isinstance(one, bool) or not isinstance(one, int | np.integer):
            raise TypeError(f"seed must be a whole number, got {one!r}")
        _require_seed(int(one))
    return [int(one) for one in seeds]


def _require_seed(seed: int) -> None:
    if not 0 <= seed < _SEED_LIMIT:
        raise ValueError(f"seed must be between 0 and 2^64 - 1, got {seed}")


def _require_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a number, got {value!r}")


def _each(name: str, given: Any, n: int) -> list[Any]:
    """One value a sample."""
    if isinstance(given, np.ndarray) and given.ndim == 1:
        given = given.tolist()
    if isinstance(given, str | StepTable) or not isinstance(given, Sequence):
        return [given] * n
    if len(given) != n:
        raise ValueError(f"{name} must be one value, or one for each of the {n} samples, got {len(given)}")
    return list(given)
