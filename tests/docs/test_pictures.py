"""The pictures of the examples: the loss of the recipe, and the samples of the editing page."""

import csv
import importlib.util
from pathlib import Path

import figure_overlaps
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[2]


def test_the_loss_and_the_learning_rate_have_a_panel_each(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("fashion_plot", ROOT / "examples" / "fashion" / "plot.py")
    plot = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plot)
    kept = []
    monkeypatch.setattr(plot.plt, "close", kept.append)
    with (ROOT / "examples" / "fashion" / "loss.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    plot.plot_losses(rows, tmp_path / "loss.png")
    monkeypatch.undo()
    [figure] = kept
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "learning rate"]
    assert all(axes.get_ylabel() and len(axes.get_lines()) == 1 for axes in figure.axes)
    assert figure_overlaps.overlaps(figure) == []
    assert figure_overlaps.lonely_ticks(figure) == []
    plot.plt.close(figure)


def test_the_samples_of_the_editing_page_are_enlarged_by_a_whole_factor():
    picture = np.asarray(Image.open(ROOT / "docs" / "editing.png").convert("L"))
    left, top, size, zoom = 6, 26, 28, 3
    sample = picture[top : top + zoom * size, left : left + zoom * size].reshape(size, zoom, size, zoom)
    np.testing.assert_array_equal(sample, np.broadcast_to(sample[:, :1, :, :1], sample.shape))
    assert len(np.unique(sample)) > 20
