"""Which of several compiled steps is the fastest on this GPU."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse._core import cuda
from stepfuse.samplers.table import COLUMNS

_ROUNDS = 31  # timed, after one that is not


def step_seconds(
    kernels: Sequence[cuda.StepKernel], context: cuda.Context, slots: int, n: int, network_bytes: int, *, noise: bool
) -> list[float]:
    """How long each of some compiled steps takes, in device memory of its own: medians, measured alternately.

    Every slot is guided and has rows in the next forward, as most steps of the loop. As behind a forward, the cache has
    nothing of what a step reads: before each launch a copy fills it, during which the host enqueues the launch, so that
    no time is the host's. Times hold what two events cost, all alike.

    Args:
        kernels: Variants of ``fused_step`` with float32 states, which take the same arguments.
        context: Of the GPU.
        slots: Samples of the step.
        n: Elements of a sample.
        network_bytes: Of an element of the prediction.
        noise: Whether they make noise.

    Returns:
        Seconds of one launch, in order.

    Raises:
        CudaError: If there is no memory, or a call of the driver failed.
    """
    stream = cuda.Stream(context)
    memory, values = _problem(context, stream, slots, n, network_bytes, noise=noise)
    read, written = (cuda.DeviceBuffer(context, context.cache_bytes) for _ in range(2))
    found: list[list[float]] = [[] for _ in kernels]
    begin, end = (cuda.Event(context, timing=True) for _ in range(2))
    for round_ in range(1 + _ROUNDS):
        for kernel, seconds in zip(kernels, found, strict=True):
            written.copy(stream, read, read.bytes)
            stream.record(begin)
            kernel.launch(stream, slots, values)
            stream.record(end)
            end.synchronize()
            if round_:
                seconds.append(end.seconds_since(begin))
    del memory  # until here
    return [median(seconds) for seconds in found]


def _problem(
    context: cuda.Context, stream: cuda.Stream, slots: int, n: int, network_bytes: int, *, noise: bool
) -> tuple[list[cuda.DeviceBuffer], dict[str, int]]:
    """Memory, and the arguments of a step over it. States and predictions are not set: no time depends on them."""
    memory = []

    def placed(values: npt.NDArray[Any]) -> int:
        buffer = cuda.DeviceBuffer(context, values.nbytes)
        buffer.upload(stream, values)
        stream.synchronize()
        memory.append(buffer)
        return buffer.address

    def room(elements: int, size: int) -> int:
        memory.append(cuda.DeviceBuffer(context, elements * size))
        return memory[-1].address

    row = np.ones(len(COLUMNS), np.float32)
    row[[COLUMNS.index(name) for name in ("q_h", "u_x", "u_d", "u_e", "u_h")]] = 0
    row[COLUMNS.index("q_z")] = noise
    rows = placed(np.tile(row, (slots, 1)))
    cond = placed(np.arange(slots, dtype=np.int32))
    uncond = placed(np.arange(slots, 2 * slots, dtype=np.int32))
    x, timesteps = room(slots * n, 4), room(2 * slots, 4)
    prediction, sample = (room(2 * slots * n, network_bytes) for _ in range(2))
    values = {
        **dict.fromkeys(("x", "out"), x),
        **dict.fromkeys(("rows", "next_rows"), rows),
        **dict.fromkeys(("row_cond", "next_cond"), cond),
        **dict.fromkeys(("row_uncond", "next_uncond"), uncond),
        **dict.fromkeys(("h", "x0", "nonfinite", "next_t_int"), 0),
        "prediction": prediction,
        "next_input": sample,
        "next_t": timesteps,
        **dict.fromkeys(("n", "x_stride", "out_stride", "prediction_stride", "next_input_stride"), n),
        **dict.fromkeys(("prediction_rows", "next_input_rows"), 2 * slots),
        **dict.fromkeys(("rows_stride", "next_rows_stride"), len(COLUMNS)),
    }
    if noise:
        values["seed"] = placed(np.arange(slots, dtype=np.int64))
        values["step"] = placed(np.zeros(slots, np.int32))
    return memory, values
