"""The command ``stepfuse lora``: a LoRA fused into a bundle's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stepfuse.cli.common import Model, NewBundle, Overwrite, plain_errors, say


def lora(
    model: Model,
    output: NewBundle,
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
