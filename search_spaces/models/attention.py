"""Unfold ``nn.MultiheadAttention`` into the two linear layers that it hides.

It holds its input projections as one bare parameter and reads its output projection's weight itself, so neither is
ever called as a layer. On a copy of a network, :func:`unfold_attention` replaces each by a module with the same
arithmetic and two real layers, ``in_proj`` and ``out_proj``, which are then searched like any other.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PROJECTIONS = ("in_proj", "out_proj")
"""The layers of an unfolded attention module."""


class UnfoldedAttention(nn.MultiheadAttention):
    """Multi-head attention as published (arXiv 1706.03762, section 3.2.2); see :func:`unfold_attention`.

    Inputs are (N, L, E) where ``batch_first``, else (L, N, E), or (L, E) without a batch.
    """

    in_proj_weight: None = None  # type: ignore[assignment]
    in_proj_bias: None = None  # type: ignore[assignment]
    """None tells nn.TransformerEncoderLayer that its fused kernel is not for this module."""
    in_proj: nn.Linear

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, with the arguments and results of ``nn.MultiheadAttention``."""
        batched = query.dim() == 3
        parts = self._project(query, key, value)
        if batched and not self.batch_first:
            parts = [part.transpose(0, 1) for part in parts]
        if not batched:
            parts = [part.unsqueeze(0) for part in parts]
        q, k, v = (part.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2) for part in parts)
        mask = self._mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(2, 3) / math.sqrt(self.head_dim)
            weights = (scores if mask is None else scores + mask).softmax(3)
            attended = F.dropout(weights, dropout) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            attended = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        output = self.out_proj(attended.transpose(1, 2).flatten(2))
        if not batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return (output if self.batch_first else output.transpose(0, 1)), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Queries, keys and values; one call of the layer where they come from one tensor."""
        if query is key and key is value:
            return list(self.in_proj(query).chunk(3, -1))
        return [self.in_proj(x).chunk(3, -1)[part] for part, x in enumerate((query, key, value))]

    def _mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor) -> Tensor | None:
        """Both masks as one to be added to the scores, (N or 1, heads or 1, L or 1, S)."""
        masks = []
        if attn_mask is not None:
            # (L, S) for all, or (N * heads, L, S)
            masks.append(attn_mask if attn_mask.dim() == 2 else attn_mask.unflatten(0, (-1, self.num_heads)))
        if key_padding_mask is not None:
            masks.append(key_padding_mask.reshape(-1, 1, 1, key_padding_mask.shape[-1]))
        added = [
            torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else mask
            for mask in masks
        ]
        return sum(added[1:], added[0]) if added else None


def unfold_attention(model: nn.Module) -> None:
    """Unfold every attention module of ``model`` that has the usual form, in place; others stay as they are.

    The objects stay, with the hooks and attributes on them; their class becomes :class:`UnfoldedAttention`.
    """
    for module in list(model.modules()):
        if type(module) is nn.MultiheadAttention and _is_usual(module):
            _unfold(module)


def _unfold(attention: nn.MultiheadAttention) -> None:
    weight, bias = (attention._parameters.pop(f"in_proj_{key}") for key in ("weight", "bias"))
    attention.in_proj = _linear(weight, bias).train(attention.training)
    old = {key: attention.out_proj._parameters[key] for key in ("weight", "bias")}
    # A new layer: nothing that hangs on the old one was ever called.
    attention.out_proj = _linear(*old.values()).train(attention.training)  # type: ignore[assignment]
    attention.__class__ = UnfoldedAttention


def _linear(weight: nn.Parameter | None, bias: nn.Parameter | None) -> nn.Linear:
    """A layer that holds these parameters."""
    filters, inputs = cast(nn.Parameter, weight).shape
    layer = nn.Linear(inputs, filters, bias=bias is not None, device="meta")
    layer.weight, layer.bias = cast(nn.Parameter, weight), bias  # type: ignore[assignment]
    return layer


def _is_usual(attention: nn.MultiheadAttention) -> bool:
    """Whether queries, keys and values have one width, and nothing is appended to the keys."""
    plain = "forward" not in vars(attention) and attention.out_proj._parameters.keys() == {"weight", "bias"}
    return plain and attention._qkv_same_embed_dim and attention.bias_k is None and not attention.add_zero_attn


def published_weight_name(network: nn.Module, layer: str) -> str:
    """The name of a layer's weight in the network before :func:`unfold_attention`."""
    parent, _, own = layer.rpartition(".")
    if own == "in_proj" and isinstance(network.get_submodule(parent), UnfoldedAttention):
        return f"{layer}_weight"
    return f"{layer}.weight"
