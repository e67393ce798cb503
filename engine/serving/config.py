"""How an engine shares its forwards among requests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from stepfuse import _core
from stepfuse.arguments import number, whole_number

#: Most rows of one forward where the caller does not say: in the host's memory, and on a GPU.
HOST_ROWS, GPU_ROWS = 64, 16

#: Most that each of these may be: beyond them memory alone would say no, and late.
MOST = {"max_rows": 1 << 16, "max_queue": 1 << 24, "max_running": 1 << 20}

#: Which request steps next, by name; ``csrc/core/loop/planner.h`` says how each orders them.
Policy = Literal["auto", "fifo", "shortest", "deadline"]

POLICIES: Mapping[str, _core.Policy] = {
    "auto": _core.Policy.ShortestFirst,
    "fifo": _core.Policy.FirstCome,
    "shortest": _core.Policy.ShortestFirst,
    "deadline": _core.Policy.EarliestDeadline,
}

#: Ageing of the policies that order by passes left. At high load requests wait: with fast ageing so many that the 95th
#: percentile shows it, with slow ageing those with most passes alone. ``auto`` is as fast as keeps that percentile low
#: in ``benchmarks/policies.py``.
AGEING: Mapping[str, float] = {"auto": 0.0003, "shortest": 0.002}


@dataclass(frozen=True)
class CostCurve:
    """Time of one forward, ``fixed + row * rows``.

    Attributes:
        fixed: Seconds that a forward takes whatever its rows, at least 0.
        row: Seconds that each row adds, above 0.

    Examples:
        >>> cost = sf.CostCurve(fixed=0.01, row=0.002)  # as Engine.calibrate returns it
        >>> round(cost.seconds(8), 4)
        0.026
    """

    fixed: float
    row: float

    def __post_init__(self) -> None:
        for name in ("fixed", "row"):
            object.__setattr__(self, name, number(name, getattr(self, name)))
        if not (math.isfinite(self.fixed) and self.fixed >= 0 and math.isfinite(self.row) and self.row > 0):
            raise ValueError(f"a cost curve needs fixed >= 0 and row > 0 seconds, got {self.fixed} and {self.row}")

    def seconds(self, rows: int) -> float:
        """Time of a forward of this many rows."""
        return self.fixed + self.row * rows


@dataclass(frozen=True)
class Serving:
    """How requests share an engine.

    Attributes:
        max_rows: Most rows of one forward, up to 65,536; a guided sample takes two. None is 64, and 16 on a GPU, where
            each row count is captured.
        policy: Who steps next: ``auto`` (``shortest`` with an ageing of 0.0003, which keeps the mean and the 95th
            percentile of latency low at every load), ``fifo`` (first come, first served), ``shortest`` (fewest network
            passes left first) or ``deadline`` (earliest first, those without one last). A higher priority goes before
            any of that.
        ageing: Of ``shortest``, None for 0.002: passes of credit a request gains on those yet to come for each pass
            computed while it waits. A request of p passes is overtaken only by what arrives before p / ageing passes
            more are computed. A larger value shortens the longest waits and costs mean latency.
        max_queue: Most requests that wait to begin, up to 2^24; ``submit`` refuses more.
        max_running: Most samples that have begun and not ended, up to 2^20: each holds its state and history. None is
            4 max_rows.
        deterministic: Whether every forward is padded to ``max_rows`` rows, or with OpenVINO computed row by row, so
            that an image is the same to the bit whatever shares its forwards.

    Examples:
        >>> serving = sf.Serving(max_rows=16, policy="shortest", max_queue=100)
        >>> serving.row_limit, serving.most_running
        (16, 64)
        >>> options = serving.loop_options()  # as the compiled loop takes them
        >>> with sf.Engine.load("fashion", serving=serving) as engine:
        ...     images = engine.sample(2, steps=2)
    """

    max_rows: int | None = None
    policy: Policy = "auto"
    ageing: float | None = None
    max_queue: int = 1024
    max_running: int | None = None
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_queue", "max_running"):
            value = getattr(self, name)
            if name != "max_queue" and value is None:
                continue
            value = whole_number(name, value)
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
            if value > MOST[name]:
                raise ValueError(f"{name} must be at most {MOST[name]}, got {value}")
            object.__setattr__(self, name, value)
        if self.policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {self.policy!r}")
        if self.ageing is None:
            return
        object.__setattr__(self, "ageing", number("ageing", self.ageing))
        if not (math.isfinite(self.ageing) and self.ageing >= 0):
            raise ValueError(f"ageing must be finite and at least 0, got {self.ageing}")
        if self.policy != "shortest":
            raise ValueError(f"ageing is set for policy='shortest' alone, got {self.ageing} with {self.policy!r}")

    @property
    def row_limit(self) -> int:
        """``max_rows``, given or not."""
        return self.max_rows or HOST_ROWS

    @property
    def most_running(self) -> int:
        """``max_running``, given or not."""
        return self.max_running or 4 * self.row_limit

    @property
    def ageing_rate(self) -> float:
        """``ageing``, given or the policy's own; 0 for policies that do not order by passes left.

        Examples:
            >>> sf.Serving().ageing_rate, sf.Serving(policy="shortest", ageing=0.01).ageing_rate
            (0.0003, 0.01)
        """
        return AGEING.get(self.policy, 0.0) if self.ageing is None else self.ageing

    def loop_options(self, cost: CostCurve | None = None, *, rowwise: bool = False) -> _core.LoopOptions:
        """The same for the compiled loop, which pads nothing for a network that computes each row by itself."""
        return _core.LoopOptions(
            max_running=self.most_running,
            policy=POLICIES[self.policy],
            ageing=self.ageing_rate,
            pad=self.deterministic and not rowwise,
            cost=_core.CostCurve() if cost is None else _core.CostCurve(cost.fixed, cost.row),
        )
