"""Grids of samples as picture files that say how they were drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from stepfuse.pipeline.drawn import facts, labels, title
from stepfuse.pipeline.image_files import image_grid, save_picture
from stepfuse.pipeline.provenance import Provenance


def save_grid(
    path: Path, samples: npt.NDArray[np.float32], made: Provenance, *, data_range: tuple[float, float]
) -> None:
    """Writes samples row by row, each with its class below, and how they were drawn above.

    Args:
        path: The file, ending in one of ``SUFFIXES``.
        samples: Shape (n, C, H, W), C = 1 or 3.
        made: How they were drawn, ``columns`` a row.
        data_range: Values shown as black and as full.

    Raises:
        ValueError: If ``samples`` have another shape.
        OSError: If the file cannot be written.
    """
    captions, columns = labels(made.cond, len(samples)), made.columns or len(samples)
    grid = image_grid(samples, captions, title=title(made), data_range=data_range, columns=columns)
    save_picture(grid, path, facts(made))
