"""The VAE's decoder and encoder, with the scaling and the shift of latents folded in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stepfuse.bundle.pipeline_info import VAE_DECODER, VAE_ENCODER
from stepfuse.export.onnx.inputs import Input
from stepfuse.export.pipelines.export_plan import ExportPart
from stepfuse.export.pipelines.pipeline_folder import Config, PipelineFolder
from stepfuse.extras import pip_install

try:
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): {pip_install('export')}") from error

KIND = "AutoencoderKL"


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


def pixels_per_latent(vae: Config) -> int:
    """Pixels a side of a latent's cell: each level but the last halves the picture."""
    return int(2 ** (len(vae["block_out_channels"]) - 1))


def vae_config(folder: PipelineFolder) -> Config:
    """The VAE's configuration.

    Raises:
        ExportError: If it is missing or of another kind.
    """
    config = folder.config("vae", KIND)
    for name in ("in_channels", "out_channels"):
        config.require(name, "3", lambda value: value == 3)
    return config


def vae_parts(config: Config, shape: Sequence[int], *, upcast: bool = False) -> list[ExportPart]:
    """VaeDecoder and encoder.

    Args:
        config: What ``vae_config`` returned.
        shape: Shape of a sample at the model's own size.
        upcast: Whether the pipeline runs the VAE in float32 if ``force_upcast`` is set.
    """
    channels, cell = config.number("latent_channels"), pixels_per_latent(config)
    scale, shift = (torch.tensor(one).reshape(1, -1, 1, 1) for one in _units(config))
    small = {"height": (2, max(2, min(shape[1], 8))), "width": (3, max(2, min(shape[2], 6)))}
    float32 = upcast and bool(config["force_upcast"])
    cells = "" if cell == 1 else f"{cell}*"

    def part(file: str, kind: type[VaeDecoder], given: Input, outputs: Sequence[str]) -> ExportPart:
        return ExportPart(
            file, {"vae": (KIND,)}, lambda vae: kind(vae, scale, shift), [given], outputs, small, "vae.", float32
        )

    latent = Input("latent", (channels, "height", "width"))
    image = Input("image", (3, f"{cells}height", f"{cells}width"))
    return [
        part(VAE_DECODER, VaeDecoder, latent, ["image"]),
        part(VAE_ENCODER, VaeEncoder, image, ["latent", "std"]),
    ]


def _units(config: Config) -> tuple[list[float], list[float]]:
    """Scale and shift of samples against latents, a number a channel or one for all."""
    factor = float(config["scaling_factor"])
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        return [factor / float(one) for one in std], [float(one) for one in mean]
    return [factor], [float(config.get("shift_factor") or 0.0)]
