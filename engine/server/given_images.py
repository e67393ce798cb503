"""Pictures that clients send: of unknown origin, within bounds, and masks of either convention."""

from __future__ import annotations

import base64
import binascii
import io

from PIL import Image, ImageOps

from stepfuse.display import NAME, brief, byte_size, printable
from stepfuse.pipeline.shown_picture import as_shown
from stepfuse.server.errors import ApiError
from stepfuse.server.limits import Limits

_FORMATS = ("PNG", "JPEG", "WEBP")


def given_image(name: str, data: bytes, limits: Limits) -> Image.Image:
    """A picture that a client has sent, upright.

    Its size is looked at before its pixels are unpacked.

    Args:
        name: Of the field.
        data: The file.
        limits: How many pixels it may have.

    Raises:
        ApiError: If it is no PNG, JPEG or WebP, damaged or too large.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            if picture.width * picture.height > limits.pixels:
                got = f"{picture.width} x {picture.height}"
                raise ApiError(400, f"{name} must have at most {limits.pixels:,} pixels, got {got}", param=name)
            picture.load()
            ImageOps.exif_transpose(picture, in_place=True)  # a copy has no format, which says what 16 bits are
            return picture
    except ApiError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # of a damaged file each format's reader raises its own
        why = f"{byte_size(len(data))} that are none: {printable(f'{type(error).__name__}: {error}', NAME)}"
        raise ApiError(400, f"{name} must be a PNG, JPEG or WebP file, got {why}", param=name) from error


def repainted(mask: Image.Image, *, where_opaque: bool = False) -> Image.Image:
    """A mask as the engine takes it, grey, white where the picture is repainted.

    OpenAI's is transparent there, that of web interfaces opaque; one without a transparent pixel is white there.

    Args:
        mask: As ``given_image`` returns it.
        where_opaque: Whether what is opaque is repainted of a mask that is transparent anywhere.

    Raises:
        ApiError: If ``as_shown`` refuses it.
    """
    try:
        grey = as_shown(mask, "L", "mask")
    except ValueError as error:
        raise ApiError(400, str(error), param="mask") from error
    if not mask.has_transparency_data:
        return grey
    alpha = mask.convert("RGBA").getchannel("A")
    if alpha.getextrema() == (255, 255):
        return grey
    return alpha if where_opaque else ImageOps.invert(alpha)


def from_base64(name: str, text: str) -> bytes:
    """The bytes of base64, in one line or several, or of a ``data:`` url.

    Raises:
        ApiError: If it is neither.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(400, f"{name} must be a picture in base64, got {brief(text)}: {error}", param=name) from error
