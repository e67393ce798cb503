"""The figure of ``interval_saving``: the same samples guided everywhere and in an interval, with their cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepfuse.analysis.experiments.guidance_interval import EVERYWHERE, IntervalRow, IntervalSaving
from stepfuse.analysis.experiments.sampling import sampler_title
from stepfuse.analysis.experiments.wording import plural, saving, short
from stepfuse.analysis.figures.pictures import annotate_rows, drawable, height_of, show_images
from stepfuse.analysis.figures.style import new_figure, sampler_colour, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def draw_interval_saving(result: IntervalSaving) -> Figure:
    """The same samples guided everywhere and in the interval, with their cost; bars alone if they are no pictures.

    Examples:
        >>> from stepfuse.analysis import draw_interval_saving, interval_saving, save_figure
        >>> with sf.Engine.load("fashion") as engine:
        ...     found = interval_saving(engine, (0.2, 0.8), steps=5, samples=2, repeats=1)
        >>> save_figure(draw_interval_saving(found), "interval.png")
    """
    labels = [
        "guided everywhere" if row.interval == EVERYWHERE else f"guided in {row.interval[0]:g} to {row.interval[1]:g}"
        for row in result.rows
    ]
    numbers = [_numbers(row) for row in result.rows]
    title = f"{sampler_title(result.sampler, result.steps)}, guidance {result.guidance_scale:g}"
    title += f": an interval {saving(result.passes_saved, 'the passes')}"
    if drawable(result.images.shape[2:]):
        figure = new_figure(9.9, 0.8 + height_of(2, result.images.shape[1], result.images.shape, 6.1))
        axes = figure.subplots()
        show_images(axes, result.images, data_range=result.data_range, row_labels=labels)
        annotate_rows(axes, numbers)
    else:
        figure = new_figure(8.0, 2.0)
        axes = figure.subplots()
        axes.barh(labels, [row.passes for row in result.rows], height=0.6, color=sampler_colour(result.sampler))
        for position, (row, text) in enumerate(zip(result.rows, numbers, strict=True)):
            axes.text(row.passes, position, "  " + text.replace("\n", ", "), va="center", fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.6 * result.rows[0].passes)
        axes.set_xlabel("network passes a sample")
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def _numbers(row: IntervalRow) -> str:
    text = f"{plural(row.passes, 'pass', 'passes')}, {short(row.seconds)} s"
    if row.distance is not None:
        text += f"\nFréchet distance {short(row.distance)}"
    return text if row.accuracy is None else f"{text}\nnamed right {row.accuracy:.1%}"
