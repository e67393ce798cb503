"""``stepfuse sample --like PICTURE``: draws a picture again."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import stepfuse as sf
from stepfuse.bundle.pipeline_info import VAE_DECODER
from stepfuse.cli.common import console, say
from stepfuse.cli.latents import edit_arguments, pictures_of
from stepfuse.cli.like import Likeness, conds_of
from stepfuse.files.atomic import write_atomically
from stepfuse.pipeline.provenance import Provenance

_TABLE = ("sampler", "steps", "guidance_scale", "eta")


def draw_again(
    path: Path, model: str | None, output: Path, given: Mapping[str, Any], *, device: str, threads: int
) -> None:
    """Draws a picture again and writes it: byte for byte the same with the same model, if nothing is changed.

    Args:
        path: The picture.
        model: Draws it; None is the one that the picture names, if that comes with the package.
        output: Ends in .png, or in .npy for the samples, or with prompts the pixels.
        given: The command's options by name, None where left out; they take the place of what the picture says.
        device: As in ``Engine.load``.
        threads: Likewise.

    Raises:
        ValueError: If the picture does not say how it was drawn, or lacks what is needed, or an option is refused.
        OSError: If a file cannot be read or written.
    """
    from stepfuse.pipeline.drawn import title

    likeness = Likeness.read(path)
    bundle = sf.Bundle.load(model or likeness.model)
    found = likeness.fill(given, bundle)
    output.parent.mkdir(parents=True, exist_ok=True)
    draw = _draw_prompt if found["prompt"] is not None else _draw_classes
    made, paths = draw(bundle, output, found, device, threads)
    likeness.compare(made)
    say(title(made), bold=True)
    for one in paths:
        say(f"written to {one}")


def _draw_prompt(
    bundle: sf.Bundle, output: Path, found: Mapping[str, Any], device: str, threads: int
) -> tuple[Provenance, list[Path]]:
    from stepfuse.pipeline.shown_picture import open_picture

    names = ("prompt", "negative_prompt", "width", "height", "strength", "seed", "callback", *_TABLE)
    opened: dict[str, Any] = {name: open_picture(found[name]) for name in ("image", "mask") if found[name] is not None}
    with sf.TextToImage.load(bundle, device=device, max_rows=found["max_rows"], threads=threads) as pipe:
        pictures = pipe(
            **{name: found[name] for name in names},
            **found["options"],
            **opened,
            num_images=found["number"],
            sample_posterior=found["sample_posterior"],
            progress=console.is_terminal,
        )
    pictures = pictures[_kept(found)]
    made = pictures.provenance[0]
    return made, _save_array(output, pictures.pixels) if output.suffix == ".npy" else pictures.save(output)


def _draw_classes(
    bundle: sf.Bundle, output: Path, found: Mapping[str, Any], device: str, threads: int
) -> tuple[Provenance, list[Path]]:
    from stepfuse.pipeline.drawn import conditions, record
    from stepfuse.pipeline.grids import save_grid
    from stepfuse.pipeline.sampling import sample_pictures
    from stepfuse.pipeline.vae import Vae

    number, callback = found["number"], found["callback"]
    call: dict[str, Any] = {name: conds_of(found[name], number) for name in ("cond", "negative_cond")}
    call |= {"seed": found["seed"], "strength": found["strength"], "progress": console.is_terminal}
    call |= edit_arguments(bundle, found["image"], found["mask"], threads)
    with sf.Engine.load(bundle, device=device, max_rows=found["max_rows"], threads=threads) as engine:
        chosen = {**{name: found[name] for name in _TABLE}, **found["options"]}
        if found["columns"] is None:  # pictures of their own, as Pictures.save writes them
            vae = None if bundle.file(VAE_DECODER) is None else Vae(bundle, threads=threads)
            pictures = sample_pictures(engine, number, vae=vae, callback=callback, **call, **chosen)[_kept(found)]
            made = pictures.provenance[0]
            return made, _save_array(output, pictures.latents) if output.suffix == ".npy" else pictures.save(output)
        table = engine.table(**chosen)
        samples = engine.sample(number, table=table, callback=callback, **call)
        drawn: dict[str, Any] = {
            **{name: conditions(engine, call[name], number) for name in ("cond", "negative_cond")},
            **{name: call.get(name) for name in ("image", "mask", "strength")},
        }
        stop = found["stopped_after"]
        columns = min(found["columns"], number)
        made = record(engine, table, found["seed"], number=number, columns=columns, stopped_after=stop, **drawn)
    if output.suffix == ".npy":
        return made, _save_array(output, samples)
    shown, data_range = pictures_of(bundle, samples, threads)
    save_grid(output, shown, made, data_range=data_range)
    return made, [output]


def _save_array(output: Path, array: npt.NDArray[np.float32]) -> list[Path]:
    write_atomically(output, partial(np.save, arr=array))
    return [output]


def _kept(found: Mapping[str, Any]) -> slice:
    """Which of the pictures that are drawn are wanted."""
    keep = found["keep"]
    return slice(None) if keep is None else slice(keep, keep + 1)
