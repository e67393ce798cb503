"""States of a compiled call on a GPU, stepped there: nothing of a step passes through the host's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from stepfuse.errors import DenoiserError
from stepfuse.integrations.diffusers.batches import Draw, Start
from stepfuse.integrations.diffusers.table_scheduler import new_registers
from stepfuse.integrations.diffusers.torch_step import DTYPES
from stepfuse.samplers.table import COLUMNS
from stepfuse.serving.events import not_finite

#: Numbers of four bytes in sixteen: Triton compiles a kernel anew for a pointer that is not a multiple of that.
_ALIGNED = 4

#: ``predict(sample (R, *shape), timestep (R,))``, a prediction that may be overwritten by the next.
Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class DeviceBatch:
    """A ``Batch`` on a GPU, stepped by ``stepfuse.kernels.fused_step`` on the current stream.

    The table goes to the GPU once. One launch a step blends the predictions, steps the states, adds the noise and
    writes the rows of the next forward; where a callback has replaced the states these are written anew.

    Args:
        start: What it begins with.
        predict: The network on rows.
    """

    def __init__(self, start: Start, predict: Predict) -> None:
        from stepfuse.kernels import fused_step

        self._fused_step, self._predict = fused_step, predict
        self._table, self._device = start.table, start.states.device
        rows = np.array(start.table.rows)
        rows[:, COLUMNS.index("q_z")] = start.noise_scales
        self._rows, self._scales = self._upload(rows), start.table["s"].tolist()
        timesteps = start.table["t"]
        whole = not start.inputs.takes_any_timestep
        self._timesteps = self._upload(np.rint(timesteps).astype(np.int64) if whole else timesteps)
        n, is_guided = len(start.cond), start.uncond is not None
        self._cond = self._upload(start.cond.astype(np.int32))
        self._uncond = self._upload(np.full(n, -1, np.int32) if start.uncond is None else start.uncond.astype(np.int32))
        self._network_dtype, self._network_rows = start.inputs.sample.dtype, start.inputs.rows
        rescale, threshold = start.table.guidance_rescale, start.table.dynamic_threshold
        self._rescale = self._upload(np.full(n, rescale, np.float32)) if rescale and is_guided else None
        self._threshold = [self._upload(np.full(n, value, np.float32)) for value in threshold or ()]
        self._x = start.states.detach().float().contiguous()
        registers = new_registers(self._x, 3 if start.table.has_second_line else start.table.registers)
        self._registers = dict(zip(("h", "h2", "h3"), registers, strict=False))
        aligned = -(-n // _ALIGNED) * _ALIGNED
        self._nonfinite = torch.zeros((len(rows), aligned), dtype=torch.int32, device=self._device)[:, :n]
        self._at = 0
        self._sample: torch.Tensor | None = None  # the next forward's

    def put(self, states: torch.Tensor) -> None:
        """As in ``Batch``."""
        self._x, self._sample = states.detach().float().contiguous(), None

    def step(self, draw: Draw) -> torch.Tensor:
        """As in ``Batch``. A state that is not finite is found by ``check``."""
        at = self._at
        sample = self._rows_of_states() if self._sample is None else self._sample
        prediction = self._predict(sample, self._timesteps[at].expand(self._network_rows))
        prediction = prediction if prediction.dtype in DTYPES else prediction.float()
        noise, following = draw(), self._following(prediction.dtype)
        self._x = self._fused_step(
            self._x,
            prediction,
            self._adapted(prediction),
            row_cond=self._cond,
            row_uncond=self._uncond,
            z=None if noise is None else noise.float(),
            nonfinite=self._nonfinite[at],
            **self._registers,
            **following,
        )
        self._sample, self._at = following.get("next_input"), at + 1
        return self._x

    def stop(self) -> None:
        """As in ``Batch``."""
        self._registers, self._sample = {}, None

    def check(self) -> None:
        """As in ``Batch``."""
        found = self._nonfinite.cpu().numpy()
        if found.any():
            step, sample = np.argwhere(found)[0]
            raise DenoiserError(not_finite(f"picture {sample}", int(step), self._table, self._table.rows[step]))

    def _adapted(self, prediction: torch.Tensor) -> torch.Tensor:
        """The step's row, for all samples, or one for each, with what depends on the whole of its sample."""
        row = self._rows[self._at]
        if self._rescale is None and not self._threshold:
            return row
        from stepfuse.kernels import dynamic_threshold, guidance_rescale

        rows = row.repeat(len(self._cond), 1)
        if self._rescale is not None:
            rows = guidance_rescale(prediction, rows, self._rescale, self._cond, self._uncond)
        if self._threshold:
            ratio, largest = self._threshold
            rows = dynamic_threshold(
                self._x, prediction, rows, ratio, largest, row_cond=self._cond, row_uncond=self._uncond
            )
        return rows

    def _rows_of_states(self) -> torch.Tensor:
        """The forward's rows of states that no step has written them for."""
        scaled = (self._x * self._scales[self._at]).to(self._network_dtype)
        return scaled.repeat(self._network_rows // len(scaled), *[1] * (scaled.ndim - 1))

    def _following(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Where the step writes the next forward's rows, new memory; nothing where the network takes another dtype."""
        if dtype is not self._network_dtype:
            return {}
        shape = self._network_rows, *self._x.shape[1:]
        return {
            "next_input": torch.empty(shape, dtype=dtype, device=self._device),
            "next_rows": self._rows[min(self._at + 1, len(self._rows) - 1)],  # the last step's are not read
            "next_cond": self._cond,
            "next_uncond": self._uncond,
        }

    def _upload(self, values: Any) -> torch.Tensor:
        return torch.from_numpy(np.array(values)).to(self._device)
