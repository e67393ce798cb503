"""What a picture file says of how it was made. Files are of unknown origin: all is bounded, and nothing is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image

from stepfuse.pipeline.image_files import ENTRY, MAKER_NOTE, USER_COMMENT, WEBUI_ENTRY
from stepfuse.pipeline.provenance import Provenance
from stepfuse.pipeline.shown_picture import open_picture
from stepfuse.pipeline.webui_text import read_webui_text

MOST_TEXT = 1 << 16  # characters of the web interfaces' text


@dataclass(frozen=True)
class SavedEntries:
    """What a picture file says of how it was made.

    Attributes:
        format: ``PNG``, ``JPEG``, ...
        size: Width and height in pixels.
        provenance: All that this package has recorded; None where it has not.
        webui: The settings that web interfaces write, by their names; empty where there are none.
        description: One line.
    """

    format: str
    size: tuple[int, int]
    provenance: Provenance | None
    webui: Mapping[str, str]
    description: str


def read_entries(path: Path) -> SavedEntries:
    """Reads a picture's entries, as ``Pictures.save``, the commands and web interfaces write them.

    Args:
        path: A PNG, a GIF, or a picture with EXIF data.

    Raises:
        ValueError: If the picture is too large, or an entry longer than 1 MiB or not as it is written; the message
            names file, rule and value.
        OSError: If the file cannot be read.
    """
    picture = open_picture(path)
    texts = _of_exif(picture)
    texts |= _of_comment(picture)
    texts |= {str(name): value for name, value in picture.info.items() if isinstance(value, str)}
    try:
        made = Provenance.from_json(texts[ENTRY]) if ENTRY in texts else None
        webui = texts.get(WEBUI_ENTRY, "")
        if len(webui) > MOST_TEXT:
            raise ValueError(f"{WEBUI_ENTRY} must be at most {MOST_TEXT:,} characters, got {len(webui):,}")
    except ValueError as error:
        raise ValueError(f"{path}: what it says of how it was made cannot be read: {error}") from error
    settings = read_webui_text(webui) if webui else {}
    return SavedEntries(picture.format or "picture", picture.size, made, settings, texts.get("Description", ""))


def _of_exif(picture: Image.Image) -> dict[str, str]:
    """The texts of ``exif_of``, by the names of a PNG's."""
    found: dict[str, str] = {}
    try:
        exif = picture.getexif()
        notes = exif.get_ifd(ExifTags.IFD.Exif)
    except Exception:  # what a damaged block raises depends on how it is damaged; the picture itself is whole
        return found
    description = exif.get(ExifTags.Base.ImageDescription)
    if isinstance(description, str):
        found["Description"] = description
    comment, note = notes.get(ExifTags.Base.UserComment), notes.get(ExifTags.Base.MakerNote)
    if isinstance(comment, bytes) and comment.startswith(USER_COMMENT):
        found[WEBUI_ENTRY] = comment.removeprefix(USER_COMMENT).decode("utf-16-be", "replace")
    if isinstance(note, bytes) and note.startswith(MAKER_NOTE):
        found[ENTRY] = note.removeprefix(MAKER_NOTE).decode("utf-8", "replace")
    return found


def _of_comment(picture: Image.Image) -> dict[str, str]:
    """The texts of a GIF's comment, a line each as ``save_animation`` writes them."""
    comment = picture.info.get("comment")
    if picture.format != "GIF" or not isinstance(comment, bytes):
        return {}
    lines = (line.partition(": ") for line in comment.decode("utf-8", "replace").split("\n"))
    return {name: value for name, _, value in lines if name in ("Description", ENTRY)}
