"""From the arguments of ``Engine.sample`` to one request a sample: a table, a seed and conditioning."""

from __future__ import annotations

import functools
import inspect
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse import _core
from stepfuse.arguments import number, plain, refuse_unknown, truth_value, whole_number
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.display import NAME, byte_size, listed, one_line, printable
from stepfuse.requests.conditioning import cond_per_sample
from stepfuse.requests.editing import Edit
from stepfuse.requests.guidance import in_its_passes, require_guidable, require_no_negative, with_scale
from stepfuse.requests.prompt_request import PromptRequest
from stepfuse.requests.request import Request
from stepfuse.requests.sampler_defaults import OF_TABLES, default_eta, default_options, default_steps, given_up
from stepfuse.requests.terms import Terms
from stepfuse.samplers import SAMPLERS
from stepfuse.samplers.levels import without_overridden
from stepfuse.samplers.names import require_sampler
from stepfuse.samplers.table import StepTable

_SEED_LIMIT = 1 << 64
_SAID_ELSEWHERE = ("schedule", "prediction_type", "begin")  # by the model, and begin by strength
_SCALARS = frozenset((str, int, float))
_BESIDE_STATE = 2000  # bytes of a queued sample, measured: its requests in Python and in the core, its place in line


@dataclass(frozen=True)
class ResolvedRequest:
    """One sample to draw, its arguments checked and compiled.

    Attributes:
        table: Its sampler, compiled.
        seed: Key of all its noise.
        cond: A value for each conditioning input; None where the sample is unconditional.
        negative_cond: The same for the unconditional pass; None stands for the null values.
        known_region: The image that it begins with, or that inpainting keeps in part; None where it begins as noise.
        lora: As in ``Request``, or a set that was chosen before; checked when it is queued.
        priority, deadline, timeout: As in ``Request``.
        name: The request's id, if it has one.
    """

    table: StepTable
    seed: int
    cond: list[npt.NDArray[Any]] | None
    negative_cond: list[npt.NDArray[Any]] | None = None
    known_region: _core.KnownRegion | None = None
    lora: Any = None
    priority: int = 0
    deadline: float | None = None
    timeout: float | None = None
    name: str | None = None

    __repr__ = one_line


class Compiler:
    """Compiles samplers for one model and remembers the tables: those asked for often are compiled once."""

    def __init__(self, info: ModelInfo) -> None:
        self.info = info
        self._remembered = functools.lru_cache(maxsize=256)(self._compile_hashable)

    def compile(
        self,
        sampler: str | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        eta: float | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> StepTable:
        """The table of a named sampler for this model; None is the model's default.

        Raises:
            ValueError: If there is no such sampler, or it refuses an argument.
            TypeError: If it does not have one of the options.
        """
        if not isinstance(options, Mapping | None):
            raise TypeError(f"options must be a mapping of names to values, got {options!r}")
        given = {name: plain(value) for name, value in (options or {}).items()}
        numbers = plain(steps), plain(guidance_scale), plain(eta)
        arguments = sampler, *numbers, tuple(given.items())
        kinds = tuple(type(one) for one in (sampler, *numbers, *given.values()))  # True equals 1, 1.0 too
        try:
            hash(arguments)
        except TypeError:
            hashable = False
        else:
            hashable = True
        return self._remembered(arguments, kinds) if hashable else compile_table(self.info, sampler, *numbers, given)

    def _compile_hashable(self, arguments: tuple[Any, ...], kinds: tuple[type, ...]) -> StepTable:
        sampler, steps, guidance_scale, eta, items = arguments
        return compile_table(self.info, sampler, steps, guidance_scale, eta, dict(items))

    def one(self, request: Request) -> ResolvedRequest:
        """A request, checked and compiled.

        Raises:
            ValueError: If ``resolve`` or ``Terms.of`` refuses a value.
            TypeError: If a value is of the wrong kind, or ``request`` is none.
        """
        if not isinstance(request, Request):
            raise TypeError(f"request must be a stepfuse.Request, got {_named(request)}")
        [resolved] = resolve(
            self,
            1,
            cond=request.cond,
            negative_cond=request.negative_cond,
            seed=request.seed,
            table=request.table,
            sampler=request.sampler,
            steps=request.steps,
            guidance_scale=request.guidance_scale,
            eta=request.eta,
            image=request.image,
            mask=request.mask,
            strength=request.strength,
            lora=request.lora,
            options=request.options,
        )
        terms = Terms.of(request)
        return replace(resolved, priority=terms.priority, deadline=terms.deadline, timeout=terms.timeout, name=terms.id)


def resolve(
    compiler: Compiler,
    n: int,
    *,
    cond: Any,
    negative_cond: Any = None,
    seed: int | Sequence[int] | None = None,
    table: StepTable | Sequence[StepTable] | None = None,
    sampler: str | Sequence[str] | None = None,
    steps: int | Sequence[int] | None = None,
    guidance_scale: float | Sequence[float] | None = None,
    eta: float | Sequence[float] | None = None,
    image: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    strength: float | Sequence[float] | None = None,
    lora: Any = None,
    options: Mapping[str, Any] | None = None,
) -> list[ResolvedRequest]:
    """One request a sample; every argument is one value for all or a sequence of one each.

    Raises:
        ValueError: If ``n`` is below 1, a sequence has not n values, ``table`` comes with what it says already, a seed
            is not within 0 to 2^64 - 1, or a sampler, ``CondInput.value`` or ``Edit`` refuses its argument.
        TypeError: If a value is of the wrong kind.
    """
    n, options = whole_number("n", n), options or {}
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    info = compiler.info
    _require_memory(n, info.shape)
    conds = cond_per_sample(info.given_cond, cond, n)
    require_no_negative(info, "negative_cond", negative_cond)
    negatives = cond_per_sample(info.given_cond, negative_cond, n, "negative_cond")
    seeds = seeds_of(seed, n)
    if table is not None:
        tables = _each("table", table, n)
        for distinct in {id(one): one for one in tables}.values():
            require_table(
                info, distinct, sampler=sampler, steps=steps, guidance_scale=guidance_scale, eta=eta, **options
            )
        tables = [in_its_passes(info, one) for one in tables]
    else:
        tables = _tables(compiler, n, sampler, steps, guidance_scale, eta, options)
    edit = Edit(info, n, image, mask, _strengths(strength, n))
    loras = _each("lora", lora, n)
    requests = []
    given = zip(tables, seeds, conds, negatives, loras, strict=True)
    for index, (whole, seed, cond, negative, chosen) in enumerate(given):
        run, known = edit.apply(index, whole)
        if negative is not None and cond is None:  # guided away from negative_cond, towards the null values
            cond = [spec.value(name, None) for name, spec in info.cond.items()]
        requests.append(ResolvedRequest(run, seed, with_scale(info, cond, whole), negative, known, chosen))
    return requests


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
        sampler = _default_sampler(info)
    if own := [table for table in info.tables.values() if table.sampler == sampler]:
        asked = {"steps": steps, "guidance_scale": guidance_scale, "eta": eta or None, **options}
        return in_its_passes(info, fitted_table(info, own, asked))
    require_sampler(sampler, [*SAMPLERS, *dict.fromkeys(table.sampler for table in info.tables.values())])
    if guidance_scale is None:
        guidance_scale = info.defaults.get("guidance_scale", 1.0)
    guidance_scale = number("guidance_scale", guidance_scale)
    require_guidable(info, guidance_scale)

    function = SAMPLERS[sampler]
    accepted = inspect.signature(function).parameters
    arguments = {**without_overridden(default_options(info, function), options), **options}
    if steps is None and arguments.get("timesteps") is None and arguments.get("sigmas") is None:
        steps = default_steps(info, sampler, arguments)
    if arguments.get("cfg_pp") and not info.cond:
        raise ValueError("cfg_pp must be left out for a model that takes no conditioning, got True")
    of_table = {name: arguments.pop(name) for name in OF_TABLES if name in arguments}
    for name in given_up(options, guidance_scale) & of_table.keys():
        del of_table[name]
    if "eta" in accepted:
        arguments["eta"] = default_eta(info, function) if eta is None else eta
    elif eta:
        raise ValueError(f"eta must be left out with sampler {sampler!r}, which has none, got {eta}")
    known = [*(name for name in accepted if name not in _SAID_ELSEWHERE), *OF_TABLES]
    refuse_unknown(f"sampler {sampler!r}", known, arguments)
    if not info.schedule.is_flow:
        arguments["prediction_type"] = info.prediction_type
    table = _adapt(function(info.schedule, steps, guidance_scale=guidance_scale, **arguments), of_table)
    return in_its_passes(info, table)


def takes_eta(info: ModelInfo, sampler: str | None) -> bool:
    """Whether a sampler, None being the model's default, has an ``eta``."""
    name = _default_sampler(info) if sampler is None else sampler
    return name in SAMPLERS and "eta" in inspect.signature(SAMPLERS[name]).parameters


def _default_sampler(info: ModelInfo) -> str:
    usual = "euler" if info.schedule.is_flow else "edm_euler" if info.schedule.is_edm else "ddim"
    return str(info.defaults.get("sampler", usual))


def fitted_table(info: ModelInfo, tables: Sequence[StepTable], given: Mapping[str, Any]) -> StepTable:
    """One of a model's own tables of one name: that whose options are those given, None being left out.

    Guidance is the model's default where none is given, as for every sampler.

    Raises:
        ValueError: If none has these options.
    """
    asked = {name: value for name, value in given.items() if value is not None and name not in OF_TABLES}
    asked.setdefault("guidance_scale", info.defaults.get("guidance_scale", 1.0))
    found = [one for one in tables if all(one.options.get(name) == value for name, value in asked.items())]
    if not found:
        known = "; or ".join(", ".join(f"{name} {value}" for name, value in one.options.items()) for one in tables)
        shown = ", ".join(f"{name} {printable(value, NAME)}" for name, value in asked.items())
        raise ValueError(f"sampler {tables[0].sampler!r} is a table that was made for {known}, got {shown}")
    unused = given_up(given, asked["guidance_scale"])
    return _adapt(found[0], {name: given.get(name, info.defaults.get(name)) for name in set(OF_TABLES) - unused})


def _adapt(table: StepTable, options: Mapping[str, Any]) -> StepTable:
    """The table with those of ``OF_TABLES`` that are given; None is not given."""
    given = {name: value for name, value in options.items() if value is not None}
    if steps := whole_number("zero_init", given.pop("zero_init", 0)):
        table = table.with_zero_init(steps)
    if not given:
        return table
    if "guidance_rescale" in given:
        given["guidance_rescale"] = float(number("guidance_rescale", given["guidance_rescale"]))
    for name, pair in (("dynamic_threshold", "ratio, largest"), ("apg", "eta, norm_threshold")):
        if name in given:
            given[name] = _two_numbers(name, pair, given[name])
    if not isinstance(given.get("apg_form", ""), str):
        raise TypeError(f"apg_form must be a name, got {given['apg_form']!r}")
    if "cfg_renorm" in given:
        given["cfg_renorm"] = whole_number("cfg_renorm", given["cfg_renorm"])
    if "cfg_zero_star" in given:
        given["cfg_zero_star"] = truth_value("cfg_zero_star", given["cfg_zero_star"])
    return table.adapt(**given)


def _two_numbers(name: str, pair: str, given: Any) -> tuple[float, float]:
    if isinstance(given, str) or not isinstance(given, Sequence | np.ndarray) or len(given) != 2:
        raise TypeError(f"{name} must be two numbers, ({pair}), got {given!r}")
    return float(number(name, given[0])), float(number(name, given[1]))


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
        x = array.astype(np.float32, order="C")
    finite = np.isfinite(x)
    if not finite.all():
        where = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(f"{name} must be finite, got {array[where]} at {where}")
    return x


def _tables(
    compiler: Compiler,
    n: int,
    sampler: str | Sequence[str] | None,
    steps: int | Sequence[int] | None,
    guidance_scale: float | Sequence[float] | None,
    eta: float | Sequence[float] | None,
    options: Mapping[str, Any],
) -> list[StepTable]:
    """A table a sample."""
    samplers, counts = _each("sampler", sampler, n), _each("steps", steps, n)
    scales, shares = _each("guidance_scale", guidance_scale, n), _each("eta", eta, n)
    each = zip(samplers, counts, scales, shares, strict=True)
    return [compiler.compile(*arguments, options) for arguments in each]


def _named(given: Any) -> str:
    if isinstance(given, PromptRequest):
        return "a PromptRequest, which TextToImage takes"
    return printable(repr(given), NAME)


def _require_memory(n: int, shape: tuple[int, ...]) -> None:
    """Refuses more samples than the machine has memory for, before anything is made for each of them."""
    if not hasattr(os, "sysconf"):
        return
    each = math.prod(shape) * 4 + _BESIDE_STATE
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // each
    if n > most:
        raise ValueError(
            f"n must be at most {most}, as many samples of shape {shape} as fit this machine's memory, got {n}, which"
            f" would take {byte_size(n * each)}: draw them in several calls, or with as_completed"
        )


def require_table(info: ModelInfo, table: Any, **beside: Any) -> None:
    """Refuses a caller's table that the model cannot be sampled with, or that comes with what it says already.

    Raises:
        TypeError: If ``table`` is none.
        ValueError: If one of ``beside`` is not None, a row makes no sense, or a timestep is outside the schedule.
    """
    if named := [name for name, value in beside.items() if value is not None]:
        raise ValueError(f"table says all about the sampler: leave out {listed(named)}")
    if not isinstance(table, StepTable):
        raise TypeError(f"table must be a StepTable, got {type(table).__name__}")
    table.check()
    low, high = info.schedule.min_timestep, info.schedule.max_timestep
    for t in (float(table["t"].max()), float(table["t"].min())):
        if not low <= t <= high:
            raise ValueError(f"table's timesteps must be between {low:g} and {high:g} for this model, got {t:g}")


def _strengths(given: float | Sequence[float] | None, n: int) -> list[float | None]:
    return [one if one is None else number("strength", one) for one in _each("strength", given, n)]


def seeds_of(seed: int | Sequence[int] | None, n: int) -> list[int]:
    """A seed a sample: of one seed s, s + i, beginning again at 0 after the last; None draws one."""
    if seed is None:
        seed = secrets.randbits(64)
    seeds = [whole_number("seed", one) for one in _each("seed", seed, n)]
    for one in seeds:
        if not 0 <= one < _SEED_LIMIT:
            raise ValueError(f"seed must be between 0 and 2^64 - 1, got {one}")
    single = np.ndim(seed) == 0
    return [(one + i) % _SEED_LIMIT for i, one in enumerate(seeds)] if single else seeds


def _each(name: str, given: Any, n: int) -> list[Any]:
    """One value a sample."""
    if given is None or type(given) in _SCALARS:  # nearly always, and found sooner than that it is no sequence
        return [given] * n
    if isinstance(given, np.ndarray) and given.ndim <= 1:
        given = given.tolist()
    if isinstance(given, str | StepTable) or not isinstance(given, Sequence):
        return [given] * n
    if len(given) != n:
        raise ValueError(f"{name} must be one value, or one for each of the {n} samples, got {len(given)}")
    return list(given)
