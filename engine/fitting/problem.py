"""What a table is fitted to: starting noises, their conditioning, and where a fine solution takes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.engine import Engine
from stepfuse.errors import DenoiserError
from stepfuse.fitting.student import Float32Array, Float64Array, Student
from stepfuse.requests.conditioning import cond_per_sample
from stepfuse.requests.resolution import seeds_of
from stepfuse.samplers.noise import normal
from stepfuse.samplers.table import StepTable

#: How far numbers are moved: weights, as a share of the state's size, and timesteps, as a share of all.
_STEP, _T_STEP = 5e-3, 3e-3

Conditions = Sequence[list[npt.NDArray[Any]] | None]


def rms(values: Float32Array) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def fine_table(engine: Engine, guidance_scale: float, steps: int) -> StepTable:
    """The table of a fine solution, of at most so many steps."""
    most = min(steps, engine.info.schedule.num_train_timesteps - 1)
    return engine.table(sampler="unipc", steps=most, guidance_scale=guidance_scale)


@dataclass(frozen=True)
class Problem:
    """Noises and their fine solutions.

    Attributes:
        engine: What predicts.
        noise: Starting states, shape (n, *shape), float32.
        cond: Each sample's conditioning, as ``cond_per_sample`` gives it.
        negative_cond: The same for the unconditional prediction; None is the null value.
        target: Where a fine solution takes them, the same shape.
        tick: Called after each run of the engine, with its network passes.
    """

    engine: Engine
    noise: Float32Array
    cond: Conditions
    negative_cond: Conditions
    target: Float32Array
    tick: Callable[[int], object] = lambda passes: None

    @classmethod
    def of(
        cls,
        engine: Engine,
        count: int,
        cond: Any,
        reference: StepTable,
        seed: int,
        *,
        negative_cond: Any = None,
        progress: bool = False,
        tick: Callable[[int], object] = lambda passes: None,
    ) -> Problem:
        """Noises of ``seed`` and those that follow, and where a table takes them.

        Args:
            engine: What predicts.
            count: How many.
            cond: As in ``Engine.sample``; None cycles through the model's classes, where it names any.
            reference: The fine solution's table.
            seed: The first.
            negative_cond: As in ``Engine.sample``.
            progress: Whether a bar is shown.
            tick: As in ``Problem``.
        """
        inputs = engine.info.cond
        names = next(iter(inputs.values())).names if len(inputs) == 1 else ()
        cond = [i % len(names) for i in range(count)] if cond is None and names else cond
        noise = np.stack([normal(one, engine.info.shape) for one in seeds_of(seed, count)])
        conds = cond_per_sample(inputs, cond, count)
        negative = cond_per_sample(inputs, negative_cond, count, "negative_cond")
        problem = cls(engine, noise, conds, negative, noise, tick)
        return replace(problem, target=problem.sample(reference, noise, progress=progress))

    def part(self, first: int, last: int) -> Problem:
        """The samples from ``first`` to before ``last``."""
        cut = {name: getattr(self, name)[first:last] for name in ("noise", "cond", "negative_cond", "target")}
        return replace(self, **cut)

    def predict(self, student: Student, step: int, x: Float32Array) -> list[Float32Array]:
        """The network's predictions of states at a step, guided, and behind it the unconditional one if it is guided.

        Args:
            student: Says timestep and guidance.
            step: Which.
            x: Shape (k n, *shape): k states a sample.
        """
        row = StepTable.from_columns({"t": [student.timestep(step)], "q_e": [1.0]})  # the next state is the prediction
        each = len(x) // len(self.noise)
        cond, unconditional = [*self.cond] * each, [*self.negative_cond] * each
        if student.guidance_scale == 1:
            return [self._sample(row, x, cond)]
        both = self._sample(row, np.concatenate([x, x]), cond + unconditional)
        eps, eps_uncond = both[: len(x)], both[len(x) :]
        return [eps_uncond + np.float32(student.guidance_scale) * (eps - eps_uncond), eps_uncond]

    def sample(self, table: StepTable, x: Float32Array, progress: bool = False) -> Float32Array:
        """Samples of a table from starting noise, one a noise."""
        negative = self.negative_cond if (table["g"] != 1).any() else None
        return self._sample(table, x, self.cond, negative, progress)

    def _sample(
        self,
        table: StepTable,
        x: Float32Array,
        cond: Conditions,
        negative_cond: Conditions | None = None,
        progress: bool = False,
    ) -> Float32Array:
        inputs = self.engine.info.cond
        conds, negatives = (
            {name: [row and row[i] for row in rows] for i, name in enumerate(inputs)} or None
            for rows in (cond, negative_cond or [None] * len(x))
        )
        found = self.engine.sample(
            len(x), table=table, noise=x, cond=conds, negative_cond=negatives, seed=0, progress=progress
        )
        self.tick(len(x) * table.passes)
        return found

    def run(
        self,
        student: Student,
        x: Float32Array | None = None,
        earlier: Sequence[Float32Array] = (),
        begin: int = 0,
    ) -> Float32Array:
        """The results of a student's steps from ``begin`` on.

        Args:
            student: The student.
            x: States there, shape (k n, *shape); None is ``noise``.
            earlier: Predictions of the steps before, the latest first.
            begin: The first step.
        """
        x = self.noise if x is None else x
        for step in range(begin, len(student)):
            predictions = self.predict(student, step, x)
            x = student.next_state(step, student.read(step, x, [*predictions, *earlier]))
            earlier = [predictions[0], *earlier][:3]
        return x

    def error(self, student: Student) -> float:
        """RMS of a student's results to the fine solutions; infinite where the network fails on a run that blows up."""
        try:
            return rms(self.run(student) - self.target)
        except DenoiserError:
            return math.inf

    def error_of(self, table: StepTable) -> float:
        """The same of a table."""
        try:
            return rms(self.sample(table, self.noise) - self.target)
        except DenoiserError:
            return math.inf

    def linearized(self, student: Student) -> tuple[Float32Array, Float64Array, Float64Array]:
        """Results of a student, and the normal equations of its free numbers at them.

        Derivatives are differences: each free number of a step is moved by itself, and the steps behind are run again.

        Returns:
            The residuals, shape (n, *shape); JᵀJ and Jᵀr, over the number of residuals.
        """
        x, earlier, moved = self.noise, list[Float32Array](), []
        states = []
        for step in range(len(student)):
            predictions = self.predict(student, step, x)
            states.append((x, predictions, earlier))
            x = student.next_state(step, student.read(step, x, [*predictions, *earlier]))
            earlier = [predictions[0], *earlier][:3]
        for step, (state, predictions, before) in enumerate(states):
            moved.append(self._moved(student, step, state, predictions, before, x))
        jacobian = np.concatenate(moved).reshape(-1, x.size)
        residual = x - self.target
        product = np.concatenate([jacobian, residual.reshape(1, -1)])
        gram = _gram(product) / x.size
        return residual, gram[:-1, :-1], gram[:-1, -1]

    def _moved(
        self,
        student: Student,
        step: int,
        x: Float32Array,
        predictions: Sequence[Float32Array],
        before: Sequence[Float32Array],
        end: Float32Array,
    ) -> Float32Array:
        """Derivatives of the results by each free number of a step, shape (numbers, *end.shape)."""
        read = student.read(step, x, [*predictions, *before])
        after = student.next_state(step, read)
        t = student.numbers[step, 0]
        times = min(t + _T_STEP, 1.0), max(t - _T_STEP, 0.0)
        moved, latest = [], []
        for time in times:
            numbers = student.numbers.copy()
            numbers[step, 0] = time
            shifted = replace(student, numbers=numbers)
            at_t = self.predict(shifted, step, x)
            moved.append(shifted.next_state(step, shifted.read(step, x, [*at_t, *before])))
            latest.append(at_t[0])
        sizes = [_STEP / max(rms(one), _STEP) for one in read.values()]
        moved += [after + np.float32(size) * one for size, one in zip(sizes, read.values(), strict=True)]
        latest += [predictions[0]] * len(read)
        earlier = [np.concatenate(latest), *(np.concatenate([one] * len(moved)) for one in before)][:3]
        ends = self.run(student, np.concatenate(moved), earlier, step + 1).reshape(len(moved), *end.shape)
        by_t = (ends[0] - ends[1]) / np.float32(times[0] - times[1])
        return np.stack([by_t, *((one - end) / np.float32(size) for one, size in zip(ends[2:], sizes, strict=True))])


def _gram(rows: Float32Array, chunk: int = 1 << 16) -> Float64Array:
    """Products of rows with each other, in float64 a piece at a time."""
    total = np.zeros((len(rows), len(rows)))
    for first in range(0, rows.shape[1], chunk):
        piece = rows[:, first : first + chunk].astype(np.float64)
        total += piece @ piece.T
    return total
