"""The command ``stepfuse interpolate``: walks and grids between noises, as a picture or an animation."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
import typer

import stepfuse as sf
from stepfuse.cli.common import describe, facts_of, parse_cond, refuse
from stepfuse.cli.completion import class_names, words
from stepfuse.cli.console import Report
from stepfuse.cli.options import OUTPUT, PICTURE, WHAT, Force, Machine, Model, Sampling
from stepfuse.cli.target import target_of
from stepfuse.cli.walk import Walk, walk_between_pictures, walk_between_seeds, walk_on_grid
from stepfuse.files.atomic import write_atomically
from stepfuse.requests.interpolation import Path as WalkPath

_STILL, _MOVING = (".png", ".npy"), {".gif": "GIF", ".apng": "PNG", ".webp": "WEBP"}
_MAX_SAMPLES = 10_000  # of one picture: a mistyped number must not fill the memory
_ENDS, _CORNERS = (0, 1), "0,1,2,3"  # seeds


def interpolate(
    model: Model = "fashion",
    *,
    number: Annotated[
        int | None,
        typer.Option(
            "--number",
            "-n",
            metavar="N",
            help="How many samples along the walk, both ends too; 10.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    cond: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Class name or index of all samples; unconditional if left out.",
            rich_help_panel=WHAT,
            autocompletion=class_names,
        ),
    ] = None,
    seed_from: Annotated[
        int | None, typer.Option(metavar="N", help="Seed of the noise where the walk begins; 0.", rich_help_panel=WHAT)
    ] = None,
    seed_to: Annotated[
        int | None, typer.Option(metavar="N", help="Seed of the noise where it ends; 1.", rich_help_panel=WHAT)
    ] = None,
    path: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="slerp (great circle) or lerp (straight line).",
            rich_help_panel=WHAT,
            autocompletion=words("slerp", "lerp"),
        ),
    ] = "slerp",
    grid: Annotated[
        str | None,
        typer.Option(
            metavar="ROWSxCOLUMNS", help="A grid between four noises instead, such as 5x8.", rich_help_panel=WHAT
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="The grid's corners, two above and two below; 0,1,2,3.", rich_help_panel=WHAT
        ),
    ] = None,
    sampling: Sampling,
    from_image: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Begin at the noise of this picture; with --to-image.", rich_help_panel=PICTURE
        ),
    ] = None,
    to_image: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="End at the noise of this picture; with --from-image.", rich_help_panel=PICTURE
        ),
    ] = None,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="PNG strip or grid; .gif, .apng or .webp moves; .npy is raw; - is standard output.",
            rich_help_panel=OUTPUT,
        ),
    ] = "walk.png",
    force: Force = False,
    format: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="png, npy, gif, apng or webp, with --output -.", rich_help_panel=OUTPUT),
    ] = None,
    columns: Annotated[
        int | None, typer.Option(metavar="N", help="Samples a row of the strip; 10.", min=1, rich_help_panel=OUTPUT)
    ] = None,
    frame_ms: Annotated[
        int | None,
        typer.Option(metavar="N", help="Milliseconds a frame of an animation; 120.", min=10, rich_help_panel=OUTPUT),
    ] = None,
    back: Annotated[
        bool | None,
        typer.Option("--back/--no-back", help="An animation also walks back, so it loops.", rich_help_panel=OUTPUT),
    ] = None,
    machine: Machine,
    report: Report,
) -> None:
    """Sample along a walk between two noises, or between four: a strip, a grid or an animation."""
    size = None if grid is None else _grid_size(grid)
    if size is None:
        target = target_of(output, (*_STILL, *_MOVING), format=format)
    else:
        target = target_of(output, _STILL, format=format, of=" for a grid")
    if path not in get_args(WalkPath):
        raise ValueError(f"--path must be slerp or lerp, got {path!r}")
    if (from_image is None) != (to_image is None):
        raise ValueError("--from-image and --to-image go together: a walk has two ends")
    if size:
        corners = "is for a walk, --grid takes its corners from --seeds: leave it out"
        refuse(corners, from_image=from_image, seed_from=seed_from, seed_to=seed_to, number=number, columns=columns)
    else:
        refuse("is for the corners of --grid: leave it out", seeds=seeds)
    if from_image:
        refuse("is for a walk between seeds, not between pictures: leave it out", seed_from=seed_from, seed_to=seed_to)
    if target.suffix in _MOVING or target.suffix == ".npy":
        refuse(f"is for a PNG, not for {target.suffix}: leave it out", columns=columns)
    if target.suffix not in _MOVING:
        refuse(f"is for an animation, not for {target.suffix}: leave it out", frame_ms=frame_ms, back=back)
    number = 10 if number is None else number
    if (count := size[0] * size[1] if size else number) > _MAX_SAMPLES:
        raise ValueError(f"a picture must have at most {_MAX_SAMPLES:,} samples, got {count:,}")
    if target.is_stdout:
        report = report.beside_output()
    bundle = sf.Bundle.load(model)
    given = parse_cond(bundle.info, cond)
    # With guidance an inversion is far from exact.
    unguided = {"guidance_scale": 1.0} if from_image and sampling.guidance_scale is None else {}
    table = sampling.compile(bundle.info, **unguided)
    target.prepare(force=force)
    from stepfuse.pipeline.drawn import conditions, facts, labels, record  # with Pillow, which help does not need

    walk_path = cast("WalkPath", path)
    began = time.perf_counter()
    with sf.Engine.load(bundle, **machine.arguments) as engine:
        if size:
            walk = walk_on_grid(engine.info.shape, _CORNERS if seeds is None else seeds, size, walk_path)
        elif from_image and to_image:
            pictures = from_image, to_image
            walk = walk_between_pictures(engine, pictures, number, walk_path, table, given, report.progress)
        else:
            ends = _ENDS[0] if seed_from is None else seed_from, _ENDS[1] if seed_to is None else seed_to
            walk = walk_between_seeds(engine.info.shape, ends, number, walk_path)
        noises = walk.noises.reshape(-1, *engine.info.shape)
        # One seed for all: a stochastic sampler then adds the same noise to every sample.
        images = engine.sample(
            len(noises),
            noise=noises,
            cond=given,
            table=table,
            seed=[walk.seed] * len(noises),
            progress=report.progress,
        )
        made = record(
            engine.model,
            table,
            walk.seed,
            schedule=engine.info.schedule,
            max_rows=engine.serving.row_limit,
            number=len(noises),
            cond=conditions(engine, given, len(noises)),
            walk={"path": path, "ends": walk.ends},
        )
    name = labels(made.cond, 1)[0] if made.cond else "unconditional" if cond else ""
    about = f"{bundle.name}{f' {name}' if name else ''}: {describe(table, conditional=made.cond is not None)}"
    title = f"{about}, {path}, {walk.ends}"
    width = size[1] if size else min(columns or 10, number)
    frames = images if back is False else np.concatenate([images, images[-2:0:-1]])
    entries = {**facts(made), "Description": title}
    target.write(partial(_save, images, frames, walk, engine.info, entries, width, frame_ms or 120))
    seconds = time.perf_counter() - began
    passes = engine.stats().network_passes
    report.say(title, bold=True)
    report.say(f"{len(images)} samples, {passes:.0f} network passes; written to {target.name}")
    report.finish(
        model=bundle.name,
        **facts_of(table),
        path=path,
        ends=walk.ends,
        number=len(images),
        files=[target.name],
        seconds=round(seconds, 3),
        network_passes=int(passes),
    )


def _grid_size(text: str) -> tuple[int, int]:
    rows, cross, columns = text.lower().partition("x")
    if not (cross and rows.isdigit() and columns.isdigit()):
        raise ValueError(f"--grid must be ROWSxCOLUMNS such as 5x8, got {text!r}")
    if int(rows) < 2 or int(columns) < 2:
        raise ValueError(f"--grid must have at least 2 rows and 2 columns, got {text!r}")
    return int(rows), int(columns)


def _save(
    images: npt.NDArray[np.float32],
    frames: npt.NDArray[np.float32],
    walk: Walk,
    info: sf.ModelInfo,
    entries: dict[str, str],
    columns: int,
    frame_ms: int,
    path: Path,
) -> None:
    """Writes the samples as what the file's suffix says."""
    from stepfuse.pipeline.image_files import image_grid, save_animation, save_picture

    suffix = path.suffix.lower()
    if suffix == ".npy":
        write_atomically(path, partial(np.save, arr=images.reshape(walk.noises.shape)))
    elif suffix in _MOVING:
        kind = cast('Literal["GIF", "PNG", "WEBP"]', _MOVING[suffix])
        save_animation(frames, path, kind, entries, data_range=info.data_range, frame_ms=frame_ms)
    else:
        picture = image_grid(
            images, walk.labels, title=entries["Description"], data_range=info.data_range, columns=columns
        )
        save_picture(picture, path, entries)
