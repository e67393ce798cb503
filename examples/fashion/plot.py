"""Pictures of the recipe: the loss curve, and a grid of samples."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def plot_losses(log: list[dict[str, float]], path: Path) -> None:
    """Draw loss and learning rate over the training steps, one point a log row."""
    steps = [row["step"] for row in log]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(steps, [row["loss"] for row in log], linewidth=1)
    axes.set(xlabel="step", ylabel="weighted velocity error", yscale="log")
    rate = axes.twinx()
    rate.plot(steps, [row["learning_rate"] for row in log], color="tab:orange", linewidth=1)
    rate.set(ylabel="learning rate", ylim=(0, None))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def save_grid(images: NDArray[np.float32], path: Path, zoom: int = 2) -> None:
    """Save images (rows, columns, H, W) in [-1, 1] as one grey picture, every pixel ``zoom`` pixels wide."""
    rows, columns, height, width = images.shape
    canvas = images.transpose(0, 2, 1, 3).reshape(rows * height, columns * width)
    plt.imsave(path, np.kron(canvas, np.ones((zoom, zoom))), cmap="gray", vmin=-1.0, vmax=1.0)
