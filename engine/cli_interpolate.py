"""The command ``stepfuse interpolate``: walks and grids between noises, as a picture or an animation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
import typer

import stepfuse as sf
from stepfuse.cli_common import (
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
from stepfuse.interpolation import Path as WalkPath
from stepfuse.interpolation import interpolate_noise, interpolate_noise_grid

_ANIMATED = (".gif", ".apng", ".webp")


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
    max_rows: MaxRows = 64,
    threads: Threads = 0,
) -> None:
    """Draw samples along a walk between two noises, or between four: a strip, a grid or an animation."""
    with plain_errors():
        size = None if grid is None else _grid_size(grid)
        _check_output(output, moving=size is None)
        if path not in get_args(WalkPath):
            raise ValueError(f"path must be slerp or lerp, got {path!r}")
        way = cast("WalkPath", path)
        if (from_image is None) != (to_image is None):
            raise ValueError("--from-image and --to-image go together: a walk has two ends")
        if from_image and size:
            raise ValueError("--grid takes its corners from --seeds: leave out --from-image and --to-image")
        with sf.Engine.load(model, max_rows=max_rows, threads=threads) as engine:
            told = one_cond(engine.info, cond)
            # Inverting is exact enough without guidance alone, and the way there and back have to be the same.
            unguided = 1.0 if from_image else None
            scale = unguided if guidance_scale is None else guidance_scale
            table = engine.table(sampler=sampler, steps=steps, guidance_scale=scale, eta=eta)
            if size is not None:
                corners = _corner_seeds(seeds)
                noises = interpolate_noise_grid([sf.normal(seed, engine.info.shape) for seed in corners], *size, way)
                ends, step_seed = f"seeds {', '.join(map(str, corners))}", corners[0]
            else:
                if from_image and to_image:
                    z0, z1 = _encode(engine, (from_image, to_image), table, told)
                    names, step_seed = (from_image.name, to_image.name), 0
                else:
                    z0, z1 = (sf.normal(_checked_seed(seed), engine.info.shape) for seed in (seed_from, seed_to))
                    names, step_seed = (f"seed {seed_from}", f"seed {seed_to}"), seed_from
                noises = interpolate_noise(z0, z1, number, way)
                ends = f"{names[0]} to {names[1]}"
            flat = noises.reshape(-1, *engine.info.shape)
            # One seed for all: what noise a stochastic sampler adds is the same in every sample.
            images = engine.sample(
                len(flat),
                noise=flat,
                cond=told,
                table=table,
                seed=[step_seed] * len(flat),
                progress=console.is_terminal,
            )
        about = f"{Path(model).name}{f' {cond}' if cond else ''}: {describe(table, told=cond is not None)}"
        title = f"{about}, {path}, {ends}"
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.suffix == ".npy":
            np.save(output, images.reshape(*noises.shape))
        elif output.suffix in _ANIMATED:
            _save_animation(output, images, engine.info, title, frame_ms, back=back)
        else:
            labels = [""] * len(flat) if size else _shares(names, number)
            _save_strip(output, images, engine.info, title, labels, size[1] if size else min(columns, number))
    console.print(f"[bold]{title}" if "[" not in title else title, markup="[" not in title, highlight=False)
    say(f"{len(flat)} samples, {engine.stats()['network_passes']} network passes; written to {output}")


def _check_output(output: Path, *, moving: bool) -> None:
    known = (".png", ".npy", *_ANIMATED) if moving else (".png", ".npy")
    if output.suffix not in known:
        still = "" if moving else " for a grid"
        raise ValueError(f"output must end in {', '.join(known[:-1])} or {known[-1]}{still}, got {output.name}")


def _grid_size(text: str) -> tuple[int, int]:
    rows, cross, columns = text.lower().partition("x")
    if not (cross and rows.isdigit() and columns.isdigit()):
        raise ValueError(f"--grid must be ROWSxCOLUMNS such as 5x8, got {text!r}")
    return int(rows), int(columns)


def _corner_seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4 or not all(part.isdigit() for part in parts):
        raise ValueError(f"--seeds must be four whole numbers such as 0,1,2,3, got {text!r}")
    return [_checked_seed(int(part)) for part in parts]


def _checked_seed(seed: int) -> int:
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed must be between 0 and 2^64 - 1, got {seed}")
    return seed


def _encode(engine: sf.Engine, paths: tuple[Path, Path], table: sf.StepTable, cond: Any) -> npt.NDArray[np.float32]:
    """The noises of two pictures, by the inverse of the table that will draw them again."""
    from stepfuse.grid import read_image

    if table.sampler != "ddim" or table.options["eta"] != 0:
        how = f"{table.sampler} with eta {table.options['eta']:g}" if table.sampler == "ddim" else table.sampler
        raise ValueError(f"pictures can be inverted with sampler ddim and eta 0 alone, got {how}")
    images = np.stack([read_image(path, engine.info.shape, engine.info.data_range) for path in paths])
    scale = table.options["guidance_scale"]
    return engine.encode(images, steps=len(table), cond=cond, guidance_scale=scale, progress=console.is_terminal)


def _shares(ends: tuple[str, str], number: int) -> list[str]:
    return [ends[0], *(f"{share:.2f}" for share in np.linspace(0, 1, number)[1:-1]), ends[1]]


def _facts(title: str) -> dict[str, str]:
    return {"Software": f"stepfuse {sf.__version__}", "Description": title}


def _save_strip(
    path: Path, images: npt.NDArray[np.float32], facts: sf.ModelInfo, title: str, labels: list[str], columns: int
) -> None:
    from stepfuse.grid import image_grid, save_png

    picture = image_grid(images, labels, title=title, data_range=facts.data_range, columns=columns)
    save_png(picture, path, _facts(title))


def _save_animation(
    path: Path, images: npt.NDArray[np.float32], facts: sf.ModelInfo, title: str, frame_ms: int, *, back: bool
) -> None:
    from stepfuse.grid import save_animation

    kind = cast('Literal["GIF", "PNG", "WEBP"]', {".gif": "GIF", ".apng": "PNG", ".webp": "WEBP"}[path.suffix])
    frames = np.concatenate([images, images[-2:0:-1]]) if back else images
    save_animation(frames, path, kind, _facts(title), data_range=facts.data_range, frame_ms=frame_ms)
