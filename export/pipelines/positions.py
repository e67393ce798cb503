"""Embeddings of positions that follow from a sample's size, in the exported graph."""

from __future__ import annotations

from functools import partial
from typing import Any

from stepfuse.extras import pip_install

try:
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): {pip_install('export')}") from error


def embed_patches(embedding: Any, sample: torch.Tensor) -> torch.Tensor:
    """The tokens that diffusers' ``PatchEmbed`` makes of a sample of any size, with positions in float32.

    diffusers has a table for the network's own size, and computes one in float64 for any other.

    Args:
        embedding: The module, with sines and cosines as positions.
        sample: Shape (R, C, h, w).

    Returns:
        Shape (R, tokens, D), row by row.
    """
    patches = embedding.proj(sample)
    rows, columns = patches.shape[-2:]
    size = embedding.pos_embed.shape[-1] // 2
    across = _sines(columns, size, embedding).expand(rows, columns, size)
    down = _sines(rows, size, embedding).reshape(rows, 1, size).expand(rows, columns, size)
    table = torch.cat([across, down], dim=-1).reshape(1, rows * columns, 2 * size)
    return (patches.flatten(2).transpose(1, 2) + table).to(patches.dtype)


def crop_positions(embedding: Any) -> None:
    """Has diffusers' ``PatchEmbed`` cut the middle out of its table of positions in a way that a graph can hold.

    diffusers begins at ``(most - rows) // 2``, which torch rewrites to divide ``-rows``, while the exported graph
    rounds quotients towards zero. Here no dividend is negative.
    """
    embedding.cropped_pos_embed = partial(_crop, embedding)


def _crop(embedding: Any, height: int, width: int) -> torch.Tensor:
    """Positions of a sample of this size, shape (1, tokens, D)."""
    most, patch = embedding.pos_embed_max_size, embedding.patch_size
    rows, columns = height // patch, width // patch
    top, left = (most // 2 - (size + 1 - most % 2) // 2 for size in (rows, columns))
    grid = embedding.pos_embed.reshape(1, most, most, -1)
    cut = grid[:, top : top + rows, left : left + columns]
    return cut.reshape(1, rows * columns, -1)


def _sines(count: int, size: int, embedding: Any) -> torch.Tensor:
    """Shape (count, size): positions along one side, which are spread over that of the network's own size."""
    extent = embedding.base_size / embedding.interpolation_scale
    position = torch.arange(count, dtype=torch.float32) * extent / count
    frequency = 10000 ** -(torch.arange(size // 2, dtype=torch.float64) / (size / 2))
    angle = position[:, None] * frequency.float()
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
