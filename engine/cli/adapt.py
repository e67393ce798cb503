"""The commands ``stepfuse lora`` and ``stepfuse quantize``: a bundle with other weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stepfuse.cli.common import Model, Threads, plain_errors, say

Output = Annotated[Path, typer.Option("--output", "-o", help="The bundle to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there already.")]


def lora(
    model: Model,
    output: Output,
    adapter: Annotated[
        Path | None, typer.Argument(metavar="[LORA]", help="A .safetensors file; left out, --remove must be given.")
    ] = None,
    scale: Annotated[float, typer.Option(help="Strength.")] = 1.0,
    remove: Annotated[bool, typer.Option("--remove", help="Take all LoRAs out again.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Fuse a LoRA into a bundle's weights, or take all of them out again, to the byte."""
    with plain_errors():
        from stepfuse.export import fuse_lora, unfuse_lora

        if remove == (adapter is not None):
            raise ValueError("give either a LoRA to fuse or --remove")
        if adapter is None:
            unfuse_lora(model, output, overwrite=overwrite)
            say(f"written to {output}, without LoRAs")
            return
        bundle = fuse_lora(model, adapter, output, scale=scale, overwrite=overwrite)
        fused = ", ".join(f"{one['name']} at {one['scale']:g}" for one in bundle.export["loras"])
    say(f"written to {output}, with {fused}")


def quantize(
    model: Model,
    output: Output,
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
