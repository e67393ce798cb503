"""The command ``stepfuse interpolate``: walks and grids between noises, as a picture or an animation."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
import typer

import stepfuse as sf
from stepfuse.cli.common import (
    Device,
    Eta,
    GuidanceScale,
    MaxRows,
    Model,
    Sampler,
    SamplerOptions,
    Steps,
    Threads,
    console,
    describe,
    parse_cond,
    parse_sampler_options,
    plain_errors,
    say,
)
from stepfuse.cli.walk import walk_between_pictures, walk_between_seeds, walk_on_grid
from stepfuse.files.atomic import write_atomically
from stepfuse.requests.interpolation import Path as WalkPath

_STILL, _MOVING = (".png", ".npy"), {".gif": "GIF", ".apng": "PNG", ".webp": "WEBP"}
_MAX_SAMPLES = 10_000  # of one picture: a mistyped number must not fill the memory


def interpolate(
    model: Model = "fashion",
    number: Annotated[int, typer.Option("--number", "-n", help="How many samples along the walk, both ends too.")] = 10,
    cond: Annotated[
        str | None, typer.Option(help="Class name or index of all samples; unconditional if left out.")
    ] = None,
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
    sampler_option: SamplerOptions = None,
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
    """Sample along a walk between two noises, or between four: a strip, a grid or an animation."""
    with plain_errors():
        chosen = parse_sampler_options(sampler_option)
        size = None if grid is None else _grid_size(grid)
        _check_output(output, moving=size is None)
        if path not in get_args(WalkPath):
            raise ValueError(f"path must be slerp or lerp, got {path!r}")
        if (from_image is None) != (to_image is None):
            raise ValueError("--from-image and --to-image go together: a walk has two ends")
        if from_image and size:
            raise ValueError("--grid takes its corners from --seeds: leave out --from-image and --to-image")
        if (count := size[0] * size[1] if size else number) > _MAX_SAMPLES:
            raise ValueError(f"a picture must have at most {_MAX_SAMPLES:,} samples, got {count:,}")
        from stepfuse.pipeline.drawn import conditions, facts, labels, record  # with Pillow, which help does not need

        walk_path = cast("WalkPath", path)
        with sf.Engine.load(model, device=device, max_rows=max_rows, threads=threads) as engine:
            given = parse_cond(engine.info, cond)
            if from_image and guidance_scale is None:
                guidance_scale = 1.0  # with guidance an inversion is far from exact
            table = engine.table(sampler=sampler, steps=steps, guidance_scale=guidance_scale, eta=eta, **chosen)
            if size:
                walk = walk_on_grid(engine.info.shape, seeds, size, walk_path)
            elif from_image and to_image:
                walk = walk_between_pictures(engine, (from_image, to_image), number, walk_path, table, given)
            else:
                walk = walk_between_seeds(engine.info.shape, (seed_from, seed_to), number, walk_path)
            noises = walk.noises.reshape(-1, *engine.info.shape)
            # One seed for all: a stochastic sampler then adds the same noise to every sample.
            images = engine.sample(
                len(noises),
                noise=noises,
                cond=given,
                table=table,
                seed=[walk.seed] * len(noises),
                progress=console.is_terminal,
            )
            made = record(
                engine,
                table,
                walk.seed,
                number=len(noises),
                cond=conditions(engine, given, len(noises)),
                walk={"path": path, "ends": walk.ends},
            )
        name = labels(made.cond, 1)[0] if made.cond else "unconditional" if cond else ""
        about = f"{Path(model).name}{f' {name}' if name else ''}: {describe(table, conditional=made.cond is not None)}"
        title = f"{about}, {path}, {walk.ends}"
        entries = {**facts(made), "Description": title}
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.suffix == ".npy":
            write_atomically(output, partial(np.save, arr=images.reshape(walk.noises.shape)))
        elif output.suffix in _MOVING:
            frames = np.concatenate([images, images[-2:0:-1]]) if back else images
            _save_animation(output, frames, engine.info, entries, frame_ms)
        else:
            _save_png(output, images, engine.info, entries, walk.labels, size[1] if size else min(columns, number))
    say(title, bold=True)
    say(f"{len(images)} samples, {engine.stats()['network_passes']} network passes; written to {output}")


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


def _save_png(
    path: Path,
    images: npt.NDArray[np.float32],
    info: sf.ModelInfo,
    entries: dict[str, str],
    labels: list[str],
    columns: int,
) -> None:
    from stepfuse.pipeline.image_files import image_grid, save_png

    picture = image_grid(images, labels, title=entries["Description"], data_range=info.data_range, columns=columns)
    save_png(picture, path, entries)


def _save_animation(
    path: Path, frames: npt.NDArray[np.float32], info: sf.ModelInfo, entries: dict[str, str], frame_ms: int
) -> None:
    from stepfuse.pipeline.image_files import save_animation

    kind = cast('Literal["GIF", "PNG", "WEBP"]', _MOVING[path.suffix])
    save_animation(frames, path, kind, entries, data_range=info.data_range, frame_ms=frame_ms)
