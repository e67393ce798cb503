"""The pictures of the benchmarks: drawn from committed results, nothing in them covers anything."""

import json
from pathlib import Path

import figure_overlaps
import pytest

pytest.importorskip("matplotlib")

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmarks():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield


def mixed_load():
    document = json.loads((FOLDER / "results" / "mixed_load.json").read_text())
    return [result for result in document["results"] if "system" in result]


@pytest.fixture(scope="module")
def load_figure(benchmarks):
    from plots import draw_load

    return draw_load(0.8, mixed_load())


@pytest.fixture
def figure_of_one_load(benchmarks):
    from plots import draw_load

    return draw_load(0.8, [result for result in mixed_load() if result["load"] == 0.8])


@pytest.fixture
def figure_within_capacity(benchmarks):
    from plots import draw_load

    return draw_load(0.5, [result for result in mixed_load() if result["demand"] < 1])


@pytest.fixture(scope="module")
def trace_figure(benchmarks):
    from plots import draw_trace
    from simulate import traced

    return draw_trace(traced(), "a forward takes a while")


@pytest.mark.parametrize("name", ["load_figure", "figure_of_one_load", "figure_within_capacity", "trace_figure"])
def test_nothing_covers_a_text_a_point_or_a_legend(name, request):
    figure = request.getfixturevalue(name)
    assert figure_overlaps.overlaps(figure) == []
    assert figure_overlaps.lonely_ticks(figure) == []
    assert figure_overlaps.empty_entries(figure) == []


def test_every_system_is_named_where_it_is_drawn(load_figure):
    left, right = load_figure.axes
    names = [text.get_text() for text in left.get_yticklabels()]
    assert len(names) == len(set(names)) == 6
    labelled = {text.get_text() for text in right.texts}
    colours = {line.get_color() for line in right.get_lines() if line.get_linestyle() == "-"}
    assert labelled < set(names)
    assert len(labelled) == len(colours) == 5  # one was measured at one load alone


def test_letters_on_a_request_are_readable(trace_figure):
    from matplotlib.colors import to_rgb

    def luminance(colour):
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in to_rgb(colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for axes in trace_figure.axes:
        for text in (text for text in axes.texts if text.get_ha() == "center" and text.get_va() == "center"):
            x, y = text.get_position()
            [box] = [
                box
                for box in axes.patches
                if box.get_alpha() is None
                and box.get_x() <= x <= box.get_x() + box.get_width()
                and box.get_y() <= y <= box.get_y() + box.get_height()
            ]
            dark, light = sorted([luminance(text.get_color()), luminance(box.get_facecolor())])
            assert (light + 0.05) / (dark + 0.05) > 3  # WCAG 2, large text
