"""Rotary positions of joint attention in real numbers: diffusers computes them in complex ones, which ONNX has not."""

from __future__ import annotations

from typing import Any

from stepfuse.extras import pip_install

try:
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): {pip_install('export')}") from error

#: Cosines and sines, (R or 1, tokens, D / 2) each.
Rotation = tuple[torch.Tensor, torch.Tensor]


def rotated(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Turns each pair of neighbouring numbers by the angle of its token.

    Args:
        x: Queries or keys, shape (R, tokens, heads, D).
        rotation: Of these tokens.
    """
    cos, sin = (one.unsqueeze(2) for one in rotation)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, is_read: torch.Tensor | None) -> torch.Tensor:
    """Attention of tokens to those that are read.

    Args:
        query: Shape (R, tokens, heads, D), as of the next two.
        key: Likewise.
        value: Likewise.
        is_read: Shape (R, tokens), bool; None reads all.

    Returns:
        Shape (R, tokens, heads * D).
    """
    mask = None if is_read is None else is_read[:, None, None, :]
    heads_first = (one.transpose(1, 2) for one in (query, key, value))
    found: Any = torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=mask)
    return found.transpose(1, 2).flatten(2)
