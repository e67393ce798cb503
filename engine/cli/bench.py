"""The command ``stepfuse bench``: what a model costs on this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import stepfuse as sf
from stepfuse.cli.command import NO_CONCLUSION, REGRESSION
from stepfuse.cli.common import refuse
from stepfuse.cli.console import Report
from stepfuse.cli.options import MACHINE, OUTPUT, Force, Model
from stepfuse.cli.target import Target, prepare_all, target_of

if TYPE_CHECKING:
    from stepfuse.benchmarking import BenchResult

_COMPARE = "Compare"


def bench(
    model: Model = "fashion",
    *,
    rows: Annotated[
        str | None, typer.Option(metavar="N,N", help="Images drawn together.", show_default="1,4,16")
    ] = None,
    steps: Annotated[str | None, typer.Option(metavar="N,N", help="Steps of a run; at most 10 if left out.")] = None,
    rate: Annotated[
        str | None,
        typer.Option(metavar="NUMBER,NUMBER", help="Also serve so many requests a second, which arrive at random."),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="Of timing, and of each rate.", show_default="20, 3 with --quick"),
    ] = None,
    cold_start: Annotated[
        bool | None,
        typer.Option("--cold-start/--no-cold-start", help="Time fresh processes; not with --quick if left out."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: to see it work, not to quote.")] = False,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="onnxruntime or openvino; repeat it for several. All that are installed if left out.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="float32, bf16 or f16; repeat it for several. All that the processor has if left out.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    threads: Annotated[
        str,
        typer.Option(
            metavar="N,N", help="Of a forward; 0 is one a core that the process may use.", rich_help_panel=MACHINE
        ),
    ] = "0",
    device: Annotated[
        str, typer.Option(metavar="TEXT", help="cpu, the only one for now.", rich_help_panel=MACHINE)
    ] = "cpu",
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="What --output has written before, to compare with.", rich_help_panel=_COMPARE
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            help="Share by which a median has to be slower to fail.",
            show_default="0.05",
            min=0.0,
            rich_help_panel=_COMPARE,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write every time that was taken, as .json; - is standard output.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    plot: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Draw it, as .png, .svg or .pdf; needs matplotlib.", rich_help_panel=OUTPUT),
    ] = None,
    force: Force = False,
    report: Report,
) -> None:
    """Measure what a model costs on this machine: latency, images a second, memory, cold start, each back end in turn.

    Ends with 3 if --compare finds a case slower than the threshold, with 4 if the times do not say.
    """
    if compare is None:
        refuse("needs --compare", threshold=threshold)
    to_json = None if output is None else target_of(output, (".json",))
    to_plot = None if plot is None else _target("--plot", plot, (".png", ".svg", ".pdf"))
    prepare_all([one for one in (to_json, to_plot) if one is not None], force=force)
    if to_plot is not None:
        if to_plot.is_stdout:
            raise ValueError("--plot must name a file, got '-'")
        _require_matplotlib()
    if to_json is not None and to_json.is_stdout:
        report = replace(report.beside_output(), quiet=True)
    from stepfuse.benchmarking import BenchResult  # what only this command needs

    before = None if compare is None else BenchResult.load(compare)
    result = sf.bench(
        model,
        backends=backend or None,
        precisions=precision or None,
        threads=_whole_numbers("--threads", threads),
        rows=None if rows is None else _whole_numbers("--rows", rows),
        steps=None if steps is None else _whole_numbers("--steps", steps),
        rates=() if rate is None else _numbers("--rate", rate),
        seconds=seconds,
        cold_start=cold_start,
        quick=quick,
        device=device,
        progress=report.progress,
    )
    _show(result, report)
    for target, save in ((to_json, result.save), (to_plot, lambda path: _draw(result, path))):
        if target is not None:
            target.write(save)
            report.say(f"written to {target.name}")
    report.finish(**result.as_json())
    if before is not None:
        _compare(result, before, 0.05 if threshold is None else threshold, report)


def _show(result: BenchResult, report: Report) -> None:
    from stepfuse.cli.bench_tables import conclusions, tables

    machine, versions = result.facts["machine"], result.facts["versions"]
    installed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    report.say(f"{result.model} on {machine['processor']}, {machine['cores']} cores; {installed}", bold=True)
    for title, table in tables(result):
        report.say("")
        report.say(title, bold=True)
        report.show(table)
    report.say("")
    for line in conclusions(result):
        report.say(line)


def _compare(result: BenchResult, before: BenchResult, threshold: float, report: Report) -> None:
    from stepfuse.benchmarking import compare
    from stepfuse.cli.bench_tables import compared_table

    found = compare(result, before, threshold=threshold)
    report.say("")
    report.show(compared_table(found))
    for line in (*found.differences, *found.missing):
        report.say(line)
    if found.slower:
        report.say(f"{len(found.slower)} of {len(found.cases)} cases are slower by more than {threshold:.0%}")
        raise typer.Exit(REGRESSION)
    if found.undecided:
        report.say(f"no conclusion about {len(found.undecided)} of {len(found.cases)} cases: measure again, for longer")
        raise typer.Exit(NO_CONCLUSION)
    report.say(f"no case is slower by more than {threshold:.0%}")


def _target(option: str, name: str, suffixes: tuple[str, ...]) -> Target:
    try:
        return target_of(name, suffixes)
    except ValueError as error:
        raise ValueError(str(error).replace("--output", option)) from error


def _draw(result: BenchResult, path: Path) -> None:
    from stepfuse.analysis.figures.style import save_figure
    from stepfuse.benchmarking.figure import draw_bench

    save_figure(draw_bench(result), path)


def _require_matplotlib() -> None:
    """Says before anything is measured that it is missing."""
    from stepfuse.analysis.figures.style import new_figure

    new_figure(1, 1)


def _whole_numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{option} must be whole numbers with commas between, got {text!r}") from error


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{option} must be numbers with commas between, got {text!r}") from error
