"""The pictures that a pipeline returns."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from stepfuse.pipeline.image_files import ENTRY, SUFFIXES, save_picture
from stepfuse.pipeline.provenance import Provenance

Array = npt.NDArray[np.float32]

_MOST_SHOWN, _SHOWN_SIDE = 36, 768  # of a notebook's output: pictures, and pixels a side
_GAP = 4


@dataclass(frozen=True, eq=False, repr=False)
class Pictures:
    """The result of one call: a sequence of Pillow images. A notebook shows them as a small grid.

    Attributes:
        pixels: Shape (n, H, W, 3) or (n, H, W, 1), float32, 0 to 1.
        latents: Shape (n, C, h, w), float32: the samples that the pixels were decoded from.
        facts: How each was made, as text entries of a file: prompt, seed, sampler, ... and ``stepfuse``, all of it as
            JSON, which ``Provenance.from_json`` reads.
        seeds: The seed of each.
        records: What ``facts`` were written from, where it is at hand: ``provenance`` then need not read them.

    Examples:
        >>> with sf.Engine.load("fashion") as engine:
        ...     pictures = sf.sample_pictures(engine, 3, cond="bag", steps=4, seed=5)
        >>> len(pictures), pictures[0].size, pictures.seeds
        (3, (28, 28), [5, 6, 7])
        >>> pictures.grid(columns=3).width > pictures[0].width
        True
        >>> pictures.provenance[0].sampler
        'ddim'
        >>> pictures.save("bag.png")
        [PosixPath('bag-5.png'), PosixPath('bag-6.png'), PosixPath('bag-7.png')]
    """

    pixels: Array
    latents: Array
    facts: Sequence[Mapping[str, str]]
    seeds: Sequence[int]
    records: Sequence[Provenance] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> Pictures: ...
    def __getitem__(self, index: int | slice) -> Image.Image | Pictures:
        """A picture, 8 bits a channel, whose ``info`` says how it was made; of a slice several."""
        if isinstance(index, slice):
            facts, seeds, records = self.facts[index], self.seeds[index], self.records[index]
            return Pictures(self.pixels[index], self.latents[index], facts, seeds, records)
        picture = self._image(index)
        picture.info.update(self.facts[index])
        return picture

    @property
    def provenance(self) -> list[Provenance]:
        """How each was drawn, all of it, as it is saved.

        Raises:
            KeyError: If ``facts`` do not say.
        """
        return list(self.records) or [Provenance.from_json(facts[ENTRY]) for facts in self.facts]

    def __iter__(self) -> Iterator[Image.Image]:
        return (self[index] for index in range(len(self)))

    def save(self, path: str | Path) -> list[Path]:
        """Writes picture files with ``facts``: a PNG's text entries, or the EXIF data of a JPEG or WebP.

        EXIF has the description, as its user comment the text that web interfaces read, and as the maker's note the
        entry ``stepfuse``. WebP is written without loss, JPEG with a quality of 95.

        Args:
            path: Of one picture, ending in .png, .jpg, .jpeg or .webp; of several, ``cat.png`` stands for
                ``cat-SEED.png``, or ``cat-0.png``, ``cat-1.png``, ... if they share seeds.

        Returns:
            The files.

        Raises:
            ValueError: If the path has another ending, or what is recorded does not fit a JPEG, 64 KiB.
            OSError: If one cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError(f"pictures are written as {', '.join(SUFFIXES)}, got {path.name}")
        names = self.seeds if len(set(self.seeds)) == len(self) else range(len(self))
        paths = [path] if len(self) == 1 else [path.with_stem(f"{path.stem}-{name}") for name in names]
        for one, picture, facts in zip(paths, self, self.facts, strict=True):
            save_picture(picture, one, facts)
        return paths

    def grid(self, columns: int | None = None) -> Image.Image:
        """All pictures in one, row by row.

        Args:
            columns: Pictures a row; None makes about as many rows.

        Raises:
            ValueError: If there is no picture, or ``columns`` is below 1.
        """
        if not len(self) or (columns is not None and columns < 1):
            raise ValueError(f"a grid needs pictures and at least 1 column, got {len(self)} and {columns}")
        return self._grid(range(len(self)), columns or math.ceil(math.sqrt(len(self))), 1.0)

    def _grid(self, indices: Sequence[int], columns: int, scale: float) -> Image.Image:
        _, height, width, channels = self.pixels.shape
        width, height = max(int(width * scale), 1), max(int(height * scale), 1)
        rows = -(-len(indices) // columns)
        mode, paper = ("L", 255) if channels == 1 else ("RGB", (255, 255, 255))
        grid = Image.new(mode, (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP), paper)
        for place, index in enumerate(indices):
            picture = self._image(index)
            picture = picture if picture.size == (width, height) else picture.resize((width, height))
            grid.paste(picture, (place % columns * (width + _GAP), place // columns * (height + _GAP)))
        return grid

    def _image(self, index: int) -> Image.Image:
        levels = (self.pixels[index] * 255).round().astype(np.uint8)
        return Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: the first pictures, no larger than a page."""
        if not len(self):
            return None
        indices = range(min(len(self), _MOST_SHOWN))
        columns = math.ceil(math.sqrt(len(indices)))
        _, height, width, _ = self.pixels.shape
        grid = self._grid(indices, columns, min(_SHOWN_SIDE / (columns * max(width, height)), 1.0))
        file = io.BytesIO()
        grid.save(file, format="PNG")
        return file.getvalue()

    def __repr__(self) -> str:
        _, height, width, _ = self.pixels.shape
        first, last = (self.seeds[0], self.seeds[-1]) if len(self) else (None, None)
        seeds = "" if first is None else f", seed {first}" if len(self) == 1 else f", seeds {first} to {last}"
        return f"<Pictures: {len(self)} of {width} x {height} pixels{seeds}>"


def to_pixels(samples: Array, data_range: tuple[float, float]) -> Array:
    """Samples (n, C, H, W) as pixels (n, H, W, C), 0 to 1; values beyond ``data_range`` are clipped."""
    low, high = data_range
    return np.ascontiguousarray(np.clip((samples - low) / (high - low), 0, 1).transpose(0, 2, 3, 1))
