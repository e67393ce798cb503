"""The command ``stepfuse quantize``: a bundle that computes in int8."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from stepfuse.cli.completion import words
from stepfuse.cli.console import Report
from stepfuse.cli.options import Force, Model, NewBundle, Threads
from stepfuse.cli.target import require_new_bundle


def quantize(
    model: Model,
    *,
    method: Annotated[
        str, typer.Option(metavar="TEXT", help="static or dynamic.", autocompletion=words("static", "dynamic"))
    ] = "static",
    even_if_slower: Annotated[
        bool, typer.Option("--even-if-slower", help="Write it even where it is not faster.")
    ] = False,
    output: NewBundle,
    force: Force = False,
    threads: Threads = 0,
    report: Report,
) -> None:
    """Write a bundle that computes in int8, if that is faster on this machine."""
    folder = require_new_bundle(output, force=force)
    from stepfuse.export import quantize as run  # takes seconds

    report.note(f"quantizing {model}, and measuring it in float32 and int8")
    bundle = run(model, folder, method=method, threads=threads, force=even_if_slower, overwrite=force)
    found: dict[str, Any] = bundle.export["quantization"]
    for rows, times in found["milliseconds"].items():
        before, after = times["float32"], times["int8"]
        report.say(
            f"{rows} rows: {before:.2f} ms in float32, {after:.2f} ms in int8, {before / after:.2f} times as fast"
        )
    report.say(f"images differ by {found['image_error']:.1%} of the data range, root mean square; written to {output}")
    report.finish(bundle=output, quantization=found)
