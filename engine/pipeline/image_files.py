"""Samples as picture files: labelled grids, and animations."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from stepfuse.display import encodable, printable
from stepfuse.files.atomic import write_atomically

#: The text entry that holds ``Provenance.to_json``, and that of ``webui_text``.
ENTRY, WEBUI_ENTRY = "stepfuse", "parameters"

USER_COMMENT, MAKER_NOTE = b"UNICODE\0", b"stepfuse\0"  # what EXIF's values begin with

_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    ".png": {"format": "PNG", "optimize": True},
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".webp": {"format": "WEBP", "lossless": True},
}
#: Endings of picture files.
SUFFIXES = tuple(_OPTIONS)
_JPEG_EXIF = 65_533 - len(b"Exif\0\0")

_GAP, _CAPTION, _TITLE = 6, 16, 26
_PAPER, _INK, _EDGE = (255, 255, 255), (40, 40, 40), (190, 190, 190)
_LEAST_CELL = 84  # pixels wide, so that a caption fits
_LEAST_FRAME = 224
_LEAST_WIDTH = 360  # pixels of a grid, so that its title takes a line or two
_LONGEST_TITLE, _LONGEST_LABEL = 1000, 60  # characters


def image_grid(
    samples: npt.NDArray[np.float32],
    labels: Sequence[str],
    *,
    title: str,
    data_range: tuple[float, float],
    columns: int,
) -> Image.Image:
    """Lays samples out row by row, each with its label below.

    Args:
        samples: Shape (n, C, H, W), C = 1 (grey) or 3 (RGB); values beyond ``data_range`` are clipped.
        labels: n captions; if all are empty, no room is left for them.
        title: Written above the grid, on as many lines as it needs at the picture's width; the grid is in its middle.
        data_range: Values shown as black and as full.
        columns: Samples a row.

    Raises:
        ValueError: If ``samples`` does not have shape (n, 1 or 3, H, W).
    """
    pictures = _pictures(samples, data_range, _LEAST_CELL)
    title, labels = printable(title, _LONGEST_TITLE), [printable(label, _LONGEST_LABEL) for label in labels]
    width, height = pictures[0].size
    gap, below = (_GAP, _CAPTION) if any(labels) else (2, 2)
    rows = -(-len(samples) // columns)
    own_width = columns * (width + gap) + _GAP
    total_width = max(own_width, _LEAST_WIDTH)
    left = _GAP + (total_width - own_width) // 2
    heading = ImageFont.load_default(14)
    lines = _wrapped(title, heading, total_width - 2 * _GAP)
    head = _TITLE + 18 * (len(lines) - 1)
    grid = Image.new("RGB", (total_width, rows * (height + below) + head + _GAP), _PAPER)
    draw = ImageDraw.Draw(grid)
    for index, line in enumerate(lines):
        draw.text((_GAP, _GAP + 18 * index), line, fill=_INK, font=heading)
    caption = ImageFont.load_default(11)
    for index, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        x, y = left + index % columns * (width + gap), head + index // columns * (height + below)
        draw.rectangle((x - 1, y - 1, x + width, y + height), outline=_EDGE)  # a white sample has an edge, too
        grid.paste(picture, (x, y))
        draw.text((x + width // 2, y + height + 1), label, fill=_INK, font=caption, anchor="ma")
    return grid


def save_png(picture: Image.Image, path: Path, facts: Mapping[str, str]) -> None:
    """Writes a PNG, whatever the path ends in, with ``facts``, how it was made, as its text entries."""
    options = save_options(".png", facts)
    write_atomically(path, lambda file: picture.save(file, **options))


def save_picture(picture: Image.Image, path: Path, facts: Mapping[str, str]) -> None:
    """Writes a picture file, by its ending one of ``SUFFIXES``, with ``facts``, how it was made.

    Args:
        picture: The picture.
        path: The file.
        facts: Text entries of a PNG; of a JPEG or WebP, ``exif_of`` them.

    Raises:
        ValueError: If ``facts`` do not fit a JPEG.
        OSError: If the file cannot be written.
    """
    options = save_options(path.suffix.lower(), facts, name=path.name)
    write_atomically(path, lambda file: picture.save(file, **options))


def save_options(
    suffix: str, facts: Mapping[str, str], *, name: str = "a picture", quality: int | None = None
) -> dict[str, Any]:
    """Arguments of Pillow's ``Image.save`` for a picture with ``facts``, how it was made.

    Args:
        suffix: One of ``SUFFIXES``.
        facts: Text entries of a PNG; of a JPEG or WebP, ``exif_of`` them.
        name: What messages call the picture.
        quality: Of a JPEG or WebP, 0 to 100; None is 95 for JPEG, and WebP without loss.

    Raises:
        ValueError: If ``facts`` do not fit a JPEG.
    """
    options = {**_OPTIONS[suffix]}
    if options["format"] == "PNG":
        return {**options, "pnginfo": _png_info(facts)}
    options["exif"] = exif_of(facts)
    if options["format"] == "JPEG" and len(options["exif"]) > _JPEG_EXIF:
        raise ValueError(
            f"{name} must be a PNG or WebP: a JPEG holds {_JPEG_EXIF:,} bytes of how it was made, it takes"
            f" {len(options['exif']):,}"
        )
    if quality is None:
        return options
    return {**options, "quality": quality} | ({"lossless": False} if options["format"] == "WEBP" else {})


def file_bytes(picture: Image.Image, options: Mapping[str, Any]) -> bytes:
    """A picture's file in memory; ``options`` are those of ``save_options``."""
    file = io.BytesIO()
    picture.save(file, **options)
    return file.getvalue()


def save_animation(
    samples: npt.NDArray[np.float32],
    path: Path,
    kind: Literal["GIF", "PNG", "WEBP"],
    facts: Mapping[str, str],
    *,
    data_range: tuple[float, float],
    frame_ms: int,
) -> None:
    """Writes samples as the frames of an animation that loops and carries how it was made.

    Args:
        samples: Shape (n, C, H, W), C = 1 or 3, as for ``image_grid``.
        path: The file.
        kind: ``PNG`` is an animated PNG, which keeps every colour; so does ``WEBP``, written without loss.
        facts: PNG text entries; a GIF's comment, a line each; a WebP's ``exif_of`` them.
        data_range: Values shown as black and as full.
        frame_ms: How long a frame stays, in milliseconds. GIF counts in hundredths of a second.

    Raises:
        ValueError: If ``samples`` does not have shape (n, 1 or 3, H, W).
    """
    first, *rest = _pictures(samples, data_range, _LEAST_FRAME)
    options: dict[str, Any] = {}
    if kind == "PNG":
        options["pnginfo"] = _png_info(facts)
    elif kind == "GIF":
        options["comment"] = "\n".join(f"{name}: {encodable(value)}" for name, value in facts.items())
    else:
        options.update(exif=exif_of(facts), lossless=True)
    options.update(format=kind, save_all=True, append_images=rest, duration=frame_ms, loop=0)
    write_atomically(path, lambda file: first.save(file, **options))


def exif_of(facts: Mapping[str, str]) -> bytes:
    """EXIF data of what a picture was made of.

    ``Software`` and the description have tags of their own; the user comment is ``parameters``, which web interfaces
    read there, and the maker's note ``stepfuse``.
    """
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = encodable(facts.get("Software", ""))
    exif[ExifTags.Base.ImageDescription] = encodable(facts.get("Description", ""))
    notes: dict[int, bytes] = {}
    if WEBUI_ENTRY in facts:
        notes[ExifTags.Base.UserComment] = USER_COMMENT + encodable(facts[WEBUI_ENTRY]).encode("utf-16-be")
    if ENTRY in facts:
        notes[ExifTags.Base.MakerNote] = MAKER_NOTE + facts[ENTRY].encode("ascii")
    exif[ExifTags.IFD.Exif] = notes  # older Pillows write no directory that get_ifd has made
    return exif.tobytes()


def _pictures(samples: npt.NDArray[np.float32], data_range: tuple[float, float], least_width: int) -> list[Image.Image]:
    """Each sample as a picture, enlarged by a whole factor to at least this width."""
    if samples.ndim != 4 or samples.shape[1] not in (1, 3):
        raise ValueError(f"samples must have shape (n, 1 or 3, H, W) to be drawn, got {samples.shape}")
    low, high = data_range
    levels = (np.clip((samples - low) / (high - low), 0, 1) * 255).round().astype(np.uint8)
    height, width = samples.shape[2:]
    zoom = max(1, -(-least_width // width))
    size = width * zoom, height * zoom
    pixels = [one[0] if len(one) == 1 else one.transpose(1, 2, 0) for one in levels]
    return [Image.fromarray(one).resize(size, Image.Resampling.NEAREST) for one in pixels]


def _wrapped(text: str, font: Any, width: int) -> list[str]:
    """The text broken into lines that fit ``width``."""
    lines: list[str] = []
    for word in text.split(" "):
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _png_info(facts: Mapping[str, str]) -> PngInfo:
    info = PngInfo()
    for name, value in facts.items():
        info.add_text(name, encodable(value))
    return info
