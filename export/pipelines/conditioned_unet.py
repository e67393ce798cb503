"""The conditional UNet whose timestep embedding takes a guidance scale too: a latent consistency model's."""

from __future__ import annotations

from typing import Any

from stepfuse.extras import pip_install

try:
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): {pip_install('export')}") from error


class ConditionedUNet(torch.nn.Module):
    """diffusers' ``UNet2DConditionModel``, whose ``time_cond_proj_dim``, if set, is the width of a guidance scale.

    Latent consistency models (Luo et al., 2023) are distilled from guided predictions of any scale, whose embedding is
    added to that of the timestep.
    """

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet
        if (width := unet.config.time_cond_proj_dim) is not None:
            half = width // 2  # rounded step by step as diffusers does: angles are up to thousands
            fall = torch.log(torch.tensor(10000.0)) / (half - 1)
            self.register_buffer("frequencies", torch.exp(torch.arange(half) * -fall), persistent=False)
            self.padding = width % 2

    def timestep_cond(self, guidance: torch.Tensor | None) -> torch.Tensor | None:
        """The embedding of scales (R,), less 1 as diffusers' ``get_guidance_scale_embedding`` takes them, (R, D)."""
        if guidance is None:
            return None
        angles = ((guidance - 1) * 1000)[:, None] * self.frequencies
        found = torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, self.padding))
        return found.to(self.unet.dtype)
