"""An edit by DDIM inversion: the noise that a sneaker comes from, drawn as another class.

No part of the picture is masked and no strength is chosen, as in ``editing.py``: all of it is encoded and drawn again.
Drawn as the class that it was, it comes back.

python inversion.py          # writes inversion.png
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import stepfuse as sf
from stepfuse.pipeline.image_files import image_grid

ZOOM = 3  # every pixel of a sample is 3 x 3 of the picture's
CLASSES = ("sneaker", "ankle boot", "sandal", "bag")


def main(
    target: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("inversion.png"),
    model: Annotated[str, typer.Option(help="A model that knows these classes.")] = "fashion",
    steps: Annotated[int, typer.Option(min=1, help="Of the way to the noise, and of the way back.")] = 50,
    seed: Annotated[int, typer.Option(min=0)] = 3,
) -> None:
    """Three sneakers, each drawn again from its own noise: as a sneaker, a boot, a sandal and a bag."""
    with sf.Engine.load(model) as engine:
        sneakers = engine.sample(3, cond="sneaker", seed=seed)  # or images of your own
        noise = engine.encode(sneakers, steps=steps, cond="sneaker")
        way_back = {"sampler": "ddim", "steps": steps, "guidance_scale": 1.0}  # as on the way to it
        edited = [engine.sample(3, noise=noise, cond=name, **way_back) for name in CLASSES]
        low, high = engine.info.data_range
    error = np.sqrt(np.mean((edited[0] - sneakers) ** 2)) / (high - low)
    samples = np.stack([sneakers, *edited], axis=1).reshape(-1, *sneakers.shape[1:])
    labels = ["given", *(f"as {name}" for name in CLASSES)] * len(sneakers)
    title = "sneakers, drawn again from their own noise as other classes"
    samples = samples.repeat(ZOOM, axis=2).repeat(ZOOM, axis=3)
    image_grid(samples, labels, title=title, data_range=(low, high), columns=1 + len(CLASSES)).save(target)
    typer.echo(f"written to {target}; as a sneaker it differs by {error:.2%} of the data range, root mean square")


if __name__ == "__main__":
    typer.run(main)
