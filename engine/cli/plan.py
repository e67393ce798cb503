"""The command ``stepfuse plan``: TensorRT plans of a bundle's networks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import stepfuse as sf
from stepfuse.cli.console import Report
from stepfuse.cli.options import OUTPUT, Model
from stepfuse.cli.target import require_writable
from stepfuse.display import byte_size


def plan(
    model: Model,
    *,
    network: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="An ONNX file of the bundle; all if left out.")
    ] = None,
    ahead: Annotated[
        list[str] | None,
        typer.Option(
            "--for",
            metavar="TEXT",
            help="Compute capability, such as 8.9, to build ahead of time; repeat it for several.",
        ),
    ] = None,
    rows: Annotated[
        str, typer.Option(metavar="TEXT", help="Rows of a forward: min,opt,max. A guided sample takes two.")
    ] = "1,2,8",
    size: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Width x height in pixels, or min,opt,max of it; the model's own if left out."
        ),
    ] = None,
    refittable: Annotated[bool, typer.Option("--refittable", help="Weights can be replaced, as a LoRA does.")] = False,
    hardware: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="tensorrt alone: ampere_plus or same_compute_capability, to run on those too."
        ),
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="tensorrt alone: later versions of it may run the plan.")
    ] = False,
    level: Annotated[
        int | None, typer.Option(metavar="N", help="Effort of the builder; TensorRT's own is 3.", min=0, max=5)
    ] = None,
    workspace: Annotated[
        int | None, typer.Option(metavar="N", help="Most MiB of scratch memory a layer.", min=1)
    ] = None,
    library: Annotated[
        str | None, typer.Option(metavar="TEXT", help="tensorrt or tensorrt_rtx; the first installed.")
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(metavar="FILE", help="tensorrt alone: a file that measured kernels are kept in.")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where plans are kept; in the bundle if left out.", rich_help_panel=OUTPUT),
    ] = None,
    report: Report,
) -> None:
    """Build the TensorRT plans that are not there yet, for this machine's GPU or ahead of time for others."""
    from stepfuse.export import tensorrt as plans

    bundle = sf.Bundle.load(model)
    if timing_cache is not None:
        require_writable(timing_cache)
    built, has_bars = [], report.progress and sys.stderr.isatty()
    for name in network or [name for name in bundle.files if name.endswith(".onnx")]:
        if not has_bars:
            report.note(f"building a plan of {name}")
        one = plans.plan_for(
            bundle,
            name,
            profiles=[plans.Profile.of(rows, size)],
            target=plans.Target(tuple(ahead)) if ahead else None,
            options=plans.Options(
                refittable=refittable,
                version_compatible=version_compatible,
                hardware=hardware,
                level=level,
                workspace=None if workspace is None else workspace << 20,
            ),
            library=plans.find_library(library),
            cache=cache,
            timing_cache=timing_cache,
            progress=has_bars,
        )
        size_in_bytes = memoryview(one.data).nbytes
        report.say(f"{name}: {byte_size(size_in_bytes)} for {one.key.target}, built in {one.seconds:.1f} s")
        built.append({"network": name, "target": str(one.key.target), "bytes": size_in_bytes, "seconds": one.seconds})
    folder = cache or bundle.path / "plans"
    report.say(f"kept in {folder}")
    report.finish(folder=str(folder), plans=built)
