"""Where things lie in a figure: its layout once and for all, and pictures enlarged by whole factors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = "pictures"  # the gid of axes that show samples pixel by pixel


def settle(figure: Figure) -> None:
    """Lays a figure out and keeps it so: from here on axes have the pixel coordinates that they are drawn at.

    What is added later is not given room.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):  # another one, which takes no room, once it is settled
        engine.execute(figure)
        engine.execute(figure)  # the places of texts may change with the widths found
        figure.set_layout_engine("none")
        for axes in figure.axes:
            if axes.get_gid() == PICTURES:
                _snap(figure, axes)


def _snap(figure: Figure, axes: Axes) -> None:
    """Shrinks axes of pictures so that a sample's pixel is a whole number of the figure's, at the upper left."""
    box = axes.get_window_extent()
    rows, columns = axes.images[0].get_array().shape[:2]  # type: ignore[union-attr]
    factor = int(min(box.width / columns, box.height / rows) + 1e-6)
    if factor < 1:  # samples larger than their room are shrunk, and smoothed
        return
    axes.images[0].set_interpolation("nearest")
    left, top = round(box.x0), round(box.y1)
    size = figure.dpi * figure.get_size_inches()
    corner = np.array([left, top - factor * rows]) / size
    axes.set_position((*corner, *(factor * np.array([columns, rows]) / size)))
