"""The command ``stepfuse analyze``: all experiments on a model, and the report that gathers them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepfuse.cli.common import Model, console, plain_errors, say, shown

if TYPE_CHECKING:
    from stepfuse.analysis.report.runner import Outcome


def analyze(
    context: typer.Context,
    model: Model = "fashion",
    output: Annotated[Path, typer.Option("--output", "-o", help="The report's folder.")] = Path("report"),
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: to see it work, not to quote.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="An experiment's name; repeat it for several.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of all noise.")] = 0,
    samples: Annotated[
        int | None, typer.Option(help="Samples of each row where they are judged; more than there are features.")
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="Model distilled from this one, for the frontier; fashion brings its own.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="A judge's name or folder; an embedded model brings its own.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Instead of a judge: an ONNX file from samples to features; with --real.")
    ] = None,
    real: Annotated[Path | None, typer.Option(help="Real samples as .npy, shape (n, ...); with --features.")] = None,
    redraw: Annotated[
        Path | None, typer.Option(help="Draw a report's pictures and write its page anew, and measure nothing.")
    ] = None,
) -> None:
    """Run the experiments on a model and write a report: tables, pictures, one page.

    The experiments: reproducibility, degradation, smoothness, paths, round_trip, round_trip_conditioned, guidance,
    guidance_interval, frontier.
    """
    with plain_errors():
        if redraw is not None:
            _redraw(redraw, only, context)
            return
        from stepfuse.analysis.report.runner import REPORT
        from stepfuse.analysis.report.runner import analyze as run

        outcomes = run(
            model,
            output,
            quick=quick,
            only=only or None,
            seed=seed,
            samples=samples,
            student=student,
            judge=judge,
            features=features,
            real=real,
            progress=console.is_terminal,
            finished=_print_outcome,
        )
    say(f"{sum(outcome.seconds for outcome in outcomes):.0f} s; written to {output / REPORT}")


def _redraw(folder: Path, only: list[str] | None, context: typer.Context) -> None:
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = [name for name, source in sorted(sources.items()) if source is not None and source.name == "COMMANDLINE"]
    if unused := [name for name in given if name not in ("redraw", "only")]:
        raise ValueError(f"--redraw measures nothing and goes with --only alone, got {', '.join(unused)}")
    from stepfuse.analysis.experiments.wording import plural
    from stepfuse.analysis.report.redraw import redraw
    from stepfuse.analysis.report.runner import REPORT

    drawn = redraw(folder, only=only or None, finished=say)
    say(f"{plural(len(drawn), 'picture')}; written to {folder / REPORT}")


def _print_outcome(outcome: Outcome) -> None:
    if outcome.skipped:
        text, time = f"not run: {outcome.skipped}", ""
    else:
        text, time = outcome.findings[0], f"{outcome.seconds:.1f} s"
    console.print(f"[bold]{outcome.name:22}[/]{time:>9}  {shown(text)}", highlight=False, soft_wrap=True)
