"""Pictures as the files that answers hold."""

from __future__ import annotations

import base64

from PIL import Image

from stepfuse.pipeline.image_files import file_bytes, save_options
from stepfuse.pipeline.pictures import Pictures
from stepfuse.server.models import ServedModel
from stepfuse.server.schema import Asked, Drawn, Format

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


def picture_file(pictures: Pictures, asked: Asked) -> bytes:
    """The file of one picture, which holds how it was drawn."""
    options = save_options(f".{asked.output_format}", pictures.facts[0], quality=asked.output_compression)
    return file_bytes(pictures[0], options)


def preview_file(image: Image.Image, format: Format = "png", quality: int | None = None) -> bytes:
    """The file of a preview: a PNG compressed quickly, since another one follows."""
    options = save_options(f".{format}", {}, quality=quality)
    return file_bytes(image, {**options, "optimize": False, "compress_level": 1} if format == "png" else options)


def as_base64(data: bytes) -> str:
    """The bytes in base64."""
    return base64.b64encode(data).decode("ascii")


def drawn(pictures: Pictures, model: ServedModel, id: str) -> Drawn:
    """How one picture was drawn."""
    return Drawn(id=id, **model.drawn(pictures))


def size_of(image: Image.Image) -> str:
    """WIDTHxHEIGHT."""
    return f"{image.width}x{image.height}"
