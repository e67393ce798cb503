"""The configuration of the conditional UNet of Stable Diffusion 1.x, 2.x and XL, checked."""

from __future__ import annotations

from stepfuse.export.pipelines.pipeline_folder import Config, PipelineFolder

KIND = "UNet2DConditionModel"


def unet_config(folder: PipelineFolder, vae: Config, addition: str | None) -> Config:
    """The UNet's configuration.

    Args:
        folder: The pipeline.
        vae: The VAE's configuration.
        addition: The ``addition_embed_type`` that it must have.

    Raises:
        ExportError: If it is missing or not covered.
    """
    config = folder.config("unet", KIND)
    config.require_none("class_embed_type", "num_class_embeds", "encoder_hid_dim")
    config.require("time_cond_proj_dim", "None, or at least 4", lambda width: width is None or width >= 4)
    config.require("addition_embed_type", repr(addition), lambda value: value == addition)
    channels = vae.number("latent_channels")
    for name in ("in_channels", "out_channels"):
        config.require(name, f"{channels}, the VAE's latent_channels", lambda value: value == channels)
    return config


def size_multiple(config: Config) -> int:
    """Sides of a sample are multiples of this: each level but the last halves it."""
    return int(2 ** (len(config["block_out_channels"]) - 1))
