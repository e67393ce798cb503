"""Samplers made by hand, as tables of a model: each with the noise levels and orders that it takes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from stepfuse.engine import Engine
from stepfuse.samplers import AYS, SAMPLERS
from stepfuse.samplers.levels import KINDS
from stepfuse.samplers.table import StepTable

#: Ways to choose noise levels: spaced timesteps, rules, a published list, and last the sampler's own choice.
LEVELS = ("trailing", "leading", "linspace", *(name for name in KINDS if name != "schedule"), "published", "")
_SPACINGS = LEVELS[:3]
ORDERS = (None, 3, 2, 1)


@dataclass(frozen=True)
class HandMade:
    """A sampler with its options.

    Attributes:
        sampler: Its name.
        levels: One of ``LEVELS``.
        order: Its order; None is the sampler's own.
        table: Its table.
    """

    sampler: str
    levels: str
    order: int | None
    table: StepTable

    @property
    def name(self) -> str:
        """Such as ``unipc, order 3, karras``."""
        return ", ".join([self.sampler, *([f"order {self.order}"] if self.order else []), *filter(None, [self.levels])])


def hand_made(
    engine: Engine,
    forwards: int,
    guidance_scale: float,
    *,
    samplers: Iterable[str] = tuple(SAMPLERS),
    levels: Iterable[str] = LEVELS,
    orders: Iterable[int | None] = ORDERS,
) -> list[HandMade]:
    """All samplers that a model takes, on all noise levels and with all orders that they take, within so many forwards.

    A sampler is asked for the most steps whose table is no longer; what it refuses with any steps is left out.

    Args:
        engine: The model's.
        forwards: At least 1. Each table has as many rows, or the next fewer that its sampler can have.
        guidance_scale: Of all of them.
        samplers: Names of ``SAMPLERS``.
        levels: Of ``LEVELS``.
        orders: None is a sampler's own.

    Returns:
        Tables that differ; of equal ones the first.
    """
    found: dict[str, HandMade] = {}
    for sampler, kind, order in product(samplers, levels, orders):
        for table in _longest(engine, forwards, guidance_scale, sampler, kind, order):
            found.setdefault(table.digest, HandMade(sampler, kind, order, table))
    return list(found.values())


def _longest(
    engine: Engine, forwards: int, guidance_scale: float, sampler: str, levels: str, order: int | None
) -> Iterator[StepTable]:
    """The longest table within ``forwards``, if there is one."""
    for steps in range(forwards, 0, -1):
        options = _level_options(levels, steps) | ({} if order is None else {"order": order})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a naive sampler, of a late start: the figures will say it
                table = engine.table(sampler=sampler, steps=steps, guidance_scale=guidance_scale, **options)
        except TypeError:  # it has no such option
            return
        except ValueError:  # not with so many steps
            continue
        if len(table) <= forwards:
            yield table
            return


def _level_options(levels: str, steps: int) -> dict[str, Any]:
    if levels == "published":
        return {"sigmas": AYS["sd15"].at(steps)}
    if levels in _SPACINGS:
        return {"spacing": levels}
    return {"levels": levels} if levels else {}
