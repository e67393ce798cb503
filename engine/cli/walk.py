"""Starting noises along a walk between two noises, or on a grid between four."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import stepfuse as sf
from stepfuse.requests.interpolation import Path as WalkPath
from stepfuse.requests.interpolation import interpolate_noise, interpolate_noise_grid


@dataclass(frozen=True)
class Walk:
    """The starting noises of a walk's samples.

    Attributes:
        noises: Shape (n, *shape) or (rows, columns, *shape).
        ends: Where the walk begins and ends, for the title.
        labels: One a sample.
        seed: Seed of the noise that a stochastic sampler adds.
    """

    noises: npt.NDArray[np.float32]
    ends: str
    labels: list[str]
    seed: int


def walk_between_seeds(shape: tuple[int, ...], seeds: tuple[int, int], number: int, path: WalkPath) -> Walk:
    """A walk between the noises of two seeds.

    Raises:
        ValueError: If a seed is not between 0 and 2^64 - 1, or ``number`` is below 2.
    """
    z0, z1 = _noises(seeds, shape, ("--seed-from", "--seed-to"))
    return _line(z0, z1, (f"seed {seeds[0]}", f"seed {seeds[1]}"), number, path, seeds[0])


def walk_between_pictures(
    engine: sf.Engine,
    pictures: tuple[Path, Path],
    number: int,
    path: WalkPath,
    table: sf.StepTable,
    cond: Any,
    progress: bool,
) -> Walk:
    """A walk between the noises of two pictures, which the inverse of ``table`` finds.

    Raises:
        ValueError: If the table is not DDIM's with eta 0 and plain guidance, a picture does not have the model's size,
            or ``number`` is below 2.
        OSError: If a picture cannot be read.
    """
    from stepfuse.pipeline.input_images import read_image

    if table.sampler != "ddim" or table.options["eta"] != 0 or table.options["cfg_pp"]:
        how = f"{table.sampler} with eta {table.options['eta']:g}" if table.sampler == "ddim" else table.sampler
        how += " and CFG++" if table.options.get("cfg_pp") else ""
        raise ValueError(f"pictures can be inverted with sampler ddim and eta 0 alone, got {how}")
    images = np.stack([read_image(one, engine.info.shape, engine.info.data_range) for one in pictures])
    known = signature(sf.samplers.ddim_inverse).parameters.keys() - {"schedule", "steps", "prediction_type"}
    options = {name: value for name, value in table.options.items() if name in known}
    z0, z1 = engine.encode(images, steps=len(table), cond=cond, progress=progress, **options)
    return _line(z0, z1, (pictures[0].name, pictures[1].name), number, path, 0)


def walk_on_grid(shape: tuple[int, ...], text: str, size: tuple[int, int], path: WalkPath) -> Walk:
    """Rows and columns of noises between those of four seeds, which are the corners.

    Raises:
        ValueError: If ``text`` is not four seeds, or a side of ``size`` is below 2.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4 or not all(part.isdigit() for part in parts):
        raise ValueError(f"--seeds must be four whole numbers such as 0,1,2,3, got {text!r}")
    seeds = tuple(map(int, parts))
    noises = interpolate_noise_grid(_noises(seeds, shape, ("--seeds",) * 4), *size, path)
    return Walk(noises, f"seeds {', '.join(map(str, seeds))}", [""] * (size[0] * size[1]), seeds[0])


def _line(z0: Any, z1: Any, ends: tuple[str, str], number: int, path: WalkPath, seed: int) -> Walk:
    noises = interpolate_noise(z0, z1, number, path)
    shares = [f"{share:.2f}" for share in np.linspace(0, 1, number)[1:-1]]
    return Walk(noises, f"{ends[0]} to {ends[1]}", [ends[0], *shares, ends[1]], seed)


def _noises(seeds: tuple[int, ...], shape: tuple[int, ...], options: tuple[str, ...]) -> npt.NDArray[np.float32]:
    for option, seed in zip(options, seeds, strict=True):
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"{option} must be between 0 and 2^64 - 1, got {seed}")
    return np.stack([sf.normal(seed, shape) for seed in seeds])
