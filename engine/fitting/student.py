"""A run of few steps whose every number is free, and the table that it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from stepfuse.bundle.model_info import ModelInfo
from stepfuse.fitting.unrolled import weights_of
from stepfuse.samplers.coefficients import alphas_at, clean_sample
from stepfuse.samplers.table import StepTable

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

#: What a step of a student has, in the order of ``Student.numbers``: its timestep as a share of the largest, and the
#: weights of what the next state is a sum of: the state, the guided prediction, the predictions of the last three
#: steps, the unconditional prediction, and the clean sample that the guided one implies, within the data's range.
NUMBERS = ("t", "x", "e", "h", "h2", "h3", "u", "d")
_REGISTERS = ("h", "h2", "h3")


@dataclass(frozen=True)
class Student:
    """A run of S steps, each an affine one but for the bounds of the clean sample.

    Attributes:
        info: The model.
        numbers: Shape (S, 8), float64, columns as in ``NUMBERS``.
        free: Which of them are fitted, shape (S, 8); the others are 0.
        guidance_scale: Of the guided prediction.
    """

    info: ModelInfo
    numbers: Float64Array
    free: npt.NDArray[np.bool_]
    guidance_scale: float

    @classmethod
    def blank(cls, info: ModelInfo, steps: int, guidance_scale: float, registers: int) -> Student:
        """A student whose numbers are all 0.

        Args:
            info: The model.
            steps: S.
            guidance_scale: 1 leaves the unconditional prediction out.
            registers: Earlier predictions that a step may read, 0 to 3.
        """
        free = np.zeros((steps, len(NUMBERS)), dtype=bool)
        free[:, [NUMBERS.index(name) for name in ("t", "x", "e")]] = True
        free[:, NUMBERS.index("d")] = info.range_known
        for back, name in enumerate(_REGISTERS[:registers], start=1):
            free[back:, NUMBERS.index(name)] = True
        free[:, NUMBERS.index("u")] = guidance_scale != 1
        return cls(info, np.zeros(free.shape), free, guidance_scale)

    def beginning_as(self, table: StepTable) -> Student:
        """The same with the numbers of a sampler of as many steps, as near as they come.

        Args:
            table: One that adds no noise and reads no unconditional prediction; its bounds are left out.
        """
        registers = int(self.free[-1, [NUMBERS.index(name) for name in _REGISTERS]].sum())
        numbers = np.zeros(self.numbers.shape)
        numbers[:, 0] = table["t"] / self.info.schedule.max_timestep
        for step, weights in enumerate(weights_of(table, registers)):
            numbers[step, 1 : 1 + len(weights)] = weights
        return replace(self, numbers=numbers)

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
        return float(np.float32(self.numbers[step, 0] * self.info.schedule.max_timestep))

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
        low, high = self.info.data_range
        p_x, p_e = (np.float32(self._clean[name][step]) for name in ("p_x", "p_e"))
        found["d"] = np.clip(p_x * x + p_e * predictions[0], np.float32(low), np.float32(high))
        return {name: one for name, one in found.items() if self.free[step, NUMBERS.index(name)]}

    def next_state(self, step: int, read: dict[str, Float32Array]) -> Float32Array:
        """The next states of a step, of what it reads."""
        total = np.zeros_like(read["x"])
        for name, one in read.items():
            total += np.float32(self.numbers[step, NUMBERS.index(name)]) * one
        return total

    @property
    def _clean(self) -> dict[str, Float64Array]:
        """Weights of the clean sample, by column, a number a step."""
        t = self.numbers[:, 0] * self.info.schedule.max_timestep
        if self.info.schedule.is_flow:
            return {"p_x": np.ones_like(t), "p_e": -t / self.info.schedule.max_timestep}
        found = clean_sample(self.info.prediction_type, alphas_at(self.info.schedule, t), None)
        return {name: np.asarray(one, np.float64) for name, one in found.items()}

    def columns(self) -> dict[str, npt.ArrayLike]:
        """Columns of its table."""
        weights = {name: self.numbers[:, index] for index, name in enumerate(NUMBERS)}
        last = np.arange(len(self)) == len(self) - 1
        low, high = self.info.data_range
        columns: dict[str, npt.ArrayLike] = {
            "t": weights["t"] * self.info.schedule.max_timestep,
            "g": self.guidance_scale,
            **self._clean,
            **({"lo": low, "hi": high} if self.info.range_known else {}),
            "q_x": weights["x"],
            "q_d": weights["d"],
            "q_e": weights["e"],
        }
        for register, keeps in (("h", "u_e"), ("h2", "v_h"), ("h3", "w_h2")):
            if self.free[:, NUMBERS.index(register)].any():
                columns |= {f"q_{register}": weights[register], keeps: np.where(last, 0.0, 1.0)}
        if self.free[:, NUMBERS.index("u")].any():
            columns["q_u"] = weights["u"]
        return columns
