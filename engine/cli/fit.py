"""The command ``stepfuse fit``: a table of few steps, fitted to a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

import stepfuse as sf
from stepfuse.bundle.tables import add_table, place_of
from stepfuse.cli.common import parse_cond, refuse
from stepfuse.cli.console import Report, shown
from stepfuse.cli.options import OUTPUT, Cond, Force, Machine, Model, NegativePrompt, Prompt, PromptFile
from stepfuse.cli.prompt import prompts_of
from stepfuse.cli.target import require_writable, target_of

if TYPE_CHECKING:
    from stepfuse.fitting import Compared

_SHOWN = 5  # of the samplers that it is compared with
_COMPARED, _OTHERS = 256, 10**6  # noises that it is compared on, and the first of their seeds


def fit(
    model: Model = "fashion",
    *,
    steps: Annotated[int, typer.Option(metavar="N", help="Steps of the table, a forward each.")] = 8,
    guidance_scale: Annotated[
        float | None,
        typer.Option("--guidance-scale", "-g", metavar="NUMBER", help="1 is no guidance; the model's if left out."),
    ] = None,
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    negative_prompt: NegativePrompt = None,
    cond: Cond = None,
    samples: Annotated[int, typer.Option(metavar="N", help="Noises that it is fitted to.", min=1)] = 128,
    held_out: Annotated[int, typer.Option(metavar="N", help="Noises that decide which round is kept.", min=1)] = 64,
    rounds: Annotated[int, typer.Option(metavar="N", help="Most rounds.", min=1)] = 10,
    registers: Annotated[
        int, typer.Option(metavar="N", help="Earlier predictions that a step reads.", min=0, max=3)
    ] = 3,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the first noise.")] = 0,
    compare: Annotated[
        bool,
        typer.Option("--compare/--no-compare", help="Measure it and all samplers made by hand on 256 other noises."),
    ] = True,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The table, an .npz, for sample --table.", rich_help_panel=OUTPUT
        ),
    ] = None,
    add: Annotated[
        bool,
        typer.Option("--add", help="Add it to the bundle's folder, for --sampler fitted-N.", rich_help_panel=OUTPUT),
    ] = False,
    force: Force = False,
    machine: Machine,
    report: Report,
) -> None:
    """Fit a table of few steps to a model, without data: it ends where many steps end, as near as so few can."""
    from stepfuse.analysis import Judge
    from stepfuse.fitting import compare as against
    from stepfuse.fitting import fit as run

    began = time.perf_counter()
    bundle = sf.Bundle.load(model)
    scale = bundle.info.defaults.get("guidance_scale", 1.0) if guidance_scale is None else guidance_scale
    target = _Kept.of(bundle, model, output, add, force, steps, scale)
    prompts = prompts_of(bundle, prompt or None, prompt_file, cond=cond or None, negative_prompt=negative_prompt)
    if prompts is not None:
        drawn = _of_prompts(bundle, prompts, negative_prompt, scale != 1, machine.threads)
    else:
        classes = [parse_cond(bundle.info, one) for one in cond or ()]
        drawn = {"cond": classes} if classes else {}
    with sf.Engine.load(bundle, **machine.arguments) as engine:
        table = run(
            engine,
            steps,
            guidance_scale=guidance_scale,
            **_cycled(drawn, samples + held_out),
            samples=samples,
            held_out=held_out,
            rounds=rounds,
            registers=registers,
            seed=seed,
            checkpoint=target.checkpoint,
            progress=report.note if report.progress else None,
        )
        target.write(table)
        target.checkpoint.unlink(missing_ok=True)
        found = []
        if compare:
            report.say(f"written to {target.name}; compared on {_COMPARED} other noises, by RMS to the fine solution:")
            judge = Judge.for_model(bundle.name)
            distance = None if judge is None or cond else judge.distance
            after = max(seed + samples + held_out, _OTHERS)
            found = against(
                engine,
                table,
                **_cycled(drawn, _COMPARED),
                samples=_COMPARED,
                seed=after,
                judge=distance,
                progress=report.progress,
            )
    report.show(_ranking(found))
    seconds = time.perf_counter() - began
    report.say(f"{table.sampler}, error {table.options['error']:g}, in {seconds:.0f} s; written to {target.name}")
    report.finish(
        model=model,
        file=target.name,
        options=dict(table.options),
        compared=[{"name": one.name, "error": one.error, "distance": one.distance} for one in found],
        seconds=round(seconds, 3),
    )


@dataclass(frozen=True)
class _Kept:
    """Where the table goes.

    Attributes:
        name: The file, or the bundle's folder.
        checkpoint: What an interrupted fit goes on from.
        write: Puts a table there.
    """

    name: str
    checkpoint: Path
    write: Callable[[sf.StepTable], object]

    @classmethod
    def of(
        cls, bundle: sf.Bundle, model: str, output: str | None, add: bool, force: bool, steps: int, scale: float
    ) -> _Kept:
        if (output is None) != add:
            raise ValueError("give --output, for a file, or --add, for the bundle, and not both")
        if output is None:
            if model in sf.embedded_models():
                raise ValueError(f"--add is for a folder of yours, and {model} comes with the package: use --output")
            place_of(bundle, f"fitted-{steps}", scale, overwrite=force)
            require_writable(bundle.path, folder=True)
            checkpoint = bundle.path.with_name(f"{bundle.path.name}.fitted-{steps}.partial")
            return cls(str(bundle.path), checkpoint, partial(add_table, bundle, overwrite=force))
        target = target_of(output, (".npz",))
        if target.is_stdout:
            raise ValueError("--output must name a file: a fit goes on from what is kept beside it, got '-'")
        target.prepare(force=force)
        return cls(target.name, Path(f"{output}.partial"), lambda table: target.write(table.save))


def _of_prompts(
    bundle: sf.Bundle, prompts: list[str], negative_prompt: str | None, guided: bool, threads: int
) -> dict[str, Any]:
    """Conditioning of prompts, arguments of ``stepfuse.fit``."""
    if not guided:
        refuse("needs guidance, which a scale of 1 leaves out: leave it out too", negative_prompt=negative_prompt)
    with sf.TextToImage.load(bundle, threads=threads) as pipe:
        found = pipe.conditioning(prompts, negative_prompt=negative_prompt)
    return found if guided else {"cond": found["cond"]}


def _cycled(drawn: dict[str, Any], number: int) -> dict[str, Any]:
    """As many values of each conditioning, from the first on again where there are fewer."""

    def cycled(values: Any) -> Any:
        if isinstance(values, dict):
            return {name: cycled(rows) for name, rows in values.items()}
        return [values[i % len(values)] for i in range(number)]

    return {name: cycled(values) for name, values in drawn.items()}


def _ranking(found: Sequence[Compared]) -> Table:
    """The best, and the table that was fitted wherever it stands."""
    table = Table("sampler", "RMS", "distance", box=None, padding=(0, 2, 0, 0), show_header=bool(found))
    for place, one in enumerate(found):
        if place < _SHOWN or one.name.startswith("fitted"):
            table.add_row(shown(one.name), f"{one.error:.4f}", "" if one.distance is None else f"{one.distance:.2f}")
    return table
