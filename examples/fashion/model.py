"""The class-conditional noise predictor: a small convolutional UNet on a 2 x 2 space-to-depth grid.

It is built for latency on a CPU core: the first convolution folds 28 x 28 to 14 x 14, the rest is 3 x 3 convolutions at
14 x 14 and 7 x 7 (the cheapest operator a FLOP in ONNX Runtime), the skip connection is added instead of concatenated,
and the normalisation has no affine part of its own because the embedding scales and shifts every channel anyway.

Inside, the network predicts the velocity v = sqrt(a)·eps - sqrt(1 - a)·x0 (Salimans & Ho, 2022, appendix D), and the
last line turns it into the noise. A plain noise predictor has to be accurate to 1/157 at the noisiest timestep, where
x0 = (x - sqrt(1 - a)·eps)/sqrt(a) multiplies its error by 157; this one is accurate there by construction.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, pixel_shuffle, silu

NUM_CLASSES = 10
NULL_CLASS = NUM_CLASSES
NUM_TRAIN_TIMESTEPS = 1000
BETA_START, BETA_END = 1e-4, 0.02


def alphas_cumprod() -> Tensor:
    """Compute the share of signal left at each of the 1000 timesteps, (1000,) float64, for linear betas."""
    betas = torch.linspace(BETA_START, BETA_END, NUM_TRAIN_TIMESTEPS, dtype=torch.float64)
    return torch.cumprod(1.0 - betas, dim=0)


class ResBlock(nn.Module):
    """Two 3 x 3 convolutions around a group norm that the embedding modulates (FiLM); (R, C, H, W) -> (R, C, H, W).

    The second convolution starts at zero, so that a fresh block is the identity.
    """

    def __init__(self, channels: int, emb_dim: int, groups: int = 8) -> None:
        super().__init__()
        self.groups = groups
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(emb_dim, 2 * channels)
        self.conv2 = zeroed(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Add the block's two convolutions to ``x``; ``emb`` is (R, emb_dim)."""
        scale, shift = self.film(emb)[:, :, None, None].chunk(2, dim=1)
        normal = group_norm(self.conv1(silu(x)), self.groups)
        change: Tensor = self.conv2(silu(normal * (1 + scale) + shift))
        return x + change


class Attention(nn.Module):
    """Self-attention over the H x W positions, (R, C, H, W) -> (R, C, H, W); starts as the identity."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Add to every position what it attends to."""
        c, h, w = x.shape[1:]
        q, k, v = self.qkv(group_norm(x, 1)).reshape(-1, 3, self.heads, c // self.heads, h * w).unbind(1)
        weights = torch.softmax((q.transpose(-1, -2) @ k) * (c // self.heads) ** -0.5, dim=-1)
        attended = (v @ weights.transpose(-1, -2)).reshape(-1, c, h, w)
        change: Tensor = self.out(attended)
        return x + change


class Denoiser(nn.Module):
    """(sample (R, 1, 28, 28) f32, timestep (R,) f32, class_labels (R,) int64) -> predicted noise (R, 1, 28, 28) f32.

    ``sample`` is an image in [-1, 1] with noise on it, ``timestep`` is 0..999, ``class_labels`` 0..9, or 10 for none.
    """

    alphas_cumprod: Tensor
    frequencies: Tensor

    def __init__(self, c14: int = 64, c7: int = 128, emb_dim: int = 256, time_dim: int = 128) -> None:
        super().__init__()
        self.time1 = nn.Linear(time_dim, emb_dim)
        self.time2 = nn.Linear(emb_dim, emb_dim)
        self.classes = nn.Embedding(NUM_CLASSES + 1, emb_dim)
        self.stem = nn.Conv2d(1, c14, 4, stride=2, padding=1)
        self.down14 = nn.ModuleList(ResBlock(c14, emb_dim) for _ in range(2))
        self.down = nn.Conv2d(c14, c7, 3, stride=2, padding=1)
        self.down7 = nn.ModuleList(ResBlock(c7, emb_dim) for _ in range(2))
        self.attention = Attention(c7)
        self.up7 = nn.ModuleList(ResBlock(c7, emb_dim) for _ in range(2))
        self.up = nn.Conv2d(c7, 4 * c14, 1)
        self.up14 = nn.ModuleList(ResBlock(c14, emb_dim) for _ in range(2))
        self.head = zeroed(nn.Conv2d(c14, 4, 3, padding=1))
        self.register_buffer("alphas_cumprod", alphas_cumprod().float())
        half = time_dim // 2
        self.register_buffer("frequencies", torch.exp(-math.log(10_000) / half * torch.arange(half)))

    def velocity(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """Run the network proper, with the inputs and the output shape of ``forward``."""
        angles = timestep[:, None] * self.frequencies
        time = self.time2(silu(self.time1(torch.cat([angles.cos(), angles.sin()], dim=1))))
        emb = silu(time + self.classes(class_labels))
        x = self.stem(sample)
        for block in self.down14:
            x = block(x, emb)
        skip, x = x, self.down(x)
        for block in self.down7:
            x = block(x, emb)
        x = self.attention(x)
        for block in self.up7:
            x = block(x, emb)
        x = skip + pixel_shuffle(self.up(x), 2)
        for block in self.up14:
            x = block(x, emb)
        return pixel_shuffle(self.head(silu(x)), 2)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """Predict the noise in ``sample``."""
        a = self.alphas_cumprod[timestep.round().long()][:, None, None, None]
        return a.sqrt() * self.velocity(sample, timestep, class_labels) + (1 - a).sqrt() * sample


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """Return ``layer`` with weight and bias set to zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
