"""Every figure of the committed report: nothing covers a text, a point or a legend, and scales have two ticks."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

import figure_overlaps

from stepfuse.analysis.experiments.guidance import PLAIN
from stepfuse.analysis.figures.labels import Label, place_labels
from stepfuse.analysis.figures.layout import PICTURES
from stepfuse.analysis.figures.style import new_figure, plain_log_axis, styled
from stepfuse.analysis.report.catalog import EXPERIMENTS
from stepfuse.analysis.report.records import read_records
from stepfuse.analysis.report.redraw import read_result

REPORT = Path(__file__).parents[4] / "docs" / "analysis"
RECORDS = {record["experiment"]: record for record in read_records(REPORT)}


def variations(name, result):
    """The committed result, and others that a user may have: without a judge, without pictures, few rows."""
    yield result
    plain = dict.fromkeys(("distance", "accuracy"))
    if name in ("degradation", "guidance", "guidance_interval", "frontier"):
        yield dataclasses.replace(result, rows=tuple(dataclasses.replace(row, **plain) for row in result.rows))
    if name == "guidance":
        yield dataclasses.replace(result, rows=tuple(row for row in result.rows if row.variant == PLAIN))
    if name == "frontier":
        yield dataclasses.replace(result, images=None, rows=result.rows[-2:])
    if name in ("reproducibility", "smoothness"):
        yield dataclasses.replace(result, images=np.zeros((*result.images.shape[:-3], 2), np.float32))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_nothing_covers_a_text_a_point_or_a_legend(name):
    for result in variations(name, read_result(REPORT, RECORDS[name])):
        figure = EXPERIMENTS[name].draw(result)
        assert figure_overlaps.overlaps(figure) == []
        assert figure_overlaps.lonely_ticks(figure) == []
        assert figure_overlaps.empty_entries(figure) == []
        for axes in figure.axes:
            if axes.get_gid() == PICTURES:
                shown, extent = axes.images[0], axes.get_window_extent()
                rows, columns = shown.get_array().shape[:2]
                factor = extent.width / columns
                assert factor == pytest.approx(round(factor), abs=1e-6)
                assert extent.height == pytest.approx(factor * rows, abs=1e-6)
                assert shown.get_interpolation() == "nearest"


@styled
def crowded(place):
    """Labels of points that lie close together, and a line between them."""
    figure = new_figure(5, 4)
    axes = figure.subplots()
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 0.35, (2, 14))
    axes.plot(x, y, "o", label="points")
    axes.plot([-1.2, 1.2], [0, 0.1], "-", label="a line")
    axes.legend(loc="upper left")
    place(axes, [Label(f"point {i}", [(x[i], y[i])]) for i in range(14)])
    return figure


def test_labels_of_a_crowd_find_room():
    assert figure_overlaps.overlaps(crowded(place_labels)) == []


def test_the_measure_finds_what_lies_on_what():
    def in_place(axes, labels):
        for label in labels:
            axes.text(*label.anchors[0], label.text, ha="center", va="center")
        axes.text(0.0, 0.05, "in the middle")

    found = figure_overlaps.overlaps(crowded(in_place))
    for expected in ("'point 0' on a marker of 'points'", "on the line 'a line'", "' on 'point"):
        assert any(expected in one for one in found)


@styled
def decades(low, high):
    figure = new_figure(4, 3)
    axes = figure.subplots()
    axes.plot([1, 2], [low, high])
    axes.set_yscale("log")
    plain_log_axis(axes.yaxis)
    return figure


@pytest.mark.parametrize("high", [1.3, 3.0, 9.0, 80.0, 4000.0, 1e7])
def test_a_logarithmic_axis_has_two_numbers_or_more(high):
    figure = decades(1.1, 1.1 * high)
    assert figure_overlaps.lonely_ticks(figure) == []
    labels = figure_overlaps.tick_labels(figure.axes[0].yaxis)
    assert 2 <= len([one for one in labels if one.get_text()]) <= 12
