"""A labelled grid of samples as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

_GAP, _CAPTION, _TITLE = 6, 16, 26
_PAPER, _INK = (255, 255, 255), (40, 40, 40)
_LEAST_CELL = 84  # pixels a side: a caption needs some width


def image_grid(
    samples: npt.NDArray[np.float32],
    labels: Sequence[str],
    *,
    title: str,
    data_range: tuple[float, float],
    columns: int,
) -> Image.Image:
    """Draws samples row by row, each with its label below.

    Args:
        samples: Shape (n, C, H, W), C = 1 (grey) or 3 (RGB); values beyond ``data_range`` are clipped.
        labels: n captions.
        title: Written above the grid.
        data_range: Values shown as black and as full.
        columns: Samples a row.

    Raises:
        ValueError: If the samples are no pictures.
    """
    if samples.ndim != 4 or samples.shape[1] not in (1, 3):
        raise ValueError(f"samples must have shape (n, 1 or 3, H, W) to be drawn, got {samples.shape}")
    low, high = data_range
    levels = (np.clip((samples - low) / (high - low), 0, 1) * 255).round().astype(np.uint8)
    height, width = samples.shape[2:]
    zoom = max(1, -(-_LEAST_CELL // width))
    cell_width, cell_height = width * zoom + _GAP, height * zoom + _CAPTION
    rows = -(-len(samples) // columns)
    grid = Image.new("RGB", (columns * cell_width + _GAP, rows * cell_height + _TITLE + _GAP), _PAPER)
    draw = ImageDraw.Draw(grid)
    draw.text((_GAP, _GAP), title, fill=_INK, font=ImageFont.load_default(14))
    caption = ImageFont.load_default(11)
    for index, (picture, label) in enumerate(zip(levels, labels, strict=True)):
        x, y = _GAP + index % columns * cell_width, _TITLE + index // columns * cell_height
        pixels = np.repeat(picture.transpose(1, 2, 0), 3 // picture.shape[0], axis=2)
        grid.paste(Image.fromarray(pixels).resize((width * zoom, height * zoom), Image.Resampling.BICUBIC), (x, y))
        draw.text((x + width * zoom // 2, y + height * zoom + 1), label, fill=_INK, font=caption, anchor="ma")
    return grid


def save_png(picture: Image.Image, path: Path, facts: Mapping[str, str]) -> None:
    """Writes a PNG that carries how it was made as text entries."""
    info = PngInfo()
    for name, value in facts.items():
        info.add_text(name, value)
    picture.save(path, format="PNG", pnginfo=info, optimize=True)
