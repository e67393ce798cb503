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
from stepfuse.bundle.foreign import require_pipeline_folder
from stepfuse.cli.completion import words
from stepfuse.cli.console import Report, is_terminal, shown, stderr
from stepfuse.cli.options import Force, NewBundle, SamplerName, SamplerOption
from stepfuse.cli.sampler_options import parse_sampler_options
from stepfuse.cli.target import require_new_bundle
from stepfuse.display import byte_size


def export(
    pipeline: Annotated[Path, typer.Argument(help="A folder that diffusers' save_pretrained has made.")],
    *,
    precision: Annotated[
        str,
        typer.Option(metavar="TEXT", help="float32 or float16.", autocompletion=words("float32", "float16")),
    ] = "float32",
    sampler: SamplerName = None,
    sampler_option: SamplerOption = None,
    controlnet: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FOLDER", help="A ControlNet's folder, and what to call it; may be repeated."),
    ] = None,
    clip_skip: Annotated[
        int, typer.Option(metavar="N", help="Layers at the end of CLIP's text encoders that are left out.")
    ] = 0,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Pixels a side, or WIDTHxHEIGHT, sampled by default; the model's own if left out."
        ),
    ] = None,
    opset: Annotated[int, typer.Option(metavar="N", help="ONNX operator set.")] = 18,
    name: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The model's name; the folder's if left out.")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="Largest error allowed, relative; 1e-4, or 0.02 in float16.")
    ] = None,
    output: NewBundle,
    force: Force = False,
    report: Report,
) -> None:
    """Export a diffusers pipeline, every network compared with the original before anything is written."""
    folder = require_new_bundle(output, force=force)
    options, pixels = parse_sampler_options(sampler_option), None if size is None else _pixels(size)
    controlnets = _controlnets(controlnet or [])
    require_pipeline_folder(pipeline)
    from stepfuse.export import from_diffusers  # takes seconds

    began = time.perf_counter()
    with _progress(report) as progress:
        bundle = from_diffusers(
            pipeline,
            folder,
            precision=precision,
            sampler=sampler,
            sampler_options=options,
            controlnets=controlnets,
            clip_skip=clip_skip,
            opset=opset,
            size=pixels,
            name=name,
            tolerance=tolerance,
            overwrite=force,
            progress=progress,
        )
    seconds = time.perf_counter() - began
    errors = bundle.export["errors"]
    for file, facts in bundle.files.items():
        seen = f", error {max(errors[file].values()):.1e}" if file in errors else ""
        report.say(f"{file}: {byte_size(facts['size'])}{seen}")
    if bundle.export["left_out"]:
        report.say(f"not exported: {', '.join(bundle.export['left_out'])}")
    following = _next(bundle, folder)
    report.say(f"written to {output} in {seconds:.0f} s; next: {following}")
    report.finish(
        bundle=output,
        files={name: facts["size"] for name, facts in bundle.files.items()},
        errors=errors,
        left_out=bundle.export["left_out"],
        seconds=round(seconds, 3),
        next=following,
    )


@contextmanager
def _progress(report: Report) -> Iterator[Callable[[str, int, int], None] | None]:
    """On standard error: a progress bar on a terminal, else one line for each piece of work."""
    console = stderr()
    if not report.progress:
        yield None
        return
    if not is_terminal(console):
        yield lambda what, done, total: console.print(f"{done}/{total} {shown(what)}", highlight=False)
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


def _controlnets(given: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in given:
        name, _, path = text.partition("=")
        if not name or not path or name in found:
            raise ValueError(f"--controlnet must be NAME=FOLDER, each with another name, got {text!r}")
        found[name] = Path(path)
    return found


def _next(bundle: sf.Bundle, output: Path) -> str:
    if bundle.pipeline is not None and bundle.pipeline.prompts:
        return f'stepfuse sample {output} --prompt "a red cat in the rain"'
    cond = next(iter(bundle.info.cond.values()), None)
    return f"stepfuse sample {output}" + (" --cond 0" if cond is not None else "")
