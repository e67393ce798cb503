"""``stepfuse sample --prompt``: pictures of prompts, each written as soon as it is there."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

import stepfuse as sf
from stepfuse.cli.common import refuse
from stepfuse.cli.console import Report
from stepfuse.cli.loras import Loras
from stepfuse.cli.options import Machine, Sampling
from stepfuse.cli.run import Run, seeds_of_run
from stepfuse.cli.run_files import Writing, files_of
from stepfuse.files.atomic import write_atomically

_MOST_BYTES = 16 << 20  # of a file of prompts


def sample_prompts(
    bundle: sf.Bundle,
    prompts: Sequence[str],
    number: int,
    seed: int,
    sampling: Sampling,
    output: str,
    writing: Writing,
    machine: Machine,
    report: Report,
    loras: Loras,
    **arguments: Any,
) -> None:
    """Samples ``number`` pictures of each prompt; those of a prompt are written as soon as they are there.

    Args:
        bundle: A pipeline with prompts.
        prompts: What the pictures show.
        number: Pictures of each prompt.
        seed: Picture i has seed ``seed + i``.
        sampling: How they are sampled.
        output: A file, a pattern or ``-``. Of several pictures, ``cat.png`` stands for ``cat-SEED.png``; a .npy file
            holds the pixels of all, (n, H, W, 3), 0 to 1.
        writing: What becomes of files that are there.
        machine: What computes.
        report: Where the run is reported.
        loras: LoRAs of the run.
        **arguments: Those of ``TextToImage.__call__`` that are left, with pictures as paths.

    Raises:
        ValueError: If ``number`` is below 1, or as ``TextToImage.load`` and ``TextToImage.__call__`` do.
        OSError: If a file cannot be read or written.
    """
    from stepfuse.pipeline.shown_picture import open_picture

    seeds = seeds_of_run(seed, number, len(prompts))
    texts = [prompt for prompt in prompts for _ in range(number)]
    samples = [{"index": i, "seed": seeds[i], "prompt": text} for i, text in enumerate(texts)]
    files = files_of(output, samples, model=bundle.name, together=(".npy",), format=writing.format)
    run = Run(bundle, sampling, samples, files, report.beside_output() if files.is_stdout else report)
    arguments |= {name: open_picture(arguments[name]) for name in ("image", "mask") if arguments[name] is not None}
    arguments |= {"control": {name: open_picture(path) for name, path in arguments.get("control", {}).items()} or None}
    left = run.begin(writing)
    pixels = []
    began = time.perf_counter()
    if left:
        with sf.TextToImage.load(bundle, **machine.arguments, **loras.loading) as pipe:
            loras.register(pipe)
            for prompt, group in groupby(left, key=lambda i: i // number):
                chosen = list(group)
                pictures = pipe(
                    prompts[prompt],
                    num_images=len(chosen),
                    seed=[seeds[i] for i in chosen],
                    progress=run.report.progress,
                    lora=loras.chosen,
                    **sampling.arguments,
                    **arguments,
                )
                run.title = run.title or pictures.facts[0]["Description"]
                if files.shared:
                    pixels.append(pictures.pixels)
                    continue
                for place, i in enumerate(chosen):
                    run.write(i, pictures[place : place + 1].save)
        if files.shared:
            run.write(0, partial(write_atomically, write=partial(np.save, arr=np.concatenate(pixels))))
        _, height, width, _ = pictures.pixels.shape
        seconds = time.perf_counter() - began
        run.finish(f"{len(left)} of {width} x {height} pixels in {seconds:.2f} s", seconds, width=width, height=height)
    else:
        run.finish("", 0.0)


def read_prompts(file: str) -> list[str]:
    """Prompts of a file, one a line; blank lines are left out.

    Args:
        file: Its path, or ``-`` for standard input.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not UTF-8, too long, or holds no prompt.
    """
    if file == "-":
        raw = sys.stdin.buffer.read(_MOST_BYTES + 1)
    else:
        with Path(file).open("rb") as opened:
            raw = opened.read(_MOST_BYTES + 1)
    if len(raw) > _MOST_BYTES:
        raise ValueError(f"--prompt-file must have at most {_MOST_BYTES >> 20} MiB, {file} has more")
    try:
        lines = raw.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompt-file must be UTF-8, {file} is not: {error}") from error
    if not (prompts := [line.strip() for line in lines if line.strip()]):
        raise ValueError(f"--prompt-file must hold a prompt a line, {file} holds none")
    return prompts


def prompts_of(
    bundle: sf.Bundle, prompt: list[str] | None, prompt_file: str | None, *, cond: list[str] | None, **given: object
) -> list[str] | None:
    """The prompts of a bundle that takes some; None of one that does not.

    Raises:
        ValueError: If the bundle takes prompts and none or ``--cond`` is given, or it takes none and an option that
            needs one is given.
        OSError: If the file of prompts cannot be read.
    """
    if bundle.pipeline is None or not bundle.pipeline.prompts:
        needs = f"needs a pipeline with prompts, {bundle.name} has none: leave it out"
        refuse(needs, prompt=prompt, prompt_file=prompt_file, **given)
        return None
    refuse(f"is for models with classes, {bundle.name} takes --prompt", cond=cond)
    if prompt is None and prompt_file is None:
        raise ValueError(f"{bundle.name} draws what a prompt says: give --prompt or --prompt-file")
    if prompt is not None:
        refuse("and --prompt are two places for prompts: give one of them", prompt_file=prompt_file)
        return prompt
    assert prompt_file is not None
    return read_prompts(prompt_file)
