"""``stepfuse sample --prompt``: pictures of a prompt."""

from __future__ import annotations

import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import stepfuse as sf
from stepfuse.cli.common import console, say, shown
from stepfuse.files.atomic import write_atomically


def sample_prompt(
    bundle: sf.Bundle, output: Path, *, device: str, max_rows: int | None, threads: int, **arguments: Any
) -> None:
    """Samples pictures of a prompt and writes them: one as ``output``, several as ``NAME-SEED.png``.

    Args:
        bundle: A pipeline with prompts.
        output: Ends in .png, or in .npy for the pixels, (n, H, W, 3), 0 to 1.
        device: As in ``TextToImage.load``.
        max_rows: Likewise.
        threads: Likewise.
        **arguments: Those of ``TextToImage.__call__``, with ``image`` and ``mask`` as paths.

    Raises:
        ValueError: If ``device`` is not the CPU, or as ``TextToImage.__call__`` does.
        OSError: If a file cannot be read or written.
    """
    from stepfuse.pipeline.shown_picture import open_picture

    for name in ("image", "mask"):
        if (path := arguments[name]) is not None:
            arguments[name] = open_picture(path)
    with (
        sf.TextToImage.load(bundle, device=device, max_rows=max_rows, threads=threads) as pipe,
        warnings.catch_warnings(),
    ):
        warnings.showwarning = _print_warning
        began = time.perf_counter()
        pictures = pipe(**arguments, progress=console.is_terminal)
        seconds = time.perf_counter() - began
    if output.suffix == ".npy":
        write_atomically(output, partial(np.save, arr=pictures.pixels))
        paths = [output]
    else:
        paths = pictures.save(output)
    _, height, width, _ = pictures.pixels.shape
    say(pictures.facts[0]["Description"])
    console.print(f"{len(pictures)} of {width} x {height} pixels in {seconds:.2f} s", highlight=False)
    for path in paths:
        say(f"written to {path}")


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Takes the place of ``warnings.showwarning``: one line, without file and line number."""
    Console(stderr=True, emoji=False).print(f"[yellow]stepfuse:[/] {shown(message)}", highlight=False, soft_wrap=True)


def require_prompt(bundle: sf.Bundle, given: dict[str, Any]) -> bool:
    """Whether a bundle samples from a prompt.

    Args:
        bundle: The bundle.
        given: The options that need a prompt, by name, and ``cond``, which excludes one; None where left out.

    Raises:
        ValueError: If the bundle takes prompts and ``prompt`` is missing or ``cond`` given; or if it takes none and an
            option that needs one is given.
    """
    if bundle.pipeline is not None and bundle.pipeline.prompts:
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
