"""The VAE's decoder and encoder, with the scaling and the shift of latents folded in."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any

from stepfuse.bundle.pipeline_info import VAE_DECODER, VAE_ENCODER
from stepfuse.export.onnx.inputs import Input
from stepfuse.export.pipelines.export_plan import ExportPart
from stepfuse.export.pipelines.linear_attention import attend_linearly
from stepfuse.export.pipelines.pipeline_folder import Config, PipelineFolder
from stepfuse.extras import pip_install

try:
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): {pip_install('export')}") from error

KIND, DEEP_COMPRESSION, VIDEO = "AutoencoderKL", "AutoencoderDC", "AutoencoderKLQwenImage"


class VaeDecoder(torch.nn.Module):
    """Decodes samples, in the denoiser's units, to pictures: ``sample = (latent - shift) * scale``.

    Args:
        vae: diffusers' ``AutoencoderKL``.
        scale: Shape (1, C, 1, 1).
        shift: Shape (1, C, 1, 1).
    """

    def __init__(self, vae: Any, scale: torch.Tensor, shift: torch.Tensor) -> None:
        super().__init__()
        self.vae, self.scale, self.shift = vae, scale, shift

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Shape (R, C, h, w) to (R, 3, H, W)."""
        return self.vae.decode(latent / self.scale + self.shift, return_dict=False)[0]


class VaeEncoder(VaeDecoder):
    """Encodes pictures to samples, in the denoiser's units."""

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Shape (R, 3, H, W) to mean and standard deviation of the posterior, (R, C, h, w) each."""
        posterior = self.vae.encode(image, return_dict=False)[0]
        return (posterior.mean - self.shift) * self.scale, posterior.std * self.scale


class FrameDecoder(VaeDecoder):
    """Decodes single frames with a video's VAE, diffusers' ``AutoencoderKLQwenImage``."""

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Shape (R, C, h, w) to (R, 3, H, W)."""
        frame = (latent / self.scale + self.shift).unsqueeze(2)
        return self.vae.decoder(self.vae.post_quant_conv(frame)).squeeze(2).clamp(-1, 1)


class FrameEncoder(VaeDecoder):
    """Encodes single frames with it."""

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Shape (R, 3, H, W) to mean and standard deviation of the posterior, (R, C, h, w) each."""
        both = self.vae.quant_conv(self.vae.encoder(image.unsqueeze(2))).squeeze(2)
        mean, log_variance = both.chunk(2, dim=1)
        return (mean - self.shift) * self.scale, (0.5 * log_variance.clamp(-30, 20)).exp() * self.scale


class DeepDecoder(VaeDecoder):
    """The same with diffusers' ``AutoencoderDC``."""

    def __init__(self, vae: Any, scale: torch.Tensor, shift: torch.Tensor) -> None:
        super().__init__(vae, scale, shift)
        for module in vae.modules():
            if hasattr(module, "apply_linear_attention"):
                module.apply_linear_attention = attend_linearly


class DeepEncoder(DeepDecoder):
    """Encodes with it: it has no posterior, and the standard deviation is 0."""

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Shape (R, 3, H, W) to the latent and zeros, (R, C, h, w) each."""
        latent = (self.vae.encode(image, return_dict=False)[0] - self.shift) * self.scale
        return latent, torch.zeros_like(latent)


_MODULES: dict[str, tuple[type[VaeDecoder], type[VaeDecoder]]] = {
    KIND: (VaeDecoder, VaeEncoder),
    DEEP_COMPRESSION: (DeepDecoder, DeepEncoder),
    VIDEO: (FrameDecoder, FrameEncoder),
}


def pixels_per_latent(vae: Config) -> int:
    """Pixels a side of a latent's cell: each level but the last halves the picture."""
    if vae.kind == VIDEO:
        return int(2 ** len(vae["temperal_downsample"]))
    levels = vae["encoder_block_out_channels" if vae.kind == DEEP_COMPRESSION else "block_out_channels"]
    return int(2 ** (len(levels) - 1))


def latent_channels(vae: Config) -> int:
    """Channels of a latent."""
    return vae.number("z_dim" if vae.kind == VIDEO else "latent_channels")


def vae_config(folder: PipelineFolder, kind: str = KIND) -> Config:
    """The VAE's configuration.

    Raises:
        ExportError: If it is missing or of another kind.
    """
    config = folder.config("vae", kind)
    for name in {"in_channels", "out_channels", "input_channels"} & config.keys():
        config.require(name, "3", lambda value: value == 3)
    return config


def vae_parts(config: Config, shape: Sequence[int], *, upcast: bool = False) -> list[ExportPart]:
    """VaeDecoder and encoder.

    Args:
        config: What ``vae_config`` returned.
        shape: Shape of a sample at the model's own size.
        upcast: Whether the pipeline runs the VAE in float32 if ``force_upcast`` is set.
    """
    channels, cell = latent_channels(config), pixels_per_latent(config)
    scale, shift = (torch.tensor(one).reshape(1, -1, 1, 1) for one in _units(config))
    small = {"height": (2, max(2, min(shape[1], 8))), "width": (3, max(2, min(shape[2], 6)))}
    decoder, encoder = _MODULES[config.kind]
    if config.kind == DEEP_COMPRESSION:  # captured where its attention is linear, which gives the same of fewer cells
        side = isqrt(config.number("attention_head_dim")) + 1
        small = {"height": (side, 2), "width": (side + 1, 3)}
    float32 = upcast and bool(config["force_upcast"])
    cells = "" if cell == 1 else f"{cell}*"

    def part(file: str, kind: type[VaeDecoder], given: Input, outputs: Sequence[str]) -> ExportPart:
        return ExportPart(
            file, {"vae": (config.kind,)}, lambda vae: kind(vae, scale, shift), [given], outputs, small, "vae.", float32
        )

    latent = Input("latent", (channels, "height", "width"))
    image = Input("image", (3, f"{cells}height", f"{cells}width"))
    return [
        part(VAE_DECODER, decoder, latent, ["image"]),
        part(VAE_ENCODER, encoder, image, ["latent", "std"]),
    ]


def _units(config: Config) -> tuple[list[float], list[float]]:
    """Scale and shift of samples against latents, a number a channel or one for all."""
    factor = float(config.get("scaling_factor", 1.0))
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        return [factor / float(one) for one in std], [float(one) for one in mean]
    return [factor], [float(config.get("shift_factor") or 0.0)]
