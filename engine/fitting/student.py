"""A run of few steps whose every number is free, and the table that it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from stepfuse.samplers.table import StepTable

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

#: What a step of a student has, in the order of ``Student.numbers``: its timestep as a share of the largest, and the
#: weights of what the next state is a sum of: the state, the guided prediction, the predictions of the last three
#: steps, and the unconditional prediction.
NUMBERS = ("t", "x", "e", "h", "h2", "h3", "u")
_REGISTERS = ("h", "h2", "h3")


@dataclass(frozen=True)
class Student:
    """A run of S steps, each an affine one.

    Attributes:
        numbers: Shape (S, 7), float64, columns as in ``NUMBERS``.
        free: Which of them are fitted, shape (S, 7); the others are 0.
        guidance_scale: Of the guided prediction.
        max_timestep: What ``t`` is a share of.
    """

    numbers: Float64Array
    free: npt.NDArray[np.bool_]
    guidance_scale: float
    max_timestep: float

    @classmethod
    def of(cls, table: StepTable, guidance_scale: float, max_timestep: float, registers: int = 3) -> Student:
        """A student that begins as a table that has no memory and adds no noise.

        Args:
            table: Such as DDIM's.
            guidance_scale: 1 leaves the unconditional prediction out.
            max_timestep: The schedule's.
            registers: Earlier predictions that a step may read, 0 to 3.
        """
        numbers = np.zeros((len(table), len(NUMBERS)))
        numbers[:, 0] = table["t"] / max_timestep
        numbers[:, 1] = table["q_x"] + table["q_d"].astype(np.float64) * table["p_x"]
        numbers[:, 2] = table["q_e"] + table["q_d"].astype(np.float64) * table["p_e"]
        free = np.zeros(numbers.shape, dtype=bool)
        free[:, :3] = True
        for back, name in enumerate(_REGISTERS[:registers], start=1):
            free[back:, NUMBERS.index(name)] = True
        free[:, NUMBERS.index("u")] = guidance_scale != 1
        return cls(numbers, free, guidance_scale, max_timestep)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def vector(self) -> Float64Array:
        """The free numbers, step by step."""
        return self.numbers[self.free]

    @property
    def bounds(self) -> tuple[Float64Array, Float64Array]:
        """Least and greatest values of the free numbers: timesteps stay within the schedule."""
        low, high = np.full(self.numbers.shape, -np.inf), np.full(self.numbers.shape, np.inf)
        low[:, 0], high[:, 0] = 0.0, 1.0
        return low[self.free], high[self.free]

    def with_vector(self, vector: Float64Array) -> Student:
        """The same with other free numbers; timesteps are held to the schedule's."""
        numbers = self.numbers.copy()
        numbers[self.free] = vector
        numbers[:, 0] = np.clip(numbers[:, 0], 0.0, 1.0)
        return replace(self, numbers=numbers)

    def timestep(self, step: int) -> float:
        """The timestep of a step."""
        return float(np.float32(self.numbers[step, 0] * self.max_timestep))

    def read(self, step: int, x: Float32Array, predictions: Sequence[Float32Array]) -> dict[str, Float32Array]:
        """What a step's free weights multiply, by their names in ``NUMBERS``.

        Args:
            step: Which.
            x: The states.
            predictions: Guided predictions, the latest first, and where the student is guided behind it the
                unconditional one of this step: ``[e, u, e of the step before, ...]``, else ``[e, e before, ...]``.
        """
        guided = self.guidance_scale != 1
        earlier = predictions[2 if guided else 1 :]
        found = {"x": x, "e": predictions[0], **dict(zip(_REGISTERS, earlier, strict=False))}
        if guided:
            found["u"] = predictions[1]
        return {name: one for name, one in found.items() if self.free[step, NUMBERS.index(name)]}

    def next_state(self, step: int, read: dict[str, Float32Array]) -> Float32Array:
        """The next states of a step, of what it reads."""
        total = np.zeros_like(read["x"])
        for name, one in read.items():
            total += np.float32(self.numbers[step, NUMBERS.index(name)]) * one
        return total

    def columns(self) -> dict[str, npt.ArrayLike]:
        """Columns of its table, but for line 1, which only previews read."""
        weights = {name: self.numbers[:, index] for index, name in enumerate(NUMBERS)}
        last = np.arange(len(self)) == len(self) - 1
        columns: dict[str, npt.ArrayLike] = {
            "t": weights["t"] * self.max_timestep,
            "q_x": weights["x"],
            "q_e": weights["e"],
        }
        for register, keeps in (("h", "u_e"), ("h2", "v_h"), ("h3", "w_h2")):
            if self.free[:, NUMBERS.index(register)].any():
                columns |= {f"q_{register}": weights[register], keeps: np.where(last, 0.0, 1.0)}
        if self.free[:, NUMBERS.index("u")].any():
            columns["q_u"] = weights["u"]
        return columns
