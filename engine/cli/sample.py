"""The command ``stepfuse sample``: samples as a labelled grid, or pictures of a prompt."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import stepfuse as sf
from stepfuse.cli.common import (
    Device,
    Eta,
    GuidanceScale,
    Sampler,
    SamplerOptions,
    Steps,
    Threads,
    console,
    parse_cond,
    parse_sampler_options,
    plain_errors,
    say,
)
from stepfuse.cli.latents import edit_arguments, pictures_of
from stepfuse.cli.like import Like, OptionalModel
from stepfuse.cli.prompt import require_prompt, sample_prompt
from stepfuse.cli.redraw import draw_again
from stepfuse.files.atomic import write_atomically


def sample(
    model: OptionalModel = None,
    prompt: Annotated[str | None, typer.Option(help="What the picture shows, for a text-to-image bundle.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What guidance leads away from.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels, with --prompt; the model's own if left out.")] = None,
    height: Annotated[int | None, typer.Option(help="Likewise.")] = None,
    number: Annotated[
        int | None, typer.Option("--number", "-n", help="How many samples; 30, or 1 with --prompt.")
    ] = None,
    cond: Annotated[
        list[str] | None, typer.Option(help="Class name or index; repeat it for several. All classes if left out.")
    ] = None,
    sampler: Sampler = None,
    sampler_option: SamplerOptions = None,
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    eta: Eta = None,
    seed: Annotated[int | None, typer.Option(help="Sample i has seed SEED + i.", show_default="0")] = None,
    image: Annotated[
        Path | None,
        typer.Option(help="A picture that all samples begin as, noised; of the model's size without --prompt."),
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="White where --image is repainted, black where it is kept.")] = None,
    strength: Annotated[
        float | None, typer.Option(help="Share of the steps that --image leaves, to 1; 0.8, or 1 with a mask.")
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="PNG grid, or .npy for the raw samples. With --prompt each picture is a PNG of its own, NAME-SEED.png"
            " if there are several.",
        ),
    ] = Path("samples.png"),
    like: Like = None,
    columns: Annotated[int | None, typer.Option(help="Samples a row of the grid.", min=1, show_default="10")] = None,
    max_rows: Annotated[
        int | None,
        typer.Option(help="Most rows of one forward; 64, on a GPU 16, or by size with --prompt.", min=1),
    ] = None,
    device: Device = "cpu",
    threads: Threads = 0,
) -> None:
    """Sample a model and write a labelled grid, or pictures of a prompt."""
    with plain_errors():
        if output.suffix not in (".png", ".npy"):
            raise ValueError(f"output must end in .png or .npy, got {output.name}")
        chosen = parse_sampler_options(sampler_option)
        options = {"prompt": prompt, "negative_prompt": negative_prompt, "width": width, "height": height}
        if like is not None:
            own = {"sampler": sampler, "steps": steps, "guidance_scale": guidance_scale, "eta": eta, "options": chosen}
            begin = {"image": image, "mask": mask, "strength": strength}
            many = {"number": number, "cond": cond, "seed": seed, "columns": columns, "max_rows": max_rows}
            draw_again(like, model, output, {**options, **own, **begin, **many}, device=device, threads=threads)
            return
        model, seed, columns = model or "fashion", seed or 0, columns or 10
        bundle = sf.Bundle.load(model)
        prompted = require_prompt(bundle, {**options, "cond": cond})
        output.parent.mkdir(parents=True, exist_ok=True)
        if prompted:
            sample_prompt(
                bundle,
                output,
                device=device,
                max_rows=max_rows,
                threads=threads,
                **options,
                **chosen,
                num_images=1 if number is None else number,
                sampler=sampler,
                steps=steps,
                guidance_scale=guidance_scale,
                eta=eta,
                seed=seed,
                image=image,
                mask=mask,
                strength=strength,
            )
            return
        from stepfuse.pipeline.drawn import conditions, record, title
        from stepfuse.pipeline.grids import save_grid

        number = 30 if number is None else number
        with sf.Engine.load(bundle, device=device, max_rows=max_rows, threads=threads) as engine:
            conds = conds_per_sample(engine.info, cond, number)
            table = engine.table(sampler=sampler, steps=steps, guidance_scale=guidance_scale, eta=eta, **chosen)
            editing = edit_arguments(bundle, image, mask, threads)
            began = time.perf_counter()
            images = engine.sample(
                number, cond=conds, table=table, seed=seed, strength=strength, progress=console.is_terminal, **editing
            )
            seconds = time.perf_counter() - began
            drawn: dict[str, Any] = {
                "number": number,
                "columns": min(columns, number),
                "cond": conditions(engine, conds, number),
            }
            made = record(engine, table, seed, strength=strength, **editing, **drawn)
        if output.suffix == ".npy":
            write_atomically(output, partial(np.save, arr=images))
        else:
            pictures, data_range = pictures_of(bundle, images, threads)
            save_grid(output, pictures, made, data_range=data_range)
    _report(engine.stats(), title(made), number, seconds)
    say(f"written to {output}")


def conds_per_sample(info: sf.ModelInfo, texts: list[str] | None, number: int) -> list[Any] | None:
    """The conditioning of each sample: the values of ``--cond``, or else all classes, repeated in order.

    Returns:
        None, all samples unconditional, where nothing is given and the model does not have exactly one conditioning
        input with class names.

    Raises:
        ValueError: If ``--cond`` is given and the model does not have exactly one conditioning input.
    """
    names: list[str] | tuple[str, ...] = texts or (next(iter(info.cond.values())).names if len(info.cond) == 1 else ())
    conds = [parse_cond(info, name) for name in names]
    return [conds[index % len(conds)] for index in range(number)] if conds else None


def _report(stats: sf.EngineStats, title: str, number: int, seconds: float) -> None:
    say(title, bold=True)
    console.print(
        f"{number} samples, {stats.network_passes:.0f} network passes in {stats.forwards:.0f} forwards,"
        f" {seconds:.2f} s ({seconds / number * 1e3:.0f} ms a sample): network {stats.network_seconds:.2f} s,"
        f" step {stats.step_seconds * 1e3:.1f} ms, loop {stats.loop_seconds * 1e3:.1f} ms",
        highlight=False,
    )
