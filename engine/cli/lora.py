"""The command ``stepfuse lora``: a LoRA fused into a bundle's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stepfuse.cli.common import refuse
from stepfuse.cli.console import Report
from stepfuse.cli.options import Force, Model, NewBundle
from stepfuse.cli.target import require_new_bundle


def lora(
    model: Model,
    adapter: Annotated[
        Path | None, typer.Argument(metavar="LORA", help="A .safetensors file; left out, --remove must be given.")
    ] = None,
    *,
    scale: Annotated[float | None, typer.Option(metavar="NUMBER", help="Strength of the LoRA; 1.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take all LoRAs out again.")] = False,
    output: NewBundle,
    force: Force = False,
    report: Report,
) -> None:
    """Fuse a LoRA into a bundle's weights, or take all of them out again, to the byte."""
    if remove == (adapter is not None):
        raise ValueError("give either a LoRA to fuse or --remove")
    if remove:
        refuse("is for a LoRA that is fused: leave it out with --remove", scale=scale)
    folder = require_new_bundle(output, force=force)
    from stepfuse.export import fuse_lora, unfuse_lora

    report.note(f"taking LoRAs out of {model}" if adapter is None else f"fusing {adapter} into {model}")
    if adapter is None:
        bundle = unfuse_lora(model, folder, overwrite=force)
    else:
        bundle = fuse_lora(model, adapter, folder, scale=1.0 if scale is None else scale, overwrite=force)
    fused = list(bundle.export.get("loras", ()))
    names = ", ".join(f"{one['name']} at {one['scale']:g}" for one in fused)
    report.say(f"written to {output}, " + (f"with {names}" if names else "without LoRAs"))
    report.finish(bundle=output, loras=fused)
