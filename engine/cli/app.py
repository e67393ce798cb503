"""The command line: ``stepfuse`` and what it can be told to do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.markup import escape
from rich.table import Table

import stepfuse as sf
from stepfuse.cli.adapt import lora, quantize
from stepfuse.cli.analyze import analyze
from stepfuse.cli.common import (
    Device,
    Eta,
    GuidanceScale,
    Model,
    Sampler,
    Steps,
    Threads,
    console,
    describe,
    one_cond,
    plain_errors,
    say,
)
from stepfuse.cli.export import export
from stepfuse.cli.interpolate import interpolate
from stepfuse.cli.plan import plan
from stepfuse.cli.prompt import begin_with, describe_pipeline, pictures_of, require_prompt, sample_prompt

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=sf.__doc__)


@app.command()
def sample(
    model: Model = "fashion",
    prompt: Annotated[str | None, typer.Option(help="What to draw, for a text-to-image bundle.")] = None,
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
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    eta: Eta = None,
    seed: Annotated[int, typer.Option(help="Sample i has seed SEED + i.")] = 0,
    image: Annotated[
        Path | None,
        typer.Option(help="A picture that all samples begin as, noised; of the model's size without --prompt."),
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="White where --image is drawn anew, black where it stays.")] = None,
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
    columns: Annotated[int, typer.Option(help="Samples a row of the grid.", min=1)] = 10,
    max_rows: Annotated[
        int | None,
        typer.Option(help="Most rows of one forward; 64, on a GPU 16, or by size with --prompt.", min=1),
    ] = None,
    device: Device = "cpu",
    threads: Threads = 0,
) -> None:
    """Draw samples and write them as a labelled picture, or pictures of a prompt."""
    with plain_errors():
        if output.suffix not in (".png", ".npy"):
            raise ValueError(f"output must end in .png or .npy, got {output.name}")
        bundle = sf.Bundle.load(model)
        options = {"prompt": prompt, "negative_prompt": negative_prompt, "width": width, "height": height}
        prompted = require_prompt(bundle, {**options, "cond": cond})
        output.parent.mkdir(parents=True, exist_ok=True)
        if prompted:
            if device != "cpu":
                raise ValueError(f"--prompt draws on the CPU: leave out --device, got {device}")
            sample_prompt(
                bundle,
                output,
                max_rows=max_rows,
                threads=threads,
                **options,
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
        number = 30 if number is None else number
        with sf.Engine.load(bundle, device=device, max_rows=max_rows, threads=threads) as engine:
            conds = _conds(engine.info, cond, number)
            table = engine.table(sampler=sampler, steps=steps, guidance_scale=guidance_scale, eta=eta)
            begin = begin_with(bundle, image, mask, threads)
            began = time.perf_counter()
            images = engine.sample(
                number, cond=conds, table=table, seed=seed, strength=strength, progress=console.is_terminal, **begin
            )
            seconds = time.perf_counter() - began
        title = f"{Path(model).name}: {describe(table)}, seed {seed}"
        if output.suffix == ".npy":
            np.save(output, images)
        else:
            pictures, data_range = pictures_of(bundle, images, threads)
            _save_grid(output, pictures, data_range, engine.info, conds, title, min(columns, number))
    _report(engine.stats(), title, number, seconds)
    say(f"written to {output}")


app.command()(interpolate)
app.command()(analyze)
app.command()(export)
app.command()(plan)
app.command()(lora)
app.command()(quantize)


@app.command()
def info(model: Model) -> None:
    """Say what a bundle is, after checking it."""
    with plain_errors():
        bundle = sf.Bundle.load(model)
    facts = bundle.info
    table = Table("", "", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.columns[1].overflow = "fold"
    for name, value in (
        ("name", bundle.name),
        ("folder", bundle.path),
        ("sample", f"{facts.shape}, {facts.data_range[0]:g} to {facts.data_range[1]:g}"),
        ("predicts", facts.prediction_type),
        ("schedule", f"{facts.schedule.config['type']}, T = {facts.schedule.num_train_timesteps}"),
        *((f"input {name}", _describe_input(spec)) for name, spec in facts.cond.items()),
        *describe_pipeline(facts, bundle.pipeline),
        ("defaults", ", ".join(f"{name} {value}" for name, value in facts.defaults.items())),
        *((f"file {name}", f"{entry['size'] / 1e6:.1f} MB, checksum matches") for name, entry in bundle.files.items()),
        ("provenance", bundle.provenance),
        ("licence", bundle.licence),
    ):
        table.add_row(f"[bold]{escape(name)}", escape(str(value)))
    console.print(table, highlight=False)


@app.command()
def doctor() -> None:
    """Say what this machine can run, what is missing, and how to install it."""
    from stepfuse.cli.doctor import examine

    findings = examine()
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", "what", "found", "needed for", "to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        mark = "[green]ok" if finding.ok else "[red]no" if finding.required else "[yellow]-"
        texts = finding.subject, finding.found or "missing", finding.needed_for, finding.remedy
        table.add_row(mark, *map(escape, texts))
    console.print(table, highlight=False)
    if any(finding.required and not finding.ok for finding in findings):
        raise typer.Exit(1)


def _conds(facts: sf.ModelInfo, given: list[str] | None, number: int) -> list[Any] | None:
    """A condition a sample: those asked for, or all classes, in turn. None tells the network nothing."""
    names: list[str] | tuple[str, ...] = given or (
        next(iter(facts.cond.values())).names if len(facts.cond) == 1 else ()
    )
    chosen = [one_cond(facts, name) for name in names]
    return [chosen[index % len(chosen)] for index in range(number)] if chosen else None


def _save_grid(
    path: Path,
    images: np.ndarray,
    data_range: tuple[float, float],
    facts: sf.ModelInfo,
    conds: list[Any] | None,
    title: str,
    columns: int,
) -> None:
    from stepfuse.pipeline.image_files import image_grid, save_png

    spec = next(iter(facts.cond.values()), None)
    names = spec.names if spec else ()
    labels = ["" if one is None else str(one) for one in conds or [None] * len(images)]
    labels = [names[int(label)] if label.isdigit() and int(label) < len(names) else label for label in labels]
    grid = image_grid(images, labels, title=title, data_range=data_range, columns=columns)
    save_png(grid, path, {"Software": f"stepfuse {sf.__version__}", "Description": title})


def _describe_input(spec: sf.CondInput) -> str:
    shown = (*spec.names[:20], "...") if len(spec.names) > 20 else spec.names
    names = f", {len(spec.names)} classes: {', '.join(shown)}" if spec.names else ""
    return f"{spec.dtype} {spec.shape or 'a number'}, null {spec.null}{names}"


def _report(stats: sf.EngineStats, title: str, number: int, seconds: float) -> None:
    console.print(f"[bold]{escape(title)}", highlight=False)
    console.print(
        f"{number} samples, {stats.network_passes:.0f} network passes in {stats.forwards:.0f} forwards,"
        f" {seconds:.2f} s ({seconds / number * 1e3:.0f} ms a sample): network {stats.network_seconds:.2f} s,"
        f" step {stats.step_seconds * 1e3:.1f} ms, loop {stats.loop_seconds * 1e3:.1f} ms",
        highlight=False,
    )
