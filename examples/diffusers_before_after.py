"""A diffusers script, before and after: one line gives the same pipeline the engine. Call and pictures stay.

The folder is one that diffusers saved (``save_pretrained``), such as of ``hf download ORG/NAME --local-dir FOLDER``.

pip install 'stepfuse[export]'
python diffusers_before_after.py FOLDER
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers import DiffusionPipeline

import stepfuse as sf


def before(folder: Path, prompt: str, steps: int) -> np.ndarray:
    """As diffusers' documentation has it."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, num_inference_steps=steps, generator=generator, output_type="np").images[0]


def after(folder: Path, prompt: str, steps: int) -> np.ndarray:
    """The same script with one more line."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe = sf.integrations.diffusers.compile(pipe)
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, num_inference_steps=steps, generator=generator, output_type="np").images[0]


def main(
    folder: Annotated[Path, typer.Argument(help="A pipeline's folder.")],
    prompt: Annotated[str, typer.Option(help="What the picture shows.")] = "a red cat in the rain",
    steps: Annotated[int, typer.Option(min=1)] = 20,
) -> None:
    """Draws one picture both ways, and says how much they differ."""
    difference = abs(before(folder, prompt, steps) - after(folder, prompt, steps)).max()
    typer.echo(f"largest difference of a pixel: {difference:.1e} of 1")


if __name__ == "__main__":
    typer.run(main)
