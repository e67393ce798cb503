"""The pictures that a pipeline returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from stepfuse.pipeline.image_files import save_png

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Pictures:
    """The result of one call: a sequence of Pillow images.

    Attributes:
        pixels: Shape (n, H, W, 3), float32, 0 to 1.
        latents: Shape (n, C, h, w), float32: the samples that the pixels were decoded from.
        facts: How each was made, as PNG text entries: prompt, seed, sampler, ...
        seeds: The seed of each.
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
        """Writes PNG files with ``facts`` as their text entries.

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
    """Samples (n, C, H, W) as pixels (n, H, W, C), 0 to 1; values beyond ``data_range`` are clipped."""
    low, high = data_range
    return np.ascontiguousarray(np.clip((samples - low) / (high - low), 0, 1).transpose(0, 2, 3, 1))
