"""The networks that are measured, with random weights: what they cost does not depend on them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import stepfuse as sf

_MADE: dict[str, Any] = {}

FASHION = Path(__file__).parents[2] / "examples" / "fashion" / "model.py"


@dataclass(frozen=True)
class Subject:
    """A network to measure.

    Attributes:
        name: What tables call it.
        make: Makes the module, on the GPU.
        dtype: It computes in this.
        shape: Shape of one sample.
        cond: Its conditioning inputs.
        conditioning: Of each sample; None where the network has no conditioning inputs.
        guidance_scale: 1 for such a network.
        schedule: Noise levels.
    """

    name: str
    make: Callable[[], Any]
    dtype: torch.dtype
    shape: tuple[int, ...]
    cond: dict[str, sf.CondInput]
    conditioning: Any
    guidance_scale: float
    schedule: sf.NoiseSchedule

    @property
    def passes(self) -> int:
        """Rows of a forward a sample."""
        return 1 if self.guidance_scale == 1 else 2

    @property
    def is_large(self) -> bool:
        """Whether a forward takes so long that few steps are enough."""
        return self.dtype == torch.bfloat16

    @property
    def arguments(self) -> dict[str, Any]:
        """How a sample of it is drawn, but for the steps: deterministic DDIM."""
        return {"cond": self.conditioning, "sampler": "ddim", "guidance_scale": self.guidance_scale, "seed": 0}

    @property
    def info(self) -> dict[str, Any]:
        """Arguments of ``Trajectories.from_torch``, beside the module."""
        return {"shape": self.shape, "cond": self.cond, "schedule": self.schedule}

    def module(self) -> Any:
        """The module, ready to be run; the same until another's is asked for."""
        if self.name not in _MADE:
            _MADE.clear()
            with torch.device("cuda"):
                made = self.make()
            made = made.to("cuda", self.dtype).eval().requires_grad_(False)
            for parameter in made.parameters():
                if not parameter.any():  # begun at zero to be trained: zeros take less power, and run faster
                    parameter.normal_(std=0.02)
            _MADE[self.name] = made
        return _MADE[self.name]


class Predicts(torch.nn.Module):
    """A diffusers network as a plain function of tensors."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, **cond: torch.Tensor) -> torch.Tensor:
        """What ``unet`` predicts."""
        predicted: torch.Tensor = self.unet(sample, timestep, **cond, return_dict=False)[0]
        return predicted


def fashion() -> Any:
    """The network of examples/fashion."""
    spec = importlib.util.spec_from_file_location("fashion_model", FASHION)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(FASHION)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fashion_model"] = module
    spec.loader.exec_module(module)
    return module.Denoiser()


def cifar10() -> Any:
    """The UNet of Ho et al. (2020) for CIFAR-10, as diffusers' configuration of google/ddpm-cifar10-32 has it."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )


def stable_diffusion() -> Any:
    """The UNet of Stable Diffusion 1.5: diffusers' defaults, and text embeddings of 768."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


LINEAR = sf.NoiseSchedule.linear()
SUBJECTS = (
    Subject(
        "fashion, float32",
        fashion,
        torch.float32,
        (1, 28, 28),
        {"class_labels": sf.CondInput(dtype="int64", null=10)},
        3,
        3.0,
        LINEAR,
    ),
    Subject("CIFAR-10 UNet, float32", lambda: Predicts(cifar10()), torch.float32, (3, 32, 32), {}, None, 1.0, LINEAR),
    Subject(
        "SD 1.5 UNet, bfloat16",
        lambda: Predicts(stable_diffusion()),
        torch.bfloat16,
        (4, 64, 64),
        {"encoder_hidden_states": sf.CondInput(dtype="float32", shape=(77, 768), null=0.0)},
        np.full((77, 768), 0.5, np.float32),
        7.5,
        sf.NoiseSchedule.scaled_linear(),
    ),
)
