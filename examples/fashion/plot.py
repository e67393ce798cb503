"""Pictures of the recipe: the loss curve, and a grid of samples.

python plot.py    # loss.png of loss.csv, drawn anew
"""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator


def plot_losses(log: list[dict[str, float]], path: Path) -> None:
    """Draw the loss and below it the learning rate over the training steps, one point a log row."""
    steps = [row["step"] for row in log]
    figure, (loss, rate) = plt.subplots(2, sharex=True, figsize=(7, 4.4), height_ratios=(3, 1.2), layout="constrained")
    loss.plot(steps, [row["loss"] for row in log], linewidth=1, color="#0072b2")
    loss.set(ylabel="weighted velocity error", yscale="log")
    loss.set_title("loss", loc="left", fontweight="bold")
    several = LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 4.0, 6.0))
    loss.yaxis.set_major_locator(several)
    loss.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    loss.yaxis.set_minor_locator(NullLocator())
    rate.plot(steps, [1e3 * row["learning_rate"] for row in log], linewidth=1, color="#d55e00")
    rate.set(xlabel="training step", ylabel="10$^{-3}$", ylim=(0, None))
    rate.set_title("learning rate", loc="left", fontweight="bold")
    for axes in (loss, rate):
        axes.grid(visible=True, axis="y", color="#e4e6ec")
        axes.spines[["top", "right"]].set_visible(False)
    figure.align_ylabels()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def save_grid(images: NDArray[np.float32], path: Path, zoom: int = 2) -> None:
    """Save images (rows, columns, H, W) in [-1, 1] as one grey picture, every pixel ``zoom`` pixels wide."""
    rows, columns, height, width = images.shape
    canvas = images.transpose(0, 2, 1, 3).reshape(rows * height, columns * width)
    plt.imsave(path, np.kron(canvas, np.ones((zoom, zoom))), cmap="gray", vmin=-1.0, vmax=1.0)


if __name__ == "__main__":
    folder = Path(__file__).parent
    with (folder / "loss.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    plot_losses(rows, folder / "loss.png")
