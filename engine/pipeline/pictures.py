"""Pictures: what a pipeline returns, and what it is given to begin with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from stepfuse.pipeline.image_files import save_png

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Pictures:
    """What one call has drawn: a sequence of Pillow images.

    Attributes:
        pixels: Shape (n, H, W, 3), float32, 0 to 1.
        latents: Shape (n, C, h, w), float32: the samples that the pixels were decoded from.
        facts: How each was made, as PNG text entries: prompt, seed, sampler, ...
        seeds: Of each.
    """

    pixels: Array
    latents: Array
    facts: Sequence[Mapping[str, str]]
    seeds: Sequence[int]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Image.Image:
        """A picture, 8 bits a channel; its ``info`` says how it was made."""
        levels = (self.pixels[index] * 255).round().astype(np.uint8)
        picture = Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)
        picture.info.update(self.facts[index])
        return picture

    def __iter__(self) -> Iterator[Image.Image]:
        return (self[index] for index in range(len(self)))

    def save(self, path: str | Path) -> list[Path]:
        """Writes PNG files that carry how they were made.

        Args:
            path: Of one picture; of several, ``cat.png`` stands for ``cat-SEED.png``, or ``cat-0.png``, ``cat-1.png``,
                ... if they share seeds.

        Returns:
            The files.

        Raises:
            ValueError: If the path does not end in ``.png``.
            OSError: If one cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise ValueError(f"pictures are written as .png, got {path.name}")
        names = self.seeds if len(set(self.seeds)) == len(self) else range(len(self))
        paths = [path] if len(self) == 1 else [path.with_stem(f"{path.stem}-{name}") for name in names]
        for one, picture, facts in zip(paths, self, self.facts, strict=True):
            save_png(picture, one, facts)
        return paths


def to_pixels(samples: Array, data_range: tuple[float, float]) -> Array:
    """From (n, C, H, W) in ``data_range`` and a little beyond to (n, H, W, C), 0 to 1."""
    low, high = data_range
    return np.ascontiguousarray(np.clip((samples - low) / (high - low), 0, 1).transpose(0, 2, 3, 1))


def size_of(given: Any) -> tuple[int, int] | None:
    """Width and height of the picture or pictures given, None if they are none."""
    if isinstance(given, Image.Image):
        return given.size
    if isinstance(given, list | tuple) and given:
        return size_of(given[0])
    shape = np.shape(given)
    return (shape[-2], shape[-3]) if len(shape) in (3, 4) else None


def from_pictures(given: Any, width: int, height: int) -> Array:
    """Pictures that a run begins with.

    Args:
        given: A Pillow image or a list of them, which are scaled to the size; or an array of this size, (H, W, 3) or
            (m, H, W, 3), floating point, 0 to 1.
        width: In pixels.
        height: In pixels.

    Returns:
        Shape (m, 3, H, W), -1 to 1.

    Raises:
        ValueError: If the shape or a value is out of bounds.
        TypeError: If it is neither.
    """
    levels = _stacked(given, width, height, "RGB", Image.Resampling.LANCZOS)
    array = np.asarray(given) if levels is None else levels
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[1:] != (height, width, 3) or not len(array):
        raise ValueError(
            f"image must have shape ({height}, {width}, 3) or (n, {height}, {width}, 3), got {array.shape}"
        )
    return np.ascontiguousarray(_unit("image", array).transpose(0, 3, 1, 2) * 2 - 1)


def from_masks(given: Any, width: int, height: int, cell: int) -> Array:
    """A mask of pixels as one of a sample's cells: of each cell the first pixel, as diffusers takes it.

    Args:
        given: A Pillow image or a list of them, which are scaled to the size, white where the picture is drawn anew; or
            an array (H, W) or (m, H, W), 0 to 1.
        width: In pixels.
        height: In pixels.
        cell: Pixels a side of a cell.

    Returns:
        Shape (m, 1, h, w), 0 to 1.

    Raises:
        ValueError: If the shape or a value is out of bounds.
        TypeError: If it is neither.
    """
    levels = _stacked(given, width, height, "L", Image.Resampling.NEAREST)
    array = np.asarray(given) if levels is None else levels
    array = array.astype(np.float32) if array.dtype == bool else array
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[1:] != (height, width) or not len(array):
        raise ValueError(f"mask must have shape ({height}, {width}) or (n, {height}, {width}), got {array.shape}")
    return np.ascontiguousarray(_unit("mask", array)[:, None, ::cell, ::cell])


def _stacked(given: Any, width: int, height: int, mode: str, filter: Image.Resampling) -> Array | None:
    """Pillow images as one array, 0 to 1; None if these are none."""
    pictures = given if isinstance(given, list | tuple) else [given]
    if not pictures or not all(isinstance(one, Image.Image) for one in pictures):
        return None
    scaled = [one.convert(mode) for one in pictures]
    scaled = [one if one.size == (width, height) else one.resize((width, height), filter) for one in scaled]
    return np.stack([np.asarray(one, dtype=np.float32) / 255 for one in scaled])


def _unit(name: str, array: npt.NDArray[Any]) -> Array:
    if array.dtype.kind != "f":
        raise TypeError(f"{name} must be Pillow images, or floating point from 0 to 1, got {array.dtype}")
    inside = (array >= 0) & (array <= 1)
    if not inside.all():
        where = tuple(int(i) for i in np.argwhere(~inside)[0])
        raise ValueError(f"{name} must be between 0 and 1, got {array[where]:g} at {where}")
    return array.astype(np.float32)
