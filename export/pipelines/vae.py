"""The VAE's two halves, in the denoiser's units: scaling and shift are folded in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stepfuse.bundle.pipeline_info import VAE_DECODER, VAE_ENCODER
from stepfuse.export.onnx.inputs import Input
from stepfuse.export.pipelines.folder import Config, Folder
from stepfuse.export.pipelines.parts import Part

try:
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): pip install 'stepfuse[export]'") from error

KIND = "AutoencoderKL"


class Decoder(torch.nn.Module):
    """Pictures of samples.

    Args:
        vae: diffusers' ``AutoencoderKL``.
        scale: A sample is its latent times this, (1, C, 1, 1), once the shift is taken off.
        shift: That shift.
    """

    def __init__(self, vae: Any, scale: torch.Tensor, shift: torch.Tensor) -> None:
        super().__init__()
        self.vae, self.scale, self.shift = vae, scale, shift

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Shape (R, C, h, w) to (R, 3, H, W)."""
        return self.vae.decode(latent / self.scale + self.shift, return_dict=False)[0]


class Encoder(Decoder):
    """Samples of pictures."""

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Shape (R, 3, H, W) to mean and standard deviation of the posterior, (R, C, h, w) each."""
        posterior = self.vae.encode(image, return_dict=False)[0]
        return (posterior.mean - self.shift) * self.scale, posterior.std * self.scale


def pixels_per_latent(vae: Config) -> int:
    """Pixels a side of a cell: each level but the last halves the picture."""
    return int(2 ** (len(vae["block_out_channels"]) - 1))


def vae_config(folder: Folder) -> Config:
    """The VAE's configuration.

    Raises:
        ExportError: If it is missing or of another kind.
    """
    config = folder.config("vae", KIND)
    for name in ("in_channels", "out_channels"):
        config.require(name, "3", lambda value: value == 3)
    return config


def vae_parts(config: Config, shape: Sequence[int], *, upcast: bool = False) -> list[Part]:
    """Decoder and encoder.

    Args:
        config: What ``vae_config`` returned.
        shape: Of a sample at the model's own size.
        upcast: Whether the pipeline runs the VAE in float32 where ``force_upcast`` says so.
    """
    channels, cell = config.number("latent_channels"), pixels_per_latent(config)
    scale, shift = (torch.tensor(one).reshape(1, -1, 1, 1) for one in _units(config))
    small = {"height": (2, max(2, min(shape[1], 8))), "width": (3, max(2, min(shape[2], 6)))}
    float32 = upcast and bool(config["force_upcast"])
    cells = "" if cell == 1 else f"{cell}*"

    def part(file: str, kind: type[Decoder], given: Input, outputs: Sequence[str]) -> Part:
        return Part(
            file, {"vae": (KIND,)}, lambda vae: kind(vae, scale, shift), [given], outputs, small, "vae.", float32
        )

    latent = Input("latent", (channels, "height", "width"))
    image = Input("image", (3, f"{cells}height", f"{cells}width"))
    return [
        part(VAE_DECODER, Decoder, latent, ["image"]),
        part(VAE_ENCODER, Encoder, image, ["latent", "std"]),
    ]


def _units(config: Config) -> tuple[list[float], list[float]]:
    """Scale and shift of samples against latents, a number a channel or one for all."""
    factor = float(config["scaling_factor"])
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        return [factor / float(one) for one in std], [float(one) for one in mean]
    return [factor], [float(config.get("shift_factor") or 0.0)]
