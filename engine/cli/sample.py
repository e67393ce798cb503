"""The command ``stepfuse sample``: samples as a labelled grid, or pictures of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stepfuse.bundle.bundle import open_to_use
from stepfuse.cli.common import refuse
from stepfuse.cli.console import Report
from stepfuse.cli.controls import Control, ControlRange, controls_of
from stepfuse.cli.file_names import is_pattern
from stepfuse.cli.grid import sample_classes
from stepfuse.cli.like import Like, OptionalModel
from stepfuse.cli.loras import Lora, Loras
from stepfuse.cli.options import OUTPUT, PICTURE, WHAT, Cond, Machine, NegativePrompt, Prompt, PromptFile, Sampling
from stepfuse.cli.prompt import prompts_of, sample_prompts
from stepfuse.cli.redraw import draw_again
from stepfuse.cli.run_files import Writing


def sample(
    model: OptionalModel = None,
    *,
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    negative_prompt: NegativePrompt = None,
    cond: Cond = None,
    number: Annotated[
        int | None,
        typer.Option(
            "--number", "-n", metavar="N", help="How many samples; 30, or 1 of each prompt.", rich_help_panel=WHAT
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Sample i has seed SEED + i; 0.", rich_help_panel=WHAT)
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(metavar="N", help="Pixels, with --prompt; the model's own if left out.", rich_help_panel=WHAT),
    ] = None,
    height: Annotated[int | None, typer.Option(metavar="N", help="Likewise.", rich_help_panel=WHAT)] = None,
    sampling: Sampling,
    lora: Lora = None,
    image: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="All samples begin as this picture, noised; of the model's size without --prompt.",
            rich_help_panel=PICTURE,
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="White where --image is repainted, black where it is kept.", rich_help_panel=PICTURE
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            help="Share of the steps that --image leaves, to 1; 0.8, or 1 with a mask.",
            rich_help_panel=PICTURE,
        ),
    ] = None,
    control: Control = None,
    control_range: ControlRange = None,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="A .png, .jpg or .webp: a grid, or with prompts a picture, NAME-SEED.png of several. A .npy: the raw"
            " samples."
            " A pattern such as 'out/{index:04}-{seed}-{prompt}.png', also with {cond} and {model}: a file each."
            " -: standard output.",
            rich_help_panel=OUTPUT,
        ),
    ] = "samples.png",
    columns: Annotated[
        int | None, typer.Option(metavar="N", help="Samples a row of the grid; 10.", min=1, rich_help_panel=OUTPUT)
    ] = None,
    like: Like = None,
    writing: Writing,
    machine: Machine,
    report: Report,
) -> None:
    """Sample a model: a labelled grid, or pictures of prompts."""
    if like is not None:
        others = {"prompt_file": prompt_file, "table": sampling.table, "control": control or None}
        refuse("is for other pictures than that of --like: leave it out", **others, control_range=control_range or None)
        if prompt and len(prompt) > 1:
            raise ValueError(f"--prompt must be given once with --like, got {len(prompt)}")
        given: dict[str, Any] = {
            **{"prompt": prompt[0] if prompt else None, "negative_prompt": negative_prompt},
            **{"width": width, "height": height, "number": number, "cond": cond, "seed": seed, "columns": columns},
            **{"image": image, "mask": mask, "strength": strength, "max_rows": machine.max_rows},
            **{**sampling.own, "options": sampling.options},
        }
        draw_again(like, model, output, given, lora, writing, machine, report)
        return
    bundle = open_to_use(model or "fashion")  # checked when it is loaded
    seed = seed or 0
    prompts = prompts_of(
        bundle,
        prompt or None,
        prompt_file,
        cond=cond or None,
        negative_prompt=negative_prompt,
        width=width,
        height=height,
        control=control or None,
        control_range=control_range or None,
    )
    editing: dict[str, Any] = {"image": image, "mask": mask, "strength": strength, "loras": Loras.of(lora)}
    if prompts is not None:
        refuse("is for the grid of a model without prompts: leave it out", columns=columns)
        sample_prompts(
            bundle,
            prompts,
            1 if number is None else number,
            seed,
            sampling,
            output,
            writing,
            machine,
            report,
            negative_prompt=negative_prompt,
            width=width,
            height=height,
            **editing,
            **controls_of(control, control_range),
        )
        return
    if is_pattern(output) or output.endswith(".npy"):
        refuse(f"is for a grid, which --output {output} is not: leave it out", columns=columns)
    sample_classes(
        bundle,
        cond,
        30 if number is None else number,
        seed,
        sampling,
        output,
        writing,
        machine,
        report,
        columns=columns or 10,
        **editing,
    )
