"""The command ``stepfuse quantize``: a bundle that computes in int8."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from stepfuse.cli.common import Model, NewBundle, Overwrite, Threads, plain_errors, say


def quantize(
    model: Model,
    output: NewBundle,
    method: Annotated[str, typer.Option(help="static or dynamic.")] = "static",
    force: Annotated[bool, typer.Option("--force", help="Write it even where it is not faster.")] = False,
    threads: Threads = 0,
    overwrite: Overwrite = False,
) -> None:
    """Write a bundle that computes in int8, if that is faster on this machine."""
    with plain_errors():
        from stepfuse.export import quantize as run

        bundle = run(model, output, method=method, threads=threads, force=force, overwrite=overwrite)
    found: dict[str, Any] = bundle.export["quantization"]
    for rows, times in found["milliseconds"].items():
        before, after = times["float32"], times["int8"]
        say(f"{rows} rows: {before:.2f} ms in float32, {after:.2f} ms in int8, {before / after:.2f} times as fast")
    say(f"images differ by {found['image_error']:.1%} of the data range, root mean square; written to {output}")
