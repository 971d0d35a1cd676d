"""Multi-head attention with the kernel that a part's configuration names.

Letters: B batch, T target length, S source length, C width, H heads, D = C / H.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kosmosg.layers.dropout import DropoutSeeds, attention_dropout
from kosmosg.layers.initialisation import linear


class Attention(nn.Module):
    """Multi-head attention, one implementation for self and cross attention, with or without a cache.

    The kernel is the one that the configuration names (`eager`, `sdpa`, `flash_attention_2`, `flex_attention`, ...) in
    transformers' registry, so custom kernels work too. Without padding no mask exists: causality is the kernel's.
    """

    def __init__(
        self,
        config: PreTrainedConfig,  # of the part that this attention belongs to
        width: int,
        heads: int,
        *,
        causal: bool = False,
        inner_norm_eps: float | None = None,
        dropout: float = 0.0,
        gain: float = 1.0,
        layer_index: int | None = None,
        site: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.head_dim = width // heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = causal
        self.attention_dropout, self.site = dropout, site
        self.layer_idx = layer_index
        self.num_key_value_groups = 1
        self.q_proj = linear(width, width)
        self.k_proj = linear(width, width)
        self.v_proj = linear(width, width, gain=gain)
        self.inner_attn_ln = None if inner_norm_eps is None else nn.LayerNorm(width, eps=inner_norm_eps)
        self.out_proj = linear(width, width, gain=gain)

    def forward(
        self,
        queries: Tensor,  # (B, T, C)
        context: Tensor | None = None,  # (B, S, C); None attends to the queries themselves
        mask: Any = None,  # what the attention implementation takes: None, (B, 1, T or 1, S) bool or additive, ...
        cache: Cache | None = None,
        attentions: list[Tensor] | None = None,  # gets the weights, (B, H, T, S); only the eager kernel has them
        seeds: DropoutSeeds | None = None,  # of the rows, from which dropout of the weights follows
    ) -> Tensor:
        """(B, T, C), before dropout and residual."""
        context = queries if context is None else context
        q = rearrange(self.q_proj(queries), "b t (h d) -> b h t d", d=self.head_dim)
        k = rearrange(self.k_proj(context), "b s (h d) -> b h s d", d=self.head_dim)
        v = rearrange(self.v_proj(context), "b s (h d) -> b h s d", d=self.head_dim)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        name = self.config._attn_implementation
        if isinstance(mask, Tensor) and mask.ndim == 4 and name.startswith(("flash", "flex")):
            # These kernels need their own mask formats, and flash attention would drop queries by the mask of the keys.
            # Only the aligner's attention to padded prompts gets here.
            name = "sdpa"
        seeded = seeds is not None and self.training and self.attention_dropout > 0
        if seeded and mask is None and self.is_causal:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        if attentions is not None or seeded:  # other kernels draw dropout by themselves
            name = "eager"
        kernel = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention)
        heads, weights = kernel(
            self,
            q,
            k,
            v,
            mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            is_causal=self.is_causal,
            **({"seeds": seeds} if seeded else {}),
        )
        if attentions is not None:
            attentions.append(weights)
        merged = rearrange(heads, "b t h d -> b t (h d)")
        if self.inner_attn_ln is not None:
            merged = self.inner_attn_ln(merged)
        out: Tensor = self.out_proj(merged)
        return out


def eager_attention(
    module: nn.Module,
    query: Tensor,  # (B, H, T, D)
    key: Tensor,  # (B, H, S, D)
    value: Tensor,
    attention_mask: Tensor | None,  # additive, or bool with True = may attend
    dropout: float = 0.0,
    scaling: float = 1.0,
    seeds: DropoutSeeds | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention in plain matrix products, softmax in fp32 as in the original: (B, T, H, D) and the weights."""
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            attention_mask = torch.zeros_like(attention_mask, dtype=scores.dtype).masked_fill(
                ~attention_mask, torch.finfo(scores.dtype).min
            )
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = attention_dropout(weights, dropout, module.training, seeds, getattr(module, "site", 0))
    return torch.matmul(weights, value).transpose(1, 2), weights
