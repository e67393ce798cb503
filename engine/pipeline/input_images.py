"""Pictures that samples begin as, and masks: from files, Pillow images and arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from stepfuse.pipeline.shown_picture import Mode, as_shown, open_picture

Array = npt.NDArray[np.float32]


def read_image(path: Path, shape: tuple[int, ...], data_range: tuple[float, float]) -> Array:
    """Reads a picture as a sample, as a viewer shows it (``as_shown``).

    Args:
        path: Any format that Pillow reads; of several frames the first.
        shape: (C, H, W) of the sample, C = 1 (it is turned to grey) or 3 (to RGB).
        data_range: Values of black and of full.

    Raises:
        ValueError: If the picture, upright, has another size, ``as_shown`` refuses it, or ``shape`` is not
            (1 or 3, H, W).
        OSError: If the file cannot be read.
    """
    return sample_of(open_picture(path), shape, data_range, str(path))


def sample_of(picture: Image.Image, shape: tuple[int, ...], data_range: tuple[float, float], name: str) -> Array:
    """A picture as a sample, as a viewer shows it (``as_shown``).

    Args:
        picture: Of the sample's size.
        shape: As for ``read_image``, as is what follows.
        data_range: Values of black and of full.
        name: What messages call it: a file's path, or a word.

    Raises:
        ValueError: As in ``read_image``.
    """
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"samples must have shape (1 or 3, H, W) to be read from a picture, got {shape}")
    levels = _levels_of_size(as_shown(picture, "L" if shape[0] == 1 else "RGB", name), name, shape)
    low, high = data_range
    return np.asarray(levels.reshape(*shape[1:], -1).transpose(2, 0, 1) * (high - low) + low, dtype=np.float32)


def read_mask(path: Path, shape: tuple[int, ...], cell: int) -> Array:
    """Reads a mask, white where the picture is repainted, as a mask of samples.

    Args:
        path: As for ``read_image``.
        shape: (C, H, W) in pixels, for any number of channels.
        cell: Pixels a side that one value of a sample stands for: the first pixel of each is taken.

    Returns:
        Shape (1, H / cell, W / cell), 0 to 1.

    Raises:
        ValueError: As in ``read_image``, and if the mask is transparent anywhere.
        OSError: If the file cannot be read.
    """
    return mask_of(open_picture(path), shape, cell, str(path))


def mask_of(picture: Image.Image, shape: tuple[int, ...], cell: int, name: str) -> Array:
    """A picture as a mask of samples.

    Args:
        picture: Of the samples' size in pixels.
        shape: As for ``read_mask``, as is what follows.
        cell: Pixels a side that one value of a sample stands for.
        name: What messages call it.

    Raises:
        ValueError: As in ``read_mask``.
    """
    if len(shape) != 3:
        raise ValueError(f"samples must have shape (C, H, W) to be masked by a picture, got {shape}")
    return _levels_of_size(as_shown(picture, "L", name, opaque=True), name, shape)[None, ::cell, ::cell]


def shown(name: str, given: Any, mode: Mode, *, opaque: bool = False) -> Any:
    """Pillow images as a viewer shows them, one or a list; anything else as it is.

    Raises:
        ValueError: If ``as_shown`` refuses one.
        TypeError: If a list holds Pillow images and something else.
    """
    pictures = given if isinstance(given, list | tuple) else [given]
    kinds = {isinstance(one, Image.Image) for one in pictures}
    if True not in kinds:
        return given
    if False in kinds:
        other = next(type(one).__name__ for one in pictures if not isinstance(one, Image.Image))
        raise TypeError(f"{name} must be Pillow images or an array, got a list with {other} beside Pillow images")
    found = [as_shown(one, mode, name, opaque=opaque) for one in pictures]
    return found if isinstance(given, list | tuple) else found[0]


def size_of(given: Any) -> tuple[int, int] | None:
    """Width and height of a picture or of several, None if ``given`` is neither Pillow images nor such an array.

    Args:
        given: Pillow images, upright, or anything else.

    Raises:
        ValueError: If Pillow images have several sizes.
    """
    if isinstance(given, Image.Image):
        return given.size
    if isinstance(given, list | tuple) and given and isinstance(given[0], Image.Image):
        sizes: set[tuple[int, int]] = {one.size for one in given}
        if len(sizes) > 1:
            named = ", ".join(f"{width} x {height}" for width, height in sorted(sizes))
            raise ValueError(f"pictures must have one size unless width and height are given, got {named}")
        return sizes.pop()
    shape = np.shape(given)
    return (shape[-2], shape[-3]) if len(shape) in (3, 4) and shape[-1] == 3 else None


def from_pictures(given: Any, width: int, height: int) -> Array:
    """Pictures that samples begin as.

    Args:
        given: A Pillow image or a list of them, which are scaled to the size; or an array of this size, (H, W, 3) or
            (m, H, W, 3), floating point, 0 to 1.
        width: In pixels.
        height: In pixels.

    Returns:
        Shape (m, 3, H, W), -1 to 1.

    Raises:
        ValueError: If an array has another shape, or a value is not between 0 and 1.
        TypeError: If an array is not floating point.
    """
    return levels_of("image", given, width, height) * 2 - 1


def levels_of(name: str, given: Any, width: int, height: int) -> Array:
    """Pictures as they are, 0 to 1.

    Args:
        name: What messages call them.
        given: As for ``from_pictures``, as is what follows.
        width: In pixels.
        height: In pixels.

    Returns:
        Shape (m, 3, H, W), 0 to 1.

    Raises:
        ValueError: As in ``from_pictures``.
        TypeError: Likewise.
    """
    levels = _stacked(shown(name, given, "RGB"), width, height, _scaled)
    array = np.asarray(given) if levels is None else levels
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[1:] != (height, width, 3) or not len(array):
        raise ValueError(
            f"{name} must have shape ({height}, {width}, 3) or (n, {height}, {width}, 3), got {array.shape}"
        )
    return np.ascontiguousarray(_unit(name, array).transpose(0, 3, 1, 2))


def from_masks(given: Any, width: int, height: int, cell: int = 1) -> Array:
    """Masks of pixels as masks of latents: the first pixel of each cell, as diffusers takes it.

    Args:
        given: A Pillow image or a list of them, which are scaled to the size, white where the picture is repainted;
            one of black and white alone stays so. Or an array (H, W) or (m, H, W), 0 to 1.
        width: In pixels.
        height: In pixels.
        cell: Pixels a side of a cell, which one latent stands for.

    Returns:
        Shape (m, 1, h, w), 0 to 1.

    Raises:
        ValueError: If an array has another shape, or a value is not between 0 and 1.
        TypeError: If an array is neither floating point nor of truth values.
    """
    levels = _stacked(shown("mask", given, "L", opaque=True), width, height, _scaled_mask)
    array = np.asarray(given) if levels is None else levels
    array = array.astype(np.float32) if array.dtype == bool else array
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[1:] != (height, width) or not len(array):
        raise ValueError(f"mask must have shape ({height}, {width}) or (n, {height}, {width}), got {array.shape}")
    return np.ascontiguousarray(_unit("mask", array)[:, None, ::cell, ::cell])


def _levels_of_size(picture: Image.Image, name: str, shape: tuple[int, ...]) -> Array:
    """A picture's values, 0 to 1, shape (H, W) or (H, W, 3)."""
    height, width = shape[-2:]
    if picture.size != (width, height):
        got = f"{picture.width} x {picture.height}"
        raise ValueError(f"{Path(name).name} must be {width} x {height} pixels for this model, got {got}")
    return np.asarray(picture, dtype=np.float32) / np.float32(255)


def _stacked(
    given: Any, width: int, height: int, scaled: Callable[[Image.Image, tuple[int, int]], Image.Image]
) -> Array | None:
    """Pillow images as one array, 0 to 1; None if ``given`` holds anything else."""
    pictures = given if isinstance(given, list | tuple) else [given]
    if not pictures or not isinstance(pictures[0], Image.Image):
        return None
    size = width, height
    alike = [one if one.size == size else scaled(one, size) for one in pictures]
    return np.stack([np.asarray(one, dtype=np.float32) / 255 for one in alike])


def _scaled(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture.resize(size, Image.Resampling.LANCZOS)


def _scaled_mask(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """One of black and white alone is rounded after the scaling, as diffusers rounds all."""
    scaled = _scaled(mask, size)
    is_hard = not any(mask.histogram()[1:255])
    return scaled.point(lambda level: 255 if level >= 128 else 0) if is_hard else scaled


def _unit(name: str, array: npt.NDArray[Any]) -> Array:
    if array.dtype.kind != "f":
        raise TypeError(f"{name} must be Pillow images, or floating point from 0 to 1, got {array.dtype}")
    inside = (array >= 0) & (array <= 1)
    if not inside.all():
        where = tuple(int(i) for i in np.argwhere(~inside)[0])
        raise ValueError(f"{name} must be between 0 and 1, got {array[where]:g} at {where}")
    return array.astype(np.float32)
