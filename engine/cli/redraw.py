"""``stepfuse sample --like PICTURE``: draws a picture again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import stepfuse as sf
from stepfuse.bundle.pipeline_info import VAE_DECODER
from stepfuse.cli.common import refuse
from stepfuse.cli.console import Report
from stepfuse.cli.latents import edit_arguments, pictures_of
from stepfuse.cli.like import Likeness, conds_of
from stepfuse.cli.loras import Loras
from stepfuse.cli.options import Machine
from stepfuse.cli.run_files import SUFFIXES, Writing, files_of
from stepfuse.files.atomic import write_atomically
from stepfuse.lora.adapters import chosen
from stepfuse.pipeline.provenance import Provenance
from stepfuse.requests.resolution import seeds_of
from stepfuse.samplers.names import steps_asked

_TABLE = ("sampler", "steps", "guidance_scale", "eta")


def draw_again(
    path: Path,
    model: str | None,
    output: str,
    given: Mapping[str, Any],
    lora: Sequence[str] | None,
    writing: Writing,
    machine: Machine,
    report: Report,
) -> None:
    """Draws a picture again and writes it: byte for byte the same with the same model, if nothing is changed.

    Args:
        path: The picture.
        model: Draws it; None is the one that the picture names, if that comes with the package.
        output: A file, a pattern or ``-``: of the picture, the samples, or with prompts the pixels.
        given: The command's options by name, None where left out; they take the place of what the picture says.
        lora: ``--lora``: the files of the LoRAs that the picture names, and others.
        writing: What becomes of a file that is there.
        machine: What computes.
        report: Where it is reported.

    Raises:
        ValueError: If the picture does not say how it was drawn, or lacks what is needed, or an option is refused.
        OSError: If a file cannot be read or written.
    """
    from stepfuse.pipeline.drawn import title

    refuse("is for runs of many samples: leave it out with --like", skip_existing=writing.skip_existing or None)
    likeness = Likeness.read(path)
    bundle = sf.Bundle.load(model or likeness.model)
    found = likeness.fill(given, bundle)
    loras = Loras.of(lora, likeness.loras(given))
    is_grid = found["prompt"] is None and found["columns"] is not None
    seeds = seeds_of(found["seed"], found["number"])[_kept(found)]
    samples = [{"index": i, "seed": seed, "prompt": found["prompt"] or ""} for i, seed in enumerate(seeds)]
    together = SUFFIXES if is_grid else (".npy",)
    files = files_of(output, samples, model=bundle.name, together=together, format=writing.format)
    report = report.beside_output() if files.is_stdout else report
    files.left(writing, way_out="")
    draw = _draw_prompt if found["prompt"] is not None else _draw_classes
    drawn = draw(bundle, found, loras, machine, report)
    likeness.compare(drawn.made)
    if files.shared:
        files.targets[0].write(drawn.save_all)
    else:
        for place, target in enumerate(files.targets):
            target.write(drawn.pictures[place : place + 1].save)
    names = list(dict.fromkeys(target.name for target in files.targets))
    report.say(title(drawn.made), bold=True)
    for name in names if not files.is_stdout else ():
        report.say(f"written to {name}")
    made = drawn.made
    steps = steps_asked(made.options, made.steps)
    report.finish(model=bundle.name, sampler=made.sampler, steps=steps, samples=samples, files=names)


@dataclass(frozen=True)
class _Drawn:
    """What was drawn.

    Attributes:
        made: How.
        save_all: Writes a file of all samples: an array, or a grid.
        pictures: Each by itself; empty of a grid.
    """

    made: Provenance
    save_all: Callable[[Path], object]
    pictures: Any = ()


def _draw_prompt(bundle: sf.Bundle, found: Mapping[str, Any], loras: Loras, machine: Machine, report: Report) -> _Drawn:
    from stepfuse.pipeline.shown_picture import open_picture

    names = ("prompt", "negative_prompt", "width", "height", "strength", "denoising_end", "seed", "callback", *_TABLE)
    opened: dict[str, Any] = {name: open_picture(found[name]) for name in ("image", "mask") if found[name] is not None}
    loading = {**machine.arguments, **loras.loading, "max_rows": found["max_rows"]}
    with sf.TextToImage.load(bundle, **loading) as pipe:
        loras.register(pipe)
        pictures = pipe(
            **{name: found[name] for name in names},
            **found["options"],
            **opened,
            num_images=found["number"],
            sample_posterior=found["sample_posterior"],
            lora=loras.chosen,
            progress=report.progress,
        )
    pictures = pictures[_kept(found)]
    return _Drawn(pictures.provenance[0], _array(pictures.pixels), pictures)


def _draw_classes(
    bundle: sf.Bundle, found: Mapping[str, Any], loras: Loras, machine: Machine, report: Report
) -> _Drawn:
    from stepfuse.pipeline.drawn import conditions, record
    from stepfuse.pipeline.grids import save_grid
    from stepfuse.pipeline.sampling import sample_pictures
    from stepfuse.pipeline.vae import Vae

    number, callback, threads = found["number"], found["callback"], machine.threads
    call: dict[str, Any] = {name: conds_of(found[name], number) for name in ("cond", "negative_cond")}
    call |= {"seed": found["seed"], "strength": found["strength"], "progress": report.progress}
    call |= edit_arguments(bundle, found["image"], found["mask"], threads)
    loading = {**machine.arguments, **loras.loading, "max_rows": found["max_rows"]}
    with sf.Engine.load(bundle, **loading) as engine:
        loras.register(engine)
        adapters: Any = chosen(engine._service.adapters, loras.chosen)
        call["lora"] = adapters
        sampling = {**{name: found[name] for name in _TABLE}, **found["options"]}
        if found["columns"] is None:  # pictures of their own, as Pictures.save writes them
            vae = None if bundle.file(VAE_DECODER) is None else Vae(bundle, threads=threads)
            pictures = sample_pictures(engine, number, vae=vae, callback=callback, **call, **sampling)[_kept(found)]
            return _Drawn(pictures.provenance[0], _array(pictures.latents), pictures)
        table = engine.table(**sampling)
        samples = engine.sample(number, table=table, callback=callback, **call)
        drawn: dict[str, Any] = {
            **{name: conditions(engine, call[name], number) for name in ("cond", "negative_cond")},
            **{name: call.get(name) for name in ("image", "mask", "strength")},
        }
        stop = found["stopped_after"]
        columns = min(found["columns"], number)
        made = record(
            engine.model,
            table,
            found["seed"],
            schedule=engine.info.schedule,
            max_rows=engine.serving.row_limit,
            number=number,
            columns=columns,
            stopped_after=stop,
            lora=adapters,
            **drawn,
        )

    def save_all(path: Path) -> None:
        if path.suffix.lower() == ".npy":
            _array(samples)(path)
            return
        shown, data_range = pictures_of(bundle, samples, threads)
        save_grid(path, shown, made, data_range=data_range)

    return _Drawn(made, save_all)


def _array(array: npt.NDArray[np.float32]) -> Callable[[Path], object]:
    return partial(write_atomically, write=partial(np.save, arr=array))


def _kept(found: Mapping[str, Any]) -> slice:
    """Which of the pictures that are drawn are wanted."""
    keep = found["keep"]
    return slice(None) if keep is None else slice(keep, keep + 1)
