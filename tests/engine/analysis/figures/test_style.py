"""Figures: where each picture lands, one look whatever the user's settings, and what is said without matplotlib."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

matplotlib = pytest.importorskip("matplotlib")

from stepfuse.analysis.experiments.sampling import sampler_title  # noqa: E402
from stepfuse.analysis.figures import style  # noqa: E402
from stepfuse.analysis.figures.pictures import show_images, tile_images  # noqa: E402
from stepfuse.extras import pip_install  # noqa: E402


def test_pictures_are_tiled_row_by_row():
    images = np.linspace(-1, 1, 6, dtype=np.float32)[:, None, None, None] * np.ones((6, 1, 14, 14), np.float32)
    tiled = tile_images(images, columns=3)
    assert tiled.shape == (14 + 1 + 14, 14 + 1 + 14 + 1 + 14, 3)
    corners = tiled[::15, ::15, 0]
    np.testing.assert_array_equal(corners, [[0, 51, 102], [153, 204, 255]])
    assert (tiled[14] == 255).all()
    assert (tiled[:, 14] == 255).all()
    np.testing.assert_array_equal(tiled, tile_images(images.reshape(2, 3, 1, 14, 14)))


def test_the_data_range_is_black_to_full_and_what_lies_beyond_is_clipped():
    images = np.array([-1.0, 0.0, 128.0, 255.0, 300.0, np.nan]).reshape(6, 1, 1, 1)
    tiled = tile_images(images, data_range=(0.0, 255.0))
    np.testing.assert_array_equal(tiled[0, ::2, 0], [0, 0, 128, 255, 255, 255])


def test_colours_keep_their_channel():
    images = np.full((1, 3, 2, 2), -1.0)
    images[0, 1] = 1.0
    np.testing.assert_array_equal(tile_images(images)[0, 0], [0, 255, 0])


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((4, 2), id="points"),
        pytest.param((4, 4, 8, 8), id="latents-of-four-channels"),
        pytest.param((0, 1, 8, 8), id="none"),
        pytest.param((1, 8, 8), id="no-batch"),
    ],
)
def test_what_is_no_picture_is_refused(shape):
    with pytest.raises(ValueError, match=r"images must have shape \(n, 1 or 3, H, W\) to be drawn, got "):
        tile_images(np.zeros(shape))


def test_a_figure_of_pictures_is_drawn_with_its_labels():
    @style.styled
    def draw():
        figure = style.new_figure(4, 2)
        axes = figure.subplots()
        pictures = np.stack([np.full((1, 28, 28), -1.0), np.full((1, 28, 28), 1.0)])
        show_images(axes, pictures, row_labels=["a row"], column_labels=["black", "white"])
        return figure

    figure = draw()
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["black", "white"]
    pixels = np.asarray(Image.open(_png(figure)).convert("L"))
    assert pixels.shape == (300, 600)
    assert (pixels[:, :300] < 10).mean() > 0.3  # the black one; the rest is paper and text
    assert (pixels[:, 370:] < 10).mean() < 0.01


def test_the_look_is_ours_whatever_the_users_settings_and_these_stay_as_they_are():
    @style.styled
    def draw():
        figure = style.new_figure()
        figure.subplots().set_title("title")
        return figure

    with matplotlib.rc_context({"axes.titlelocation": "right", "axes.facecolor": "black"}):
        axes = draw().axes[0]
        assert matplotlib.rcParams["axes.facecolor"] == "black"
    assert axes.get_title(loc="left") == "title"
    assert axes.get_facecolor() == (1.0, 1.0, 1.0, 1.0)
    assert not axes.spines["top"].get_visible()


def test_a_count_of_steps_is_said_with_its_sampler():
    assert sampler_title("ddim", 50, "eta 0") == "DDIM 50 steps, eta 0"
    assert sampler_title("ddpm_strided", 1) == "naive strided DDPM 1 step"
    assert sampler_title("of-my-own") == "of-my-own"


def test_without_matplotlib_the_extra_is_named():
    code = """
import sys
sys.modules["matplotlib"] = None
from stepfuse.analysis.figures import style
try:
    style.new_figure()
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"figures need matplotlib: {pip_install('analysis')}"


def test_neither_pyplot_nor_a_back_end_is_touched():
    code = """
import sys
from stepfuse.analysis.figures import style
style.styled(style.new_figure)().subplots()
print("matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def _png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png")
    file.seek(0)
    return file
