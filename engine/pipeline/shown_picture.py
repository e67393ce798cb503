"""Given pictures as a viewer shows them: upright, in grey or RGB, transparency on white."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

Mode = Literal["L", "RGB"]

_PAPER = (255, 255, 255, 255)
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_OF_16_BITS = ("PNG", "PPM")  # formats whose mode I, in which Pillow has no white, holds 0 to 65535


def open_picture(path: Path) -> Image.Image:
    """Reads a picture file, the first of its frames.

    Raises:
        ValueError: If it has more pixels than Pillow's limit against decompression bombs.
        OSError: If it cannot be read, is no picture or is cut off.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} must have at most {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels: {error}") from error
    except OSError as error:
        if error.filename is not None or isinstance(error, UnidentifiedImageError):
            raise
        raise OSError(f"{path} cannot be read as a picture: {error}") from error
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # of a damaged file each format's reader raises its own
        raise OSError(f"{path} cannot be read as a picture: {type(error).__name__}: {error}") from error


def as_shown(picture: Image.Image, mode: Mode, name: str, *, opaque: bool = False) -> Image.Image:
    """A picture as a viewer shows it.

    It is turned as its EXIF orientation says, as ``diffusers.utils.load_image`` does; what is transparent is put on
    white; 16 bits a pixel are scaled to 8. Colour profiles are not applied, as in diffusers.

    Args:
        picture: Of any mode; it is not changed.
        mode: ``L`` (grey) or ``RGB``.
        name: What messages call it.
        opaque: Whether transparency is refused: in a mask it may mean either part.

    Raises:
        ValueError: If its mode does not say which value is white (``I`` and ``F``), it cannot be read, or ``opaque``
            and a pixel is not.
    """
    try:
        sixteen = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in _OF_16_BITS)
        flat = _flat(ImageOps.exif_transpose(picture), name, sixteen, opaque)
        return flat.convert("RGB").convert(mode) if flat.mode == "LAB" else flat.convert(mode)
    except MemoryError:
        raise
    except _UnsuitableError:
        raise
    except Exception as error:  # of a damaged or closed file each format's reader raises its own
        raise ValueError(f"{name} cannot be read as a picture: {type(error).__name__}: {error}") from error


class _UnsuitableError(ValueError):
    """A picture that is not taken; the message says why."""


def _flat(picture: Image.Image, name: str, sixteen: bool, opaque: bool) -> Image.Image:
    """The picture without transparency, 8 bits a channel."""
    mode = picture.mode
    if 0 in picture.size:
        raise _UnsuitableError(f"{name} must have pixels, got {picture.width} x {picture.height}")
    if sixteen:
        if "transparency" in picture.info:
            raise _UnsuitableError(
                f"{name} must not be 16-bit grey with a transparent value: put it on a background first"
            )
        levels = (np.asarray(picture).astype(np.float64) / 257).round().astype(np.uint8)
        return Image.fromarray(levels)
    if mode in ("I", "F"):
        raise _UnsuitableError(
            f"{name} must be of a mode that says which value is white, got mode {mode}: convert it to 8 bits (mode L)"
        )
    if not (picture.has_transparency_data or mode in _PREMULTIPLIED):
        return picture
    own = picture.convert(_PREMULTIPLIED.get(mode, mode)).convert("RGBA")
    if opaque and own.getchannel("A").getextrema() != (255, 255):
        raise _UnsuitableError(
            f"{name} must be opaque, white where the picture is repainted and black where it is kept, got a picture"
            " with transparency: put it on white or on black first"
        )
    paper = Image.new("RGBA", own.size, _PAPER)
    paper.alpha_composite(own)
    return paper.convert("RGB")
