"""Image to image and inpainting with the embedded model, as one picture.

python editing.py            # writes editing.png
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import stepfuse as sf
from stepfuse.pipeline.image_files import image_grid

ZOOM = 3  # every pixel of a sample is 3 x 3 of the picture's
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)


def main(
    target: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("editing.png"),
    seed: Annotated[int, typer.Option(min=0)] = 3,
    steps: Annotated[int, typer.Option(min=5, help="Of every sample.")] = 50,
) -> None:
    """A sneaker changed to a boot by degrees, a pullover with another right half, a dress with another lower half."""
    with sf.Engine.load("fashion") as engine:
        run = {"seed": seed, "steps": steps}
        sneaker, pullover, dress = engine.sample(3, cond=["sneaker", "pullover", "dress"], **run)
        boots = engine.sample(5, image=sneaker, strength=STRENGTHS, cond="ankle boot", **run)
        right, below = np.zeros((2, 28, 28), np.float32)
        right[:, 14:] = 1
        below[13:] = 1
        coats = engine.sample(5, image=pullover, mask=right, cond="coat", **run)
        tops = engine.sample(5, image=dress, mask=below, cond=["t-shirt", "pullover", "coat", "shirt", "dress"], **run)
    rows = ([sneaker, *boots], [pullover, *coats], [dress, *tops])
    labels = [
        *("sneaker", *(f"boot {strength:g}" for strength in STRENGTHS)),
        *("pullover", *["coat, right"] * 5),
        *("dress", "t-shirt", "pullover", "coat", "shirt", "dress"),
    ]
    title = "first column: given. strength of the change; right half, lower half sampled anew"
    samples = np.concatenate([np.stack(row) for row in rows]).repeat(ZOOM, axis=2).repeat(ZOOM, axis=3)
    picture = image_grid(samples, labels, title=title, data_range=(-1, 1), columns=6)
    picture.save(target)
    typer.echo(f"written to {target}")


if __name__ == "__main__":
    typer.run(main)
