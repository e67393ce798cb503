"""Types of the compiled core; csrc/bindings holds the definitions."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
State = TypeVar("State", npt.NDArray[np.float32], npt.NDArray[np.float16])

def step(
    x: State,
    eps: State,
    row: Float32Array,
    eps_uncond: State | None = None,
    h: State | None = None,
    z: State | None = None,
    out: State | None = None,
    isa: str | None = None,
) -> State: ...
def normal(seed: int, step: int, stream: int, n: int, first: int = 0, isa: str | None = None) -> Float32Array: ...
def isas() -> list[str]: ...

class Passes:
    Conditional: Passes
    Unconditional: Passes
    Both: Passes

class SampleView:
    def __init__(self, passes: Passes, peak_rows: int) -> None: ...

class PlanEntry:
    sample: int
    row_cond: int
    row_uncond: int

class StepPlan:
    entries: list[PlanEntry]
    rows: int
    admitted: int

def make_plan(running: Sequence[SampleView], waiting: Sequence[SampleView], max_rows: int) -> StepPlan: ...

class Table:
    def __init__(self, rows: Float32Array, init_scale: float) -> None: ...

class Loop:
    def __init__(self, elements: int, integer_timestep: bool, cond_bytes: Sequence[int], max_rows: int) -> None: ...
    def buffers(self) -> dict[str, Any]: ...
    def submit(
        self,
        id: int,
        table: Table,
        seed: int,
        has_noise: bool,
        x: Float32Array,
        x0: Float32Array | None,
        cond: Sequence[npt.NDArray[Any]],
        null_cond: Sequence[npt.NDArray[Any]],
    ) -> None: ...
    def run(
        self, forward: Callable[[int], None], on_turn: Callable[[], bool] | None = None, check: bool = False
    ) -> list[tuple[int, int, Float32Array]]: ...
    def abort(self) -> None: ...
    def counters(self) -> dict[str, float]: ...
