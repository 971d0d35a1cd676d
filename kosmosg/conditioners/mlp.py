"""`mlp`: GlueGen's translator (Qin et al. 2023): one network mixes positions, one mixes features.

Letters: B batch, T tokens, C language model width, Q vectors of the condition, D condition width.
"""

from __future__ import annotations

from torch import Tensor, nn

from kosmosg.conditioners.linear import pad_states
from kosmosg.config import KosmosGAlignerConfig, KosmosGConfig
from kosmosg.layers.initialisation import linear
from kosmosg.layers.magneto import KosmosGPreTrainedModel

TOKENS_PER_QUERY = 4
"""Tokens that are read for each query of AlignerNet."""


class MLPConditioner(KosmosGPreTrainedModel):
    """A network over positions, then one over features: every vector of the condition depends on every state.

    After GlueGen (Qin et al. 2023), whose translator maps both dimensions by small networks of their own.
    """

    base_model_prefix = "aligner"

    def __init__(self, config: KosmosGConfig) -> None:
        super().__init__(config)
        aligner = config.aligner_config
        self.length = min(TOKENS_PER_QUERY * aligner.num_queries, config.max_tokens)
        self.projection = linear(config.text_config.embed_dim, aligner.d_model)
        self.norm = nn.LayerNorm(aligner.d_model, eps=aligner.layer_norm_eps)
        self.places = _network(self.length, aligner.ffn_dim, aligner.num_queries)
        self.features = _network(aligner.d_model, aligner.ffn_dim, aligner.d_model)
        self.layer_norm = nn.LayerNorm(aligner.d_model, eps=aligner.layer_norm_eps)
        self.post_init()

    @classmethod
    def configure(cls, aligner: KosmosGAlignerConfig) -> None:
        """As many vectors as AlignerNet has queries."""

    def forward(self, states: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Raises PromptError for a prompt of more tokens than `length`."""
        x = pad_states(self.norm(self.projection(states)), padding_mask, self.length)
        x = self.places(x.mT).mT
        out: Tensor = self.layer_norm(x + self.features(x))
        return out


def _network(inner: int, hidden: int, outer: int) -> nn.Sequential:
    return nn.Sequential(linear(inner, hidden), nn.GELU(), linear(hidden, outer))
