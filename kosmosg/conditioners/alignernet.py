"""AlignerNet: M maps the language model's hidden states to the U-Net's condition; N, in stage 2 only, maps it back.

Letters: B batch, T tokens, C language model width, Q queries (77), D condition width (768).

Both are built from the same two stacks: self-attention layers over a sequence with learned positions, and query layers
that attend to the sequence. M encodes states (B, T, C), then lets Q learned queries attend to them. N lets T learned
queries attend to the condition, then decodes them to (B, T, C). Parameter names are those of the released checkpoint,
without `aligner.`; only its two query tables gain a `.weight`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from transformers import initialization as init

from kosmosg.config import KosmosGAlignerConfig, KosmosGConfig
from kosmosg.errors import PromptError
from kosmosg.layers.initialisation import Initialised, linear
from kosmosg.layers.magneto import CrossLayer, KosmosGPreTrainedModel, MagnetoLayer


class AlignerNet(KosmosGPreTrainedModel):
    """M: states (B, T, C) to a condition (B, Q, D)."""

    base_model_prefix = "aligner"

    def __init__(self, config: KosmosGConfig) -> None:
        super().__init__(config)
        self.encoder_proj = Projector(config)
        self.encoder_query = LearnedQueries(config.aligner_config.num_queries, config.aligner_config.d_model)
        self.encoder = QueryStack(config)
        self.post_init()

    @classmethod
    def configure(cls, aligner: KosmosGAlignerConfig) -> None:
        """Nothing to do: the configuration is AlignerNet's already."""

    def forward(self, states: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """The condition for `states`, the language model's states after its final LayerNorm.

        `padding_mask` is (B, T) bool, True at pads; None means that there is no padding, and is faster. Pads must be on
        the right, because positions are counted from the left. Raises `PromptError` for more tokens than positions.
        """
        keys = None if padding_mask is None else rearrange(~padding_mask, "b t -> b 1 1 t")
        source = self.encoder_proj(states, padding_mask, keys)
        out: Tensor = self.encoder(self.encoder_query(len(states)), source, keys)
        return out


class AlignerDecoder(KosmosGPreTrainedModel):
    """N: a condition (B, Q, D) back to states (B, T, C). Used in stage 2 only, to keep M from losing information."""

    base_model_prefix = "aligner_decoder"

    def __init__(self, config: KosmosGConfig) -> None:
        super().__init__(config)
        aligner = config.aligner_config
        self.decoder_query = LearnedQueries(aligner.max_position_embeddings, aligner.d_model)
        self.decoder = QueryStack(config)
        self.decoder_proj = Unprojector(config)
        self.post_init()

    def forward(self, condition: Tensor, length: int) -> Tensor:
        """`length` is T, the padded length of the batch whose states are reconstructed."""
        queries = self.decoder_query(len(condition), length)
        out: Tensor = self.decoder_proj(self.decoder(queries, condition))
        return out


class Projector(nn.Module):
    """Projection to the aligner's width, positions, self-attention layers, LayerNorm: (B, T, C) to (B, T, D)."""

    def __init__(self, config: KosmosGConfig) -> None:
        super().__init__()
        aligner = config.aligner_config
        self.embed_tokens = linear(config.text_config.embed_dim, aligner.d_model)
        self.embed_positions = PositionTable(aligner.max_position_embeddings, aligner.d_model)
        # Magneto's gain for the encoder of an encoder-decoder, both of this depth.
        gain = math.sqrt(math.log(3 * aligner.layers) * math.log(2 * aligner.layers) / 3)
        self.layers = nn.ModuleList([_self_layer(config, gain) for _ in range(aligner.layers)])
        self.layer_norm = nn.LayerNorm(aligner.d_model, eps=aligner.layer_norm_eps)

    def forward(self, states: Tensor, padding_mask: Tensor | None, keys: Tensor | None) -> Tensor:
        """`keys` is the same mask in the form that attention takes: (B, 1, 1, T), True where there is a token."""
        x = self.embed_positions(self.embed_tokens(states))
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        for layer in self.layers:
            x = layer(x, keys)
        out: Tensor = self.layer_norm(x)
        return out


class Unprojector(nn.Module):
    """Learned positions, self-attention layers, LayerNorm, projection to the model's width: (B, T, D) to (B, T, C)."""

    def __init__(self, config: KosmosGConfig) -> None:
        super().__init__()
        aligner = config.aligner_config
        self.embed_positions = PositionTable(aligner.max_position_embeddings, aligner.d_model)
        gain = math.sqrt(math.log(2 * aligner.layers))  # Magneto's gain for an encoder on its own
        self.layers = nn.ModuleList([_self_layer(config, gain) for _ in range(aligner.layers)])
        self.layer_norm = nn.LayerNorm(aligner.d_model, eps=aligner.layer_norm_eps)
        self.output_projection = linear(aligner.d_model, config.text_config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """No mask: pads are reconstructed like tokens, as in the original."""
        x = self.embed_positions(x)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.output_projection(self.layer_norm(x))
        return out


class QueryStack(nn.Module):
    """Queries that attend to each other and to a context, then LayerNorm: (B, Q, D), (B, S, D) to (B, Q, D)."""

    def __init__(self, config: KosmosGConfig) -> None:
        super().__init__()
        aligner = config.aligner_config
        gain = math.sqrt(math.log(3 * aligner.layers))  # Magneto's gain for the decoder of an encoder-decoder
        self.layers = nn.ModuleList(
            [
                CrossLayer(
                    aligner,
                    width=aligner.d_model,
                    heads=aligner.attention_heads,
                    hidden=aligner.ffn_dim,
                    gain=gain,
                    eps=aligner.layer_norm_eps,
                )
                for _ in range(aligner.layers)
            ]
        )
        self.layer_norm = nn.LayerNorm(aligner.d_model, eps=aligner.layer_norm_eps)

    def forward(self, queries: Tensor, context: Tensor, context_mask: Any = None) -> Tensor:
        """`context_mask` is (B, 1, 1, S), True where there is a token to attend to."""
        for layer in self.layers:
            queries = layer(queries, context, context_mask)
        out: Tensor = self.layer_norm(queries)
        return out


class LearnedQueries(Initialised):
    """A table of learned queries, N(0, 1) at the start."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))

    def forward(self, batch: int, length: int | None = None) -> Tensor:
        """The first `length` queries (all, by default) for each of `batch` samples: (B, length, D)."""
        if length is not None:
            _check_length(length, len(self.weight))
        return repeat(self.weight[:length], "q d -> b q d", b=batch)

    def init_parameters(self) -> None:
        """N(0, 1)."""
        init.normal_(self.weight)


class PositionTable(Initialised):
    """Adds learned positions. The first token takes row 2: fairseq's two reserved rows are kept for its checkpoints."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) plus rows 2 to T + 1."""
        length = x.shape[1]
        _check_length(length, len(self.weight) - 2)
        return x + self.weight[2 : length + 2]

    def init_parameters(self) -> None:
        """N(0, 1)."""
        init.normal_(self.weight)


def _self_layer(config: KosmosGConfig, gain: float) -> MagnetoLayer:
    aligner = config.aligner_config
    return MagnetoLayer(
        aligner,
        width=aligner.d_model,
        heads=aligner.attention_heads,
        hidden=aligner.ffn_dim,
        gain=gain,
        eps=aligner.layer_norm_eps,
    )


def _check_length(length: int, limit: int) -> None:
    if length > limit:
        raise PromptError(
            f"the prompt is {length} tokens long, the aligner's position table numbers at most {limit}; "
            "shorten the prompt or use fewer images"
        )
