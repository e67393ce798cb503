"""The command ``stepfuse analyze``: all experiments on a model, and the report that gathers them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepfuse.cli.common import refuse
from stepfuse.cli.console import Report
from stepfuse.cli.options import OUTPUT, Force, Model

if TYPE_CHECKING:
    from stepfuse.analysis.report.runner import Outcome

_JUDGE = "Judge"


def _experiments() -> list[str]:
    from stepfuse.analysis.report.catalog import EXPERIMENTS

    return list(EXPERIMENTS)


def analyze(
    context: typer.Context,
    model: Model = "fashion",
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: to see it work, not to quote.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="An experiment; repeat it for several.", autocompletion=_experiments),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of all noise.")] = 0,
    samples: Annotated[
        int | None,
        typer.Option(metavar="N", help="Samples of each row where they are judged; more than there are features."),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Model distilled from this one, for the frontier; fashion brings its own."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="JUDGE", help="A judge's name or folder; an embedded model brings its own.", rich_help_panel=_JUDGE
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Instead of a judge: an ONNX file from samples to features; with --real.",
            rich_help_panel=_JUDGE,
        ),
    ] = None,
    real: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Real samples as .npy, shape (n, ...); with --features.", rich_help_panel=_JUDGE
        ),
    ] = None,
    redraw: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Draw a report's pictures and write its page anew, and measure nothing."),
    ] = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="The report's folder.", rich_help_panel=OUTPUT),
    ] = Path("report"),
    force: Force = False,
    skip_existing: Annotated[
        bool,
        typer.Option(
            "--skip-existing", help="Run what is not in the report yet: goes on with a run.", rich_help_panel=OUTPUT
        ),
    ] = False,
    report: Report,
) -> None:
    """Run the experiments on a model and write a report: tables, pictures, one page.

    The experiments: reproducibility, degradation, smoothness, paths, round_trip, round_trip_conditioned, guidance,
    guidance_interval, frontier.
    """
    if redraw is not None:
        _redraw(redraw, only, context, report)
        return
    from stepfuse.analysis.report.runner import REPORT
    from stepfuse.analysis.report.runner import analyze as run

    if skip_existing:
        refuse("keeps what --force replaces: give one of them", skip_existing=force or None)
    names = _left(output, only or None, force=force, skip_existing=skip_existing)
    outcomes: list[Outcome] = []

    def finished(outcome: Outcome) -> None:
        outcomes.append(outcome)
        text = f"not run: {outcome.skipped}" if outcome.skipped else outcome.findings[0]
        time = "" if outcome.skipped else f"{outcome.seconds:.1f} s"
        report.say(f"{outcome.name:22}{time:>9}  {text}")

    if names != []:
        run(
            model,
            output,
            quick=quick,
            only=names,
            seed=seed,
            samples=samples,
            student=student,
            judge=judge,
            features=features,
            real=real,
            progress=report.progress,
            started=lambda name: report.note(f"running {name}"),
            finished=finished,
        )
    seconds = sum(outcome.seconds for outcome in outcomes)
    report.say(f"{seconds:.0f} s; written to {output / REPORT}" if outcomes else f"all is in {output / REPORT} already")
    report.finish(
        model=model,
        report=str(output / REPORT),
        experiments=[asdict(outcome) for outcome in outcomes],
        seconds=round(seconds, 3),
    )


def _redraw(folder: Path, only: list[str] | None, context: typer.Context, report: Report) -> None:
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = [name for name, source in sorted(sources.items()) if source is not None and source.name == "COMMANDLINE"]
    if unused := [name for name in given if name not in ("redraw", "only", "json", "quiet")]:
        raise ValueError(f"--redraw measures nothing and goes with --only alone, got {', '.join(unused)}")
    from stepfuse.analysis.experiments.wording import plural
    from stepfuse.analysis.report.redraw import redraw
    from stepfuse.analysis.report.runner import REPORT

    drawn = redraw(folder, only=only or None, finished=report.say)
    report.say(f"{plural(len(drawn), 'picture')}; written to {folder / REPORT}")
    report.finish(report=str(folder / REPORT), pictures=drawn)


def _left(output: Path, only: list[str] | None, *, force: bool, skip_existing: bool) -> list[str] | None:
    """The experiments to run; None is all.

    Raises:
        FileExistsError: If one is in the report already and is neither to be run again nor to be kept.
        OSError: If no report can be written.
    """
    from stepfuse.analysis.report.catalog import EXPERIMENTS
    from stepfuse.cli.target import require_writable

    require_writable(output / "report")
    there = [name for name in EXPERIMENTS if (only is None or name in only) and (output / f"{name}.json").exists()]
    if not there or force:
        return only
    if not skip_existing:
        raise FileExistsError(
            f"{output} holds {', '.join(there)} already: give --force to replace them, or --skip-existing to run what"
            " is missing"
        )
    return [name for name in only or EXPERIMENTS if name not in there]
