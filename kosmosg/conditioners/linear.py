"""`linear`: each state is projected on its own, so the condition has a vector for every token.

Letters: B batch, T tokens, C language model width, Q vectors of the condition, D condition width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kosmosg.config import KosmosGAlignerConfig, KosmosGConfig
from kosmosg.errors import PromptError
from kosmosg.layers.initialisation import linear
from kosmosg.layers.magneto import KosmosGPreTrainedModel

VECTORS_PER_QUERY = 4
"""Vectors of this condition for each query of AlignerNet."""


class LinearConditioner(KosmosGPreTrainedModel):
    """One projection for all states: (B, T, C) to (B, Q, D), of which only the first T vectors are used."""

    base_model_prefix = "aligner"

    def __init__(self, config: KosmosGConfig) -> None:
        super().__init__(config)
        self.length = config.aligner_config.num_queries
        self.projection = linear(config.text_config.embed_dim, config.aligner_config.d_model)
        self.post_init()

    @classmethod
    def configure(cls, aligner: KosmosGAlignerConfig) -> None:
        """Four vectors per AlignerNet query, so that there is one for each token of a prompt with a few images."""
        aligner.num_queries *= VECTORS_PER_QUERY

    def forward(self, states: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Raises PromptError for a prompt of more tokens than the condition has vectors."""
        return pad_states(self.projection(states), padding_mask, self.length)


def pad_states(x: Tensor, padding_mask: Tensor | None, length: int) -> Tensor:
    """(B, T, D) to (B, length, D), zero at pads and past the end. Raises PromptError if T is greater than `length`."""
    if x.shape[1] > length:
        raise PromptError(
            f"the prompt is {x.shape[1]} tokens long, this conditioner takes at most {length}; shorten the prompt, "
            "use fewer images, or use AlignerNet"
        )
    if padding_mask is not None:
        x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)
    return torch.nn.functional.pad(x, (0, 0, 0, length - x.shape[1]))
