"""The command ``stepfuse export``: a diffusers pipeline's folder becomes a bundle."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import stepfuse as sf
from stepfuse.cli.common import (
    NewBundle,
    Overwrite,
    Sampler,
    SamplerOptions,
    console,
    parse_sampler_options,
    plain_errors,
    say,
    shown,
)
from stepfuse.display import byte_size


def export(
    pipeline: Annotated[Path, typer.Argument(help="A folder that diffusers' save_pretrained has made.")],
    output: NewBundle,
    precision: Annotated[str, typer.Option(help="float32 or float16.")] = "float32",
    sampler: Sampler = None,
    sampler_option: SamplerOptions = None,
    size: Annotated[
        str | None,
        typer.Option(help="Pixels a side, or WIDTHxHEIGHT, sampled by default; the model's own if left out."),
    ] = None,
    opset: Annotated[int, typer.Option(help="ONNX operator set.")] = 18,
    name: Annotated[str | None, typer.Option(help="The model's name; the folder's if left out.")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Largest error allowed, relative; 1e-4, or 0.02 in float16.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Export a diffusers pipeline, every network compared with the original before anything is written."""
    with plain_errors():
        from stepfuse.export import from_diffusers

        began = time.perf_counter()
        with _progress() as progress:
            bundle = from_diffusers(
                pipeline,
                output,
                precision=precision,
                sampler=sampler,
                sampler_options=parse_sampler_options(sampler_option),
                opset=opset,
                size=None if size is None else _pixels(size),
                name=name,
                tolerance=tolerance,
                overwrite=overwrite,
                progress=progress,
            )
        seconds = time.perf_counter() - began
    errors = bundle.export["errors"]
    for file, facts in bundle.files.items():
        seen = f", error {max(errors[file].values()):.1e}" if file in errors else ""
        say(f"{file}: {byte_size(facts['size'])}{seen}")
    if bundle.export["left_out"]:
        say(f"not exported: {', '.join(bundle.export['left_out'])}")
    say(f"written to {output} in {seconds:.0f} s; next: {_next(bundle, output)}")


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on a terminal, else one line for each piece of work."""
    if not console.is_terminal:
        yield lambda what, done, total: say(f"{done}/{total} {what}")
        return
    columns = BarColumn(), TextColumn("{task.completed}/{task.total} {task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("reading")
        yield lambda what, done, total: bar.update(task, description=shown(what), completed=done, total=total)


def _pixels(size: str) -> tuple[int, int]:
    sides = size.lower().split("x")
    if len(sides) > 2 or not all(side.isdigit() for side in sides):
        raise ValueError(f"--size must be a number of pixels or WIDTHxHEIGHT, got {size!r}")
    return int(sides[0]), int(sides[-1])


def _next(bundle: sf.Bundle, output: Path) -> str:
    if bundle.pipeline is not None and bundle.pipeline.prompts:
        return f'stepfuse sample {output} --prompt "a red cat in the rain"'
    cond = next(iter(bundle.info.cond.values()), None)
    return f"stepfuse sample {output}" + (" --cond 0" if cond is not None else "")
