"""The command ``stepfuse sample``: samples as a labelled grid, or pictures of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import stepfuse as sf
from stepfuse.cli.common import refuse
from stepfuse.cli.console import Report
from stepfuse.cli.file_names import is_pattern
from stepfuse.cli.grid import sample_classes
from stepfuse.cli.like import Like, OptionalModel
from stepfuse.cli.options import OUTPUT, PICTURE, WHAT, Machine, Sampling
from stepfuse.cli.prompt import read_prompts, sample_prompts
from stepfuse.cli.redraw import draw_again
from stepfuse.cli.run_files import Writing


def sample(
    model: OptionalModel = None,
    *,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="What the picture shows, for a text-to-image bundle; repeat it for several.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    prompt_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A file of prompts, one a line; - is standard input.", rich_help_panel=WHAT),
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What guidance leads away from.", rich_help_panel=WHAT)
    ] = None,
    cond: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="Class name or index; repeat it for several. All classes if left out.",
            rich_help_panel=WHAT,
        ),
    ] = None,
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
        refuse("is for other pictures than that of --like: leave it out", prompt_file=prompt_file, table=sampling.table)
        if prompt and len(prompt) > 1:
            raise ValueError(f"--prompt must be given once with --like, got {len(prompt)}")
        given: dict[str, Any] = {
            **{"prompt": prompt[0] if prompt else None, "negative_prompt": negative_prompt},
            **{"width": width, "height": height, "number": number, "cond": cond, "seed": seed, "columns": columns},
            **{"image": image, "mask": mask, "strength": strength, "max_rows": machine.max_rows},
            **{**sampling.own, "options": sampling.options},
        }
        draw_again(like, model, output, given, writing, machine, report)
        return
    bundle = sf.Bundle.load(model or "fashion")
    seed = seed or 0
    prompts = _prompts(
        bundle,
        prompt or None,
        prompt_file,
        cond=cond or None,
        negative_prompt=negative_prompt,
        width=width,
        height=height,
    )
    editing: dict[str, Any] = {"image": image, "mask": mask, "strength": strength}
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


def _prompts(
    bundle: sf.Bundle, prompt: list[str] | None, prompt_file: str | None, *, cond: list[str] | None, **given: object
) -> list[str] | None:
    """The prompts of a bundle that takes some; None of one that does not.

    Raises:
        ValueError: If the bundle takes prompts and none or ``--cond`` is given, or it takes none and an option that
            needs one is given.
        OSError: If the file of prompts cannot be read.
    """
    if bundle.pipeline is None or not bundle.pipeline.prompts:
        needs = f"needs a pipeline with prompts, {bundle.name} has none: leave it out"
        refuse(needs, prompt=prompt, prompt_file=prompt_file, **given)
        return None
    refuse(f"is for models with classes, {bundle.name} takes --prompt", cond=cond)
    if prompt is None and prompt_file is None:
        raise ValueError(f"{bundle.name} draws what a prompt says: give --prompt or --prompt-file")
    if prompt is not None:
        refuse("and --prompt are two places for prompts: give one of them", prompt_file=prompt_file)
        return prompt
    assert prompt_file is not None
    return read_prompts(prompt_file)
