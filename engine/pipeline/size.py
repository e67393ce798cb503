"""Sizes in pixels: which of them a pipeline can sample, and the shape of the samples."""

from __future__ import annotations

import math
import os

import numpy as np

from stepfuse.arguments import whole_number
from stepfuse.bundle.model_info import MAX_ELEMENTS, ModelInfo
from stepfuse.bundle.pipeline_info import PipelineInfo
from stepfuse.display import byte_size

FORWARD_PIXELS = 1 << 20  # most pixels of one forward's rows, by default


def pixels_of(pipeline: PipelineInfo, shape: tuple[int, ...]) -> tuple[int, int]:
    """Width and height of the picture that a sample of this shape is decoded to."""
    return shape[2] * pipeline.pixels_per_latent, shape[1] * pipeline.pixels_per_latent


def sample_shape(model: ModelInfo, pipeline: PipelineInfo, width: int, height: int) -> tuple[int, int, int]:
    """Shape (C, h, w) of the sample that is decoded to a picture of this size.

    Raises:
        ValueError: If the pipeline has another fixed size, or a side is not a multiple of ``size_multiple`` from 1 to
            ``max_size``.
        TypeError: If a side is not a whole number.
    """
    own = pixels_of(pipeline, model.shape)
    width, height = (
        whole_number(name, side, "a whole number of pixels") for name, side in (("width", width), ("height", height))
    )
    if pipeline.fixed_size and (width, height) != own:
        raise ValueError(f"this model draws {own[0]} x {own[1]} pixels alone, got {width} x {height}")
    step, most = pipeline.size_multiple, pipeline.max_size or math.inf
    for name, side in (("width", width), ("height", height)):
        if side % step or not 0 < side <= most:
            allowed = [one for one in (side // step * step, (side // step + 1) * step) if 0 < one <= most]
            nearest = " or ".join(map(str, allowed or [step if side <= 0 else int(most // step * step)]))
            limit = f" up to {most}" if pipeline.max_size else ""
            raise ValueError(f"{name} must be a multiple of {step} pixels{limit} for this model: {nearest}, got {side}")
    cell = pipeline.pixels_per_latent
    return model.shape[0], height // cell, width // cell


def require_memory(
    model: ModelInfo, pipeline: PipelineInfo, shape: tuple[int, ...], n: int, tokens: int | None = None
) -> None:
    """Refuses more or larger pictures than the machine has memory for, before anything is made for each of them.

    Counted are each picture's pixels, its sample and its conditioning, with and without guidance.

    Args:
        model: The denoiser.
        pipeline: The pipeline around it.
        shape: Of one sample.
        n: Number of pictures.
        tokens: As in ``ModelInfo.resized``.

    Raises:
        ValueError: If they do not fit.
    """
    if not hasattr(os, "sysconf"):
        return
    width, height = pixels_of(pipeline, shape)
    elements = math.prod(shape)
    inputs = model.resized(shape, tokens).cond if elements <= MAX_ELEMENTS else {}
    cond = sum(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in inputs.values())
    each = 4 * (3 * width * height + elements) + 2 * cond
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // each
    if n > most:
        raise ValueError(
            f"a call must be for at most {most} pictures of {width} x {height} pixels, as many as fit this machine's"
            f" memory, got {n}, which would take {byte_size(n * each)}"
        )


def rows_for(pipeline: PipelineInfo, shape: tuple[int, ...]) -> int:
    """Rows of a forward by default: as many as hold ``FORWARD_PIXELS``, from 2, which a guided sample takes, to 64."""
    width, height = pixels_of(pipeline, shape)
    return min(max(FORWARD_PIXELS // (width * height), 2), 64)
