"""``stepfuse sample`` of a model without prompts: a labelled grid, raw samples, or a file of each sample."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import stepfuse as sf
from stepfuse.bundle.pipeline_info import VAE_DECODER
from stepfuse.cli.common import parse_cond
from stepfuse.cli.console import Report
from stepfuse.cli.latents import edit_arguments, pictures_of
from stepfuse.cli.loras import Loras
from stepfuse.cli.options import Machine, Sampling
from stepfuse.cli.run import Run, seeds_of_run
from stepfuse.cli.run_files import SUFFIXES, Writing, files_of
from stepfuse.files.atomic import write_atomically
from stepfuse.lora.adapters import chosen

if TYPE_CHECKING:
    from stepfuse.pipeline.provenance import Provenance

_CHUNK = 256  # samples that are drawn before their files are written


def sample_classes(
    bundle: sf.Bundle,
    classes: Sequence[str] | None,
    number: int,
    seed: int,
    sampling: Sampling,
    output: str,
    writing: Writing,
    machine: Machine,
    report: Report,
    *,
    columns: int,
    loras: Loras,
    image: Path | None,
    mask: Path | None,
    strength: float | None,
) -> None:
    """Samples a model and writes a grid, a .npy file of all samples, or a file of each where ``output`` is a pattern.

    Args:
        bundle: A model without prompts.
        classes: Names or indices, repeated in order; None is all classes.
        number: Samples in all.
        seed: Sample i has seed ``seed + i``.
        sampling: How they are sampled.
        output: A file, a pattern or ``-``.
        writing: What becomes of files that are there.
        machine: What computes.
        report: Where the run is reported.
        columns: Samples a row of the grid.
        loras: LoRAs of the run.
        image: A picture that they begin as.
        mask: What of it is drawn anew.
        strength: As in ``Engine.sample``.

    Raises:
        ValueError: If ``number`` is below 1, or as ``Engine.sample`` does.
        OSError: If a file cannot be read or written.
    """
    seeds = seeds_of_run(seed, number)
    conds = conds_per_sample(bundle.info, classes, number)
    labels = _labels(bundle.info, conds, number)
    samples = [{"index": i, "seed": seeds[i], "cond": labels[i] or None} for i in range(number)]
    files = files_of(output, samples, model=bundle.name, together=SUFFIXES, format=writing.format)
    run = Run(bundle, sampling, samples, files, report.beside_output() if files.is_stdout else report)
    left = run.begin(writing)
    if not left:
        run.finish("", 0.0)
        return
    from stepfuse.pipeline.drawn import conditions, record, title  # with Pillow, which help does not need

    with sf.Engine.load(bundle, **machine.arguments, **loras.loading) as engine:
        loras.register(engine)
        lora: Any = chosen(engine._service.adapters, loras.chosen)
        editing = edit_arguments(bundle, image, mask, machine.threads)

        def arguments(indices: Sequence[int]) -> dict[str, Any]:
            return {
                "cond": None if conds is None else [conds[i] for i in indices],
                "table": run.table,
                "seed": [seeds[i] for i in indices],
                "strength": strength,
                "lora": lora,
                "progress": run.report.progress,
                **editing,
            }

        began = time.perf_counter()
        if files.shared:
            images = engine.sample(number, **arguments(left))
            made = record(
                engine.model,
                run.table,
                seed,
                schedule=engine.info.schedule,
                max_rows=engine.serving.row_limit,
                strength=strength,
                number=number,
                columns=min(columns, number),
                cond=conditions(engine, conds, number),
                lora=lora,
                **editing,
            )
            run.title = title(made)
            run.write(0, partial(_save_all, bundle, images, made, machine.threads))
        else:
            for first in range(0, len(left), _CHUNK):
                chunk = left[first : first + _CHUNK]
                _write_each(run, engine, chunk, arguments(chunk), machine.threads)
        seconds = time.perf_counter() - began
    stats = engine.stats()
    run.finish(_summary(stats, len(left), seconds), seconds, network_passes=int(stats.network_passes))


def conds_per_sample(info: sf.ModelInfo, texts: Sequence[str] | None, number: int) -> list[Any] | None:
    """The conditioning of each sample: the values of ``--cond``, or else all classes, repeated in order.

    Returns:
        None, all samples unconditional, where nothing is given and the model does not have exactly one conditioning
        input with class names.

    Raises:
        ValueError: If ``--cond`` is given and the model does not have exactly one conditioning input, or that has no
            such class.
    """
    names: Sequence[str] = texts or (next(iter(info.cond.values())).names if len(info.cond) == 1 else ())
    conds = [parse_cond(info, name) for name in names]
    return [conds[index % len(conds)] for index in range(number)] if conds else None


def _labels(info: sf.ModelInfo, conds: list[Any] | None, number: int) -> list[str]:
    """The class of each sample by its name; empty where there is none."""
    names = next(iter(info.cond.values())).names if info.cond else ()
    labels = ["" if one is None else str(one) for one in conds or [None] * number]
    return [names[int(label)] if label.isdigit() and int(label) < len(names) else label for label in labels]


def _save_all(bundle: sf.Bundle, images: npt.NDArray[np.float32], made: Provenance, threads: int, path: Path) -> None:
    from stepfuse.pipeline.grids import save_grid

    if path.suffix.lower() == ".npy":
        write_atomically(path, partial(np.save, arr=images))
        return
    pictures, data_range = pictures_of(bundle, images, threads)
    save_grid(path, pictures, made, data_range=data_range)


def _write_each(run: Run, engine: sf.Engine, chunk: Sequence[int], arguments: dict[str, Any], threads: int) -> None:
    """Draws samples and writes each as it is, or as a picture of its own size."""
    from stepfuse.pipeline.drawn import title
    from stepfuse.pipeline.sampling import sample_pictures
    from stepfuse.pipeline.vae import Vae

    vae = None if run.bundle.file(VAE_DECODER) is None else Vae(run.bundle, threads=threads)
    pictures = sample_pictures(engine, len(chunk), vae=vae, **arguments)
    made = pictures.provenance
    conds = [one for each in made for one in each.cond or [None]]
    run.title = run.title or title(replace(made[0], cond=None if all(one is None for one in conds) else conds))
    for place, i in enumerate(chunk):
        if run.files.targets[i].suffix == ".npy":
            run.write(i, partial(write_atomically, write=partial(np.save, arr=pictures.latents[place])))
        else:
            run.write(i, pictures[place : place + 1].save)


def _summary(stats: sf.EngineStats, number: int, seconds: float) -> str:
    samples = "1 sample" if number == 1 else f"{number} samples"
    return (
        f"{samples}, {stats.network_passes:.0f} network passes in {stats.forwards:.0f} forwards,"
        f" {seconds:.2f} s ({seconds / number * 1e3:.0f} ms a sample): network {stats.network_seconds:.2f} s,"
        f" step {stats.step_seconds * 1e3:.1f} ms, loop {stats.loop_seconds * 1e3:.1f} ms"
    )
