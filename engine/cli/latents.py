"""Pictures of samples, and samples of pictures, where a model without prompts samples in a VAE's latent space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import stepfuse as sf
from stepfuse.bundle.pipeline_info import VAE_DECODER
from stepfuse.pipeline.size import pixels_of

Images = npt.NDArray[np.float32]


def pictures_of(bundle: sf.Bundle, samples: Images, threads: int) -> tuple[Images, tuple[float, float]]:
    """Samples as pictures, decoded where they are latents.

    Returns:
        The pictures, shape (n, C, H, W), and their values of black and of white.
    """
    if bundle.file(VAE_DECODER) is None:
        return samples, bundle.info.data_range
    from stepfuse.pipeline.vae import Vae

    return Vae(bundle, threads=threads).decode(samples), (-1.0, 1.0)


def edit_arguments(bundle: sf.Bundle, image: Path | None, mask: Path | None, threads: int) -> dict[str, Any]:
    """``image`` and ``mask`` of ``Engine.sample``, as far as given, read from files; encoded where samples are latents.

    Raises:
        ValueError: If a picture does not have the model's size, or the bundle has no encoder that it needs.
        OSError: If a file cannot be read.
    """
    from stepfuse.pipeline.input_images import read_image, read_mask

    info, cell = bundle.info, 1
    shape, data_range = info.shape, info.data_range
    latent = bundle.pipeline is not None and bundle.file(VAE_DECODER) is not None
    if bundle.pipeline is not None and latent:
        width, height = pixels_of(bundle.pipeline, shape)
        shape, data_range, cell = (3, height, width), (-1.0, 1.0), bundle.pipeline.pixels_per_latent
    arguments: dict[str, Any] = {}
    if image is not None:
        arguments["image"] = read_image(image, shape, data_range)
        if latent:
            from stepfuse.pipeline.vae import Vae

            arguments["image"] = Vae(bundle, threads=threads).encode(arguments["image"][None])[0][0]
    if mask is not None:
        arguments["mask"] = read_mask(mask, shape, cell)
    return arguments
