"""The command ``stepfuse interpolate``: walks and grids between noises, as a picture or an animation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
import typer
from rich.markup import escape

import stepfuse as sf
from stepfuse.cli.common import (
    Device,
    Eta,
    GuidanceScale,
    MaxRows,
    Model,
    Sampler,
    Steps,
    Threads,
    console,
    describe,
    one_cond,
    plain_errors,
    say,
)
from stepfuse.requests.interpolation import Path as WalkPath
from stepfuse.requests.interpolation import interpolate_noise, interpolate_noise_grid

_STILL, _MOVING = (".png", ".npy"), {".gif": "GIF", ".apng": "PNG", ".webp": "WEBP"}
_MOST = 10_000  # samples of one picture: a slip of the finger shall not fill the memory


@dataclass(frozen=True)
class _Walk:
    """Noises, shape (n, *shape) or (rows, columns, *shape), where they begin and end, and the seed of step noise."""

    noises: npt.NDArray[np.float32]
    ends: str
    labels: list[str]
    seed: int


def interpolate(
    model: Model = "fashion",
    number: Annotated[int, typer.Option("--number", "-n", help="How many samples along the walk, both ends too.")] = 10,
    cond: Annotated[str | None, typer.Option(help="Class name or index of all samples; nothing if left out.")] = None,
    seed_from: Annotated[int, typer.Option(help="Seed of the noise where the walk begins.")] = 0,
    seed_to: Annotated[int, typer.Option(help="Seed of the noise where it ends.")] = 1,
    from_image: Annotated[
        Path | None, typer.Option(help="Begin at the noise of this picture; with --to-image.")
    ] = None,
    to_image: Annotated[Path | None, typer.Option(help="End at the noise of this picture; with --from-image.")] = None,
    grid: Annotated[str | None, typer.Option(help="ROWSxCOLUMNS, such as 5x8: a grid between four noises.")] = None,
    seeds: Annotated[str, typer.Option(help="The grid's corners: two above, two below.")] = "0,1,2,3",
    path: Annotated[str, typer.Option(help="slerp (great circle) or lerp (straight line).")] = "slerp",
    sampler: Sampler = None,
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    eta: Eta = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="PNG strip or grid; .gif, .apng or .webp moves; .npy is raw.")
    ] = Path("walk.png"),
    columns: Annotated[int, typer.Option(help="Samples a row of the strip.", min=1)] = 10,
    frame_ms: Annotated[int, typer.Option(help="Milliseconds a frame of an animation.", min=10)] = 120,
    back: Annotated[bool, typer.Option("--back/--no-back", help="An animation also walks back, so it loops.")] = True,
    max_rows: MaxRows = None,
    device: Device = "cpu",
    threads: Threads = 0,
) -> None:
    """Draw samples along a walk between two noises, or between four: a strip, a grid or an animation."""
    with plain_errors():
        size = None if grid is None else _grid_size(grid)
        _check_output(output, moving=size is None)
        if path not in get_args(WalkPath):
            raise ValueError(f"path must be slerp or lerp, got {path!r}")
        if (from_image is None) != (to_image is None):
            raise ValueError("--from-image and --to-image go together: a walk has two ends")
        if from_image and size:
            raise ValueError("--grid takes its corners from --seeds: leave out --from-image and --to-image")
        if (count := size[0] * size[1] if size else number) > _MOST:
            raise ValueError(f"a picture must have at most {_MOST:,} samples, got {count:,}")
        way = cast("WalkPath", path)
        with sf.Engine.load(model, device=device, max_rows=max_rows, threads=threads) as engine:
            told = one_cond(engine.info, cond)
            if from_image and guidance_scale is None:
                guidance_scale = 1.0  # with guidance an inversion is far from exact
            table = engine.table(sampler=sampler, steps=steps, guidance_scale=guidance_scale, eta=eta)
            if size:
                walk = _between_four(engine.info.shape, seeds, size, way)
            elif from_image and to_image:
                walk = _between_pictures(engine, (from_image, to_image), number, way, table, told)
            else:
                walk = _between_seeds(engine.info.shape, (seed_from, seed_to), number, way)
            noises = walk.noises.reshape(-1, *engine.info.shape)
            # One seed for all: what noise a stochastic sampler adds is the same in every sample.
            images = engine.sample(
                len(noises),
                noise=noises,
                cond=told,
                table=table,
                seed=[walk.seed] * len(noises),
                progress=console.is_terminal,
            )
        about = f"{Path(model).name}{f' {cond}' if cond else ''}: {describe(table, told=cond is not None)}"
        title = f"{about}, {path}, {walk.ends}"
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.suffix == ".npy":
            np.save(output, images.reshape(walk.noises.shape))
        elif output.suffix in _MOVING:
            frames = np.concatenate([images, images[-2:0:-1]]) if back else images
            _save_animation(output, frames, engine.info, title, frame_ms)
        else:
            _save_picture(output, images, engine.info, title, walk.labels, size[1] if size else min(columns, number))
    console.print(f"[bold]{escape(title)}", highlight=False)
    say(f"{len(images)} samples, {engine.stats()['network_passes']} network passes; written to {output}")


def _between_seeds(shape: tuple[int, ...], seeds: tuple[int, int], number: int, path: WalkPath) -> _Walk:
    z0, z1 = _noises(seeds, shape)
    return _line(z0, z1, (f"seed {seeds[0]}", f"seed {seeds[1]}"), number, path, seeds[0])


def _between_pictures(
    engine: sf.Engine, pictures: tuple[Path, Path], number: int, path: WalkPath, table: sf.StepTable, cond: Any
) -> _Walk:
    """A walk between the noises of two pictures, by the inverse of the table that will draw them again."""
    from stepfuse.pipeline.image_files import read_image

    if table.sampler != "ddim" or table.options["eta"] != 0:
        how = f"{table.sampler} with eta {table.options['eta']:g}" if table.sampler == "ddim" else table.sampler
        raise ValueError(f"pictures can be inverted with sampler ddim and eta 0 alone, got {how}")
    images = np.stack([read_image(one, engine.info.shape, engine.info.data_range) for one in pictures])
    scale = table.options["guidance_scale"]
    z0, z1 = engine.encode(images, steps=len(table), cond=cond, guidance_scale=scale, progress=console.is_terminal)
    return _line(z0, z1, (pictures[0].name, pictures[1].name), number, path, 0)


def _between_four(shape: tuple[int, ...], text: str, size: tuple[int, int], path: WalkPath) -> _Walk:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4 or not all(part.isdigit() for part in parts):
        raise ValueError(f"--seeds must be four whole numbers such as 0,1,2,3, got {text!r}")
    seeds = tuple(map(int, parts))
    noises = interpolate_noise_grid(_noises(seeds, shape), *size, path)
    return _Walk(noises, f"seeds {', '.join(map(str, seeds))}", [""] * (size[0] * size[1]), seeds[0])


def _line(z0: Any, z1: Any, ends: tuple[str, str], number: int, path: WalkPath, seed: int) -> _Walk:
    noises = interpolate_noise(z0, z1, number, path)
    shares = [f"{share:.2f}" for share in np.linspace(0, 1, number)[1:-1]]
    return _Walk(noises, f"{ends[0]} to {ends[1]}", [ends[0], *shares, ends[1]], seed)


def _noises(seeds: tuple[int, ...], shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    for seed in seeds:
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"seed must be between 0 and 2^64 - 1, got {seed}")
    return np.stack([sf.normal(seed, shape) for seed in seeds])


def _check_output(output: Path, *, moving: bool) -> None:
    known = (*_STILL, *_MOVING) if moving else _STILL
    if output.suffix not in known:
        still = "" if moving else " for a grid"
        raise ValueError(f"output must end in {', '.join(known[:-1])} or {known[-1]}{still}, got {output.name}")


def _grid_size(text: str) -> tuple[int, int]:
    rows, cross, columns = text.lower().partition("x")
    if not (cross and rows.isdigit() and columns.isdigit()):
        raise ValueError(f"--grid must be ROWSxCOLUMNS such as 5x8, got {text!r}")
    return int(rows), int(columns)


def _facts(title: str) -> dict[str, str]:
    return {"Software": f"stepfuse {sf.__version__}", "Description": title}


def _save_picture(
    path: Path, images: npt.NDArray[np.float32], facts: sf.ModelInfo, title: str, labels: list[str], columns: int
) -> None:
    from stepfuse.pipeline.image_files import image_grid, save_png

    picture = image_grid(images, labels, title=title, data_range=facts.data_range, columns=columns)
    save_png(picture, path, _facts(title))


def _save_animation(
    path: Path, frames: npt.NDArray[np.float32], facts: sf.ModelInfo, title: str, frame_ms: int
) -> None:
    from stepfuse.pipeline.image_files import save_animation

    kind = cast('Literal["GIF", "PNG", "WEBP"]', _MOVING[path.suffix])
    save_animation(frames, path, kind, _facts(title), data_range=facts.data_range, frame_ms=frame_ms)
