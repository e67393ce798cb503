"""Pictures of an engine's samples, which say how they were drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.arguments import whole_number
from stepfuse.engine import Engine
from stepfuse.lora.adapters import chosen
from stepfuse.pipeline.drawn import StopWatch, batches, conditions, facts, marked_if_custom, record
from stepfuse.pipeline.pictures import Pictures, to_pixels
from stepfuse.pipeline.vae import Vae
from stepfuse.requests.resolution import seeds_of
from stepfuse.samplers.table import StepTable
from stepfuse.serving.batch import Callback


def sample_pictures(
    engine: Engine,
    n: int = 1,
    *,
    cond: Any = None,
    negative_cond: Any = None,
    seed: int | Sequence[int] | None = None,
    table: StepTable | None = None,
    noise: npt.ArrayLike | None = None,
    image: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    strength: float | None = None,
    lora: Mapping[str, float] | None = None,
    progress: bool = False,
    callback: Callback | None = None,
    vae: Vae | None = None,
    **sampler: Any,
) -> Pictures:
    """Draws samples as pictures, each of which is saved with how it was drawn, as ``TextToImage`` does.

    Args:
        engine: Of a model whose samples are pictures, (1 or 3, H, W), or of one with a ``vae``.
        n: As in ``Engine.sample``, as is all that follows; but sampler and strength are one for all samples.
        cond: One for all, or one a sample.
        negative_cond: Likewise.
        seed: Likewise.
        table: A compiled sampler, instead of ``sampler``.
        noise: Shape (n, *shape).
        image: One for all, or (n, *shape).
        mask: Likewise.
        strength: Share of the steps that ``image`` leaves.
        lora: Scales of LoRAs by name, one dict for all samples.
        progress: Whether a bar is shown.
        callback: A run that it stops is recorded with the steps that were done.
        vae: Decodes samples that are latents.
        **sampler: ``sampler``, ``steps``, ``guidance_scale``, ``eta`` and the sampler's own options.

    Returns:
        n pictures; ``save`` writes them.

    Raises:
        ValueError: If samples are no pictures and there is no ``vae``, or as ``Engine.sample`` does.
        Exception: As ``Engine.sample`` does.

    Examples:
        >>> with sf.Engine.load("fashion") as engine:
        ...     pictures = sf.sample_pictures(engine, 2, cond="bag", steps=4, seed=0)
        >>> pictures.save("bag.png")  # bag-0.png and bag-1.png
        [PosixPath('bag-0.png'), PosixPath('bag-1.png')]
    """
    shape = engine.info.shape
    if vae is None and (len(shape) != 3 or shape[0] not in (1, 3)):
        raise ValueError(f"samples must have shape (1 or 3, H, W) to be pictures, got {shape}: give the vae of latents")
    n = whole_number("n", n)
    compiled = engine.table(**sampler) if table is None else table
    seeds = seeds_of(seed, n)
    watch = None if callback is None else StopWatch(callback)
    adapters: Any = chosen(engine._service.adapters, lora)
    samples = engine.sample(
        n,
        cond=cond,
        negative_cond=negative_cond,
        seed=seeds,
        table=compiled,
        noise=noise,
        image=image,
        mask=mask,
        strength=strength,
        lora=adapters,
        progress=progress,
        callback=watch,
        **({} if table is None else sampler),
    )
    conds, negatives = conditions(engine, cond, n), conditions(engine, negative_cond, n)
    alike = all(one is None or one == one[:1] * n for one in (conds, negatives))
    alike = alike and noise is None and not _one_each(image, n, shape) and not _one_each(mask, n, shape)
    made = [
        record(
            engine.model,
            compiled,
            seeds[i],
            schedule=engine.info.schedule,
            max_rows=engine.serving.row_limit,
            strength=strength,
            image=_of_sample(image, i, n, shape),
            mask=_of_sample(mask, i, n, shape),
            noise=_of_sample(noise, i, n, shape),
            stopped_after=None if watch is None else watch.stopped_after,
            lora=adapters,
            cond=None if conds is None else [conds[i]],
            negative_cond=None if negatives is None else [negatives[i]],
            batch=batch,
        )
        for i, batch in enumerate(batches(seeds, alike=alike))
    ]
    if table is not None:
        made = marked_if_custom(made, table, engine.info)
    pixels = to_pixels(samples, engine.info.data_range) if vae is None else to_pixels(vae.decode(samples), (-1.0, 1.0))
    return Pictures(pixels, samples, [facts(one) for one in made], seeds)


def _one_each(given: npt.ArrayLike | None, n: int, shape: tuple[int, ...]) -> bool:
    """Whether an array holds one a sample, and not one for all."""
    return given is not None and n > 1 and np.ndim(given) > len(shape)


def _of_sample(given: npt.ArrayLike | None, index: int, n: int, shape: tuple[int, ...]) -> npt.ArrayLike | None:
    if given is None or np.ndim(given) <= len(shape):
        return given
    own: npt.NDArray[Any] = np.asarray(given)[index]
    return own
