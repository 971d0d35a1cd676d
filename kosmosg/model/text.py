"""The language model: a Magneto causal transformer over embeddings, with sinusoidal positions.

Letters: B batch, T tokens, C width. Parameter names are those of transformers' Kosmos-2.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask

from kosmosg.config import KosmosGConfig
from kosmosg.errors import PromptError
from kosmosg.layers.dropout import EMBEDDINGS, DropoutSeeds, dropout
from kosmosg.layers.initialisation import Initialised, linear
from kosmosg.layers.magneto import MagnetoLayer


class TextModelWithHead(nn.Module):
    """The language model and its output projection, which shares the embeddings' weight."""

    _supports_sdpa = True  # as transformers' models say

    def __init__(self, config: KosmosGConfig) -> None:
        super().__init__()
        self.config = config.text_config
        self.model = TextModel(config)
        self.lm_head = linear(config.text_config.embed_dim, config.text_config.vocab_size, bias=False)


class TextModel(nn.Module):
    """The Magneto decoder: embeddings (B, T, C), unscaled, to states (B, T, C) after the final LayerNorm."""

    def __init__(self, config: KosmosGConfig) -> None:
        super().__init__()
        text = config.text_config
        self.config = text
        self.embed_scale = math.sqrt(text.embed_dim) if text.scale_embedding else 1.0
        self.embed_tokens = TokenEmbedding(text.vocab_size, text.embed_dim, padding_idx=text.pad_token_id)
        self.embed_positions = SinusoidalPositions(text.max_position_embeddings, text.embed_dim)
        gain = math.sqrt(math.log(2 * text.layers))  # Magneto's gain for a decoder on its own
        self.layers = nn.ModuleList(
            [
                MagnetoLayer(
                    text,
                    width=text.embed_dim,
                    heads=text.attention_heads,
                    hidden=text.ffn_dim,
                    gain=gain,
                    eps=text.layer_norm_eps,
                    activation=text.activation_function,
                    causal=True,
                    dropout=float(text.dropout),
                    attention_dropout=float(text.attention_dropout),
                    activation_dropout=float(text.activation_dropout),
                    layer_index=index,
                )
                for index in range(text.layers)
            ]
        )
        self.layer_norm = nn.LayerNorm(text.embed_dim, eps=text.layer_norm_eps)
        self.dropout = float(text.dropout)

    def forward(
        self,
        embeddings: Tensor,
        rows: Tensor,
        mask: Any = None,
        cache: Cache | None = None,
        hidden: list[Tensor] | None = None,
        attentions: list[Tensor] | None = None,
        seeds: DropoutSeeds | None = None,
    ) -> Tensor:
        """`rows` (B, T) of the position table; `mask` None means causal attention.

        With the `seeds` of the B samples, dropout follows from them; without, from torch's generator.
        Fills `hidden` with the layers' inputs and the result, and `attentions` with the layers' weights, if given.
        """
        x = self.embed_scale * embeddings + self.embed_positions(rows).to(embeddings.dtype)
        x = dropout(x, self.dropout, self.training, seeds, EMBEDDINGS)
        if mask is None and cache is None:
            mask = self.causal_mask(x, None, None, attentions is not None, built_in=True)
        for layer in self.layers:
            if hidden is not None:
                hidden.append(x)
            x = layer(x, mask, past_key_values=cache, attentions=attentions, seeds=seeds)
        x = self.layer_norm(x)
        if hidden is not None:
            hidden.append(x)
        states: Tensor = x
        return states

    def causal_mask(
        self, embeddings: Tensor, attention_mask: Any, cache: Cache | None, weights: bool, built_in: bool = False
    ) -> Any:
        """The mask that the kernel in use needs; None if its own causal mode is enough (`built_in`: no pads).

        `weights`: attention weights are requested, which only the eager kernel returns.
        """
        config = self.config
        if weights:
            config = copy.copy(config)
            config._attn_implementation_internal = "eager"
        if built_in and config._attn_implementation not in ("eager", "flex_attention"):
            return None
        return create_causal_mask(
            config=config, inputs_embeds=embeddings, attention_mask=attention_mask, past_key_values=cache
        )


class TokenEmbedding(nn.Embedding, Initialised):
    """Token embeddings, N(0, 1 / C) at the start, zero for the pad."""

    def init_parameters(self) -> None:
        """See the class."""
        fresh = not getattr(self.weight, "_is_hf_initialized", False)
        init.normal_(self.weight, std=self.embedding_dim**-0.5)
        if fresh and self.padding_idx is not None and not self.weight.is_meta:
            self.weight[self.padding_idx].zero_()


class SinusoidalPositions(Initialised):
    """fairseq's table: row p is [sin(p f_i), cos(p f_i)] with f_i = 10000^(-i / (C/2 - 1)); row 1 is zero. Not learned.

    Rows 0 and 1 are the reserved ones, so `length` positions take `length + 2` rows.
    """

    weights: Tensor

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.length, self.width = length, width
        self.register_buffer("weights", self._table(), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        """(B, T) to (B, T, C)."""
        if rows.shape[1] > self.length:
            raise PromptError(
                f"the prompt is {rows.shape[1]} tokens long, the model numbers at most {self.length} "
                "(text_config.max_position_embeddings); shorten the prompt or use fewer images"
            )
        return nn.functional.embedding(rows, self.weights)

    def init_parameters(self) -> None:
        """Rebuild the table after the model was created without memory (the meta device)."""
        init.copy_(self.weights, self._table().to(self.weights))

    def _table(self) -> Tensor:
        half = self.width // 2
        frequency = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10_000) / (half - 1)))
        angle = torch.arange(self.length + 2, dtype=torch.float32)[:, None] * frequency
        table = torch.cat([angle.sin(), angle.cos()], dim=1)
        table = nn.functional.pad(table, (0, self.width - table.shape[1]))
        return torch.where(torch.arange(self.length + 2)[:, None] == 1, torch.zeros_like(table), table)
