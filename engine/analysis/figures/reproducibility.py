"""The figure of ``reproducibility``: the runs of each sampler side by side, with their differences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepfuse.analysis.experiments.reproducibility import Reproducibility, ReproducibilityRow
from stepfuse.analysis.experiments.sampling import sampler_title
from stepfuse.analysis.experiments.wording import short
from stepfuse.analysis.figures.pictures import annotate_rows, drawable, height_of, show_images
from stepfuse.analysis.figures.style import cond_suffix, new_figure, sampler_colour, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SEEDS = {"different": "another seed a run", "same": "one seed"}


@styled
def draw_reproducibility(result: Reproducibility) -> Figure:
    """The runs of each sampler side by side, and their mean squared error; bars alone if samples are no pictures.

    Examples:
        >>> from stepfuse.analysis import draw_reproducibility, reproducibility, save_figure
        >>> with sf.Engine.load("fashion") as engine:
        ...     found = reproducibility(engine, runs=2, samplers=[("ddim", {"steps": 3})])
        >>> save_figure(draw_reproducibility(found), "reproducibility.png")
    """
    labels = [f"{sampler_title(row.sampler, row.steps, row.options)}\n{_SEEDS[row.seeds]}" for row in result.rows]
    numbers = [_numbers(row, result.runs) for row in result.rows]
    if not drawable(result.images.shape[2:]):
        return _bars(result, labels, numbers)
    height = 0.85 + height_of(len(labels), result.runs, result.images.shape, 4.9)
    figure = new_figure(9.3, height)
    axes = figure.subplots()
    show_images(
        axes,
        result.images,
        data_range=result.data_range,
        row_labels=labels,
        column_labels=[f"run {run + 1}" for run in range(result.runs)],
    )
    annotate_rows(axes, numbers)
    figure.suptitle(f"{result.runs} runs from one starting noise{cond_suffix(result.cond)}", x=0.01, ha="left")
    return figure


def _bars(result: Reproducibility, labels: list[str], numbers: list[str]) -> Figure:
    figure = new_figure(8.0, 1.0 + 0.55 * len(labels))
    axes = figure.subplots()
    apart = [row.pairwise_mse_mean for row in result.rows]
    axes.barh(labels, apart, height=0.6, color=[sampler_colour(row.sampler) for row in result.rows])
    for position, (width, text) in enumerate(zip(apart, numbers, strict=True)):
        axes.annotate(text, (width, position), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.5 * max(*apart, 1e-12))
    axes.set_xlabel("mean squared error between two runs")
    axes.set_title(f"{result.runs} runs from one starting noise{cond_suffix(result.cond)}")
    return figure


def _numbers(row: ReproducibilityRow, runs: int) -> str:
    spread = f" ± {short(row.pairwise_mse_std, 2)}" if runs > 2 else ""  # two runs are one pair
    apart = f"pairwise MSE {short(row.pairwise_mse_mean, 2)}{spread}"
    return f"{apart}\n" + ("the same bits" if row.bit_identical else f"variance {short(row.variance, 2)}")
