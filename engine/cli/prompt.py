"""``stepfuse sample --prompt``, and what else of a pipeline the commands show."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.markup import escape

import stepfuse as sf
from stepfuse.bundle.pipeline_info import VAE_DECODER, PipelineInfo
from stepfuse.cli.common import console, say
from stepfuse.pipeline.size import pixels_of

Images = npt.NDArray[np.float32]


def sample_prompt(bundle: sf.Bundle, output: Path, *, max_rows: int | None, threads: int, **arguments: Any) -> None:
    """Draws pictures of a prompt and writes them: one as ``output``, several as ``NAME-SEED.png``.

    Args:
        bundle: Of a pipeline with prompts.
        output: Ends in .png, or in .npy for the pixels, (n, H, W, 3), 0 to 1.
        max_rows: As in ``TextToImage.load``.
        threads: Likewise.
        arguments: Of the call, with ``image`` and ``mask`` as paths.

    Raises:
        ValueError: If a bound is broken; the message carries the value received.
        OSError: If a file cannot be read or written.
    """
    from PIL import Image

    for name in ("image", "mask"):
        if (path := arguments[name]) is not None:
            with Image.open(path) as picture:
                picture.load()
                arguments[name] = picture
    with sf.TextToImage.load(bundle, max_rows=max_rows, threads=threads) as pipe, warnings.catch_warnings():
        warnings.showwarning = _tell
        began = time.perf_counter()
        drawn = pipe(**arguments, progress=console.is_terminal)
        seconds = time.perf_counter() - began
    if output.suffix == ".npy":
        np.save(output, drawn.pixels)
        paths = [output]
    else:
        paths = drawn.save(output)
    _, height, width, _ = drawn.pixels.shape
    say(drawn.facts[0]["Description"])
    console.print(f"{len(drawn)} of {width} x {height} pixels in {seconds:.2f} s", highlight=False)
    for path in paths:
        say(f"written to {path}")


def _tell(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning in a line, without the place in the code."""
    Console(stderr=True).print(f"[yellow]stepfuse:[/] {escape(str(message))}", highlight=False, soft_wrap=True)


def require_prompt(bundle: sf.Bundle, given: dict[str, Any]) -> bool:
    """Whether a bundle is drawn from a prompt.

    Args:
        bundle: The bundle.
        given: Options that go with a prompt, and ``cond``, which does not; None where left out.

    Raises:
        ValueError: If the prompt is missing, or an option is given that is for the other kind of bundle.
    """
    takes_prompts = bundle.pipeline is not None and bool(bundle.pipeline.prompts)
    if takes_prompts:
        if given["prompt"] is None:
            raise ValueError(f"{bundle.name} draws what a prompt says: give --prompt")
        if given["cond"] is not None:
            raise ValueError(f"--cond is for models with classes, {bundle.name} takes --prompt")
        return True
    for name, value in given.items():
        if name != "cond" and value is not None:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} needs a pipeline with prompts, {bundle.name} has none: leave it out")
    return False


def pictures_of(bundle: sf.Bundle, samples: Images, threads: int) -> tuple[Images, tuple[float, float]]:
    """Samples as pictures, (n, C, H, W), and the values of black and full: decoded where they are latents."""
    if bundle.file(VAE_DECODER) is None:
        return samples, bundle.info.data_range
    from stepfuse.pipeline.vae import Vae

    return Vae(bundle, threads=threads).decode(samples), (-1.0, 1.0)


def begin_with(bundle: sf.Bundle, image: Path | None, mask: Path | None, threads: int) -> dict[str, Any]:
    """The pictures that samples begin with, as arguments of ``Engine.sample``: encoded where they are latents.

    Raises:
        ValueError: If a picture is of another size, or the bundle cannot encode it.
        OSError: If one cannot be read.
    """
    from stepfuse.pipeline.image_files import read_image

    info, cell = bundle.info, 1
    shape, data_range = info.shape, info.data_range
    latent = bundle.pipeline is not None and bundle.file(VAE_DECODER) is not None
    if bundle.pipeline is not None and latent:
        width, height = pixels_of(bundle.pipeline, shape)
        shape, data_range, cell = (3, height, width), (-1.0, 1.0), bundle.pipeline.pixels_per_latent
    found: dict[str, Any] = {}
    if image is not None:
        found["image"] = read_image(image, shape, data_range)
        if latent:
            from stepfuse.pipeline.vae import Vae

            found["image"] = Vae(bundle, threads=threads).encode(found["image"][None])[0][0]
    if mask is not None:
        found["mask"] = read_image(mask, (1, *shape[1:]), (0.0, 1.0))[:, ::cell, ::cell]
    return found


def describe_pipeline(info: sf.ModelInfo, pipeline: PipelineInfo | None) -> list[tuple[str, str]]:
    """What ``stepfuse info`` says of a pipeline."""
    if pipeline is None:
        return []
    width, height = pixels_of(pipeline, info.shape)
    size = f"{width} x {height} pixels"
    if pipeline.fixed_size:
        size += " alone"
    else:
        size += f", or any multiples of {pipeline.size_multiple}"
        size += f" up to {pipeline.max_size}" if pipeline.max_size else ""
    prompts = [(f"prompt as {one.input}", f"{one.length} tokens, {one.tokenizer}") for one in pipeline.prompts]
    return [("pipeline", pipeline.source), ("pictures", size), *prompts]
