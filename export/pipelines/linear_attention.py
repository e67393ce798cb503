"""Linear attention of Sana's transformer and autoencoder."""

from __future__ import annotations

from typing import Any

from stepfuse.extras import pip_install

try:
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): {pip_install('export')}") from error

_LEAST = 1e-15  # of a sum that is divided by


def attend_linearly(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention whose weights are products of queries and keys, in a time that is linear in the tokens.

    diffusers adds ``_LEAST`` to the sum of the weights, which onnxscript's optimizer takes for 0 and removes; here it
    bounds the sum.

    Args:
        query: Shape (R, heads, D, tokens), none negative, as in the next.
        key: Likewise.
        value: Likewise, of any sign.

    Returns:
        Shape (R, heads, D, tokens).
    """
    weights = key.sum(dim=-1, keepdim=True).transpose(-1, -2) @ query
    return (value @ key.transpose(-1, -2)) @ query / weights.clamp(min=_LEAST)


class LinearProcessor:
    """Attention of a transformer block."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Shape (R, tokens, C) to (R, tokens, C); a mask is of other attention."""
        query, key, value = (project(hidden_states) for project in (attn.to_q, attn.to_k, attn.to_v))
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        heads = (one.transpose(1, 2).unflatten(1, (attn.heads, -1)) for one in (query.relu(), key.relu(), value))
        found: torch.Tensor = attn.to_out[0](attend_linearly(*heads).flatten(1, 2).transpose(1, 2))
        return found
