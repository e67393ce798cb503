"""The figure of a benchmark: time an image by rows and, where requests arrived at random, latency by throughput."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepfuse.analysis.figures.style import new_figure, plain_log_axis, styled
from stepfuse.benchmarking.result import BenchResult, Configuration
from stepfuse.benchmarking.timing import percentile
from stepfuse.display import NAME, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def draw_bench(result: BenchResult) -> Figure:
    """Milliseconds of an image by the images drawn together, for the first number of steps.

    Bars are the 20th to 80th percentile. Beside it, where there are ``result.loads``, median and 95th percentile of
    latency by images a second.
    """
    figure = new_figure(10.0 if result.loads else 6.0, 4.6)
    if result.loads:
        left, right = figure.subplots(1, 2)
        _draw_loads(right, result)
    else:
        left = figure.subplots()
    _draw_cases(left, result)
    lines, labels = left.get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=min(len(labels), 3 if result.loads else 2))
    figure.suptitle(printable(result.model, NAME).replace("$", r"\$"), x=0.01, ha="left")
    return figure


def _draw_cases(axes: Axes, result: BenchResult) -> None:
    steps = next(case.steps for case in result.cases if case.steps)
    for place, name in enumerate(result.configurations):
        cases = sorted(
            (case for case in result.cases if (case.configuration, case.steps) == (name, steps)),
            key=lambda case: case.rows,
        )
        rows = [case.rows for case in cases]
        low, middle, high = (
            [1e3 * percentile(case.seconds, percent) / case.rows for case in cases] for percent in (20, 50, 80)
        )
        bars = [
            [m - lowest for m, lowest in zip(middle, low, strict=True)],
            [highest - m for m, highest in zip(middle, high, strict=True)],
        ]
        axes.errorbar(rows, middle, yerr=bars, marker="o", capsize=2, color=f"C{place}", label=str(name))
    axes.set_xscale("log")
    axes.set_yscale("log")
    counts = sorted({case.rows for case in result.cases})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    plain_log_axis(axes.yaxis)
    axes.set_xlabel("images drawn together")
    axes.set_ylabel("ms an image")
    axes.set_title(f"{steps} step{'' if steps == 1 else 's'}, no guidance")


def _draw_loads(axes: Axes, result: BenchResult) -> None:
    colours: dict[Configuration, str] = {name: f"C{place}" for place, name in enumerate(result.configurations)}
    for name, colour in colours.items():
        loads = sorted(
            (one for one in result.loads if one.configuration == name and one.latencies), key=lambda one: one.rate
        )
        reached = [one.images_per_second for one in loads]
        for percent, line, filling in ((50, "-", colour), (95, "--", "white")):
            times = [1e3 * percentile(one.latencies, percent) for one in loads]
            axes.plot(reached, times, line, marker="o", color=colour, markerfacecolor=filling)
    axes.set_yscale("log")
    plain_log_axis(axes.yaxis)
    axes.set_xlim(left=0)
    axes.set_xlabel("images a second")
    axes.set_ylabel("latency, ms")
    axes.set_title("random arrivals: p50, and hollow p95")
