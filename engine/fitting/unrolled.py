"""What the steps of a table read and write, with its history registers resolved into earlier predictions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stepfuse.samplers.table import StepTable

_READ = ("x", "d", "e", "h", "h2", "h3")
_WRITTEN = {"q": _READ, "u": _READ, "v": _READ[:5], "w": _READ[3:]}  # the next state, and the three registers


def weights_of(table: StepTable, registers: int) -> list[npt.NDArray[np.float64]]:
    """What each step of a table makes of the network's input, its prediction, and the predictions before.

    All that a run holds is a sum of its first input and of its predictions: these sums are followed through the rows.
    The states that are weighted are the network's inputs, and last the result.

    Args:
        table: One that adds no noise, reads no unconditional prediction, and has no bounds.
        registers: Earlier predictions that a step may read.

    Returns:
        For each step its weights of the input, of its prediction, and of at most ``registers`` before it, the latest
        first; where a step depends on more, the nearest of such sums.
    """
    steps = len(table)
    line_2 = np.array(
        [
            [table[f"{to}_{name}"] if name in names else np.zeros(steps) for name in _READ]
            for to, names in _WRITTEN.items()
        ],
        np.float64,
    )
    scale = np.append(table["s"].astype(np.float64), 1.0)
    predictions = np.eye(steps, 1 + steps, k=1)
    x, history, found = np.eye(1, 1 + steps)[0] / scale[0], np.zeros((3, 1 + steps)), []
    for step, e in enumerate(predictions):
        d = float(table["p_x"][step]) * x + float(table["p_e"][step]) * e
        after, *kept = line_2[:, :, step] @ np.stack([x, d, e, *history])
        before = predictions[max(step - registers, 0) : step][::-1]
        read = np.stack([scale[step] * x, e, *before])
        found.append(np.linalg.lstsq(read.T, scale[step + 1] * after, rcond=None)[0])
        x, history = after, np.stack(kept)
    return found
