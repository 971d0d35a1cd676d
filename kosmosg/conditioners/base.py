"""What may stand between language model and U-Net: AlignerNet, or one of the two simpler maps it was compared with.

`aligner_config.kind` decides. The other kinds are there to be measured against AlignerNet (docs/results.md); published
weights have none of them.

| kind | how states (B, T, C) become a condition (B, Q, D) |
|---|---|
| `alignernet` | Q learned queries read the encoded states (kosmosg/conditioners/alignernet.py) |
| `linear` | each state is projected on its own; places behind the prompt's end are zero |
| `mlp` | GlueGen's translator: one network mixes places, one mixes features |

Letters: B batch, T tokens, C language model width, Q vectors of the condition, D condition width.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from kosmosg.conditioners.alignernet import AlignerNet
from kosmosg.config import KosmosGConfig
from kosmosg.errors import ConfigError, PromptError
from kosmosg.model.layers import KosmosGPreTrainedModel, linear

ConditionerKind = Literal["alignernet", "linear", "mlp"]
Conditioner = KosmosGPreTrainedModel
"""A module `(states (B, T, C), padding_mask (B, T) or None) -> (B, Q, D)`."""

LINEAR_LENGTH = 4
"""A linear connector passes on this many times as many vectors as AlignerNet: one for every token of a prompt with a
few images."""


def make_conditioner(config: KosmosGConfig) -> Conditioner:
    """A new connector of the kind that the configuration names. Raises ConfigError for an unknown one."""
    kinds: dict[str, type[Conditioner]] = {"alignernet": AlignerNet, "linear": LinearConditioner, "mlp": MLPConditioner}
    kind = config.aligner_config.kind
    if kind not in kinds:
        raise ConfigError(f"aligner_config.kind is {kind!r}; choose one of {', '.join(get_args(ConditionerKind))}")
    return kinds[kind](config)


def with_conditioner(config: KosmosGConfig, kind: ConditionerKind) -> KosmosGConfig:
    """A copy of a model's configuration with a connector of another kind. `config` must be AlignerNet's.

    Raises ConfigError when it is not, because then its number of queries is not the U-Net's.
    """
    if config.aligner_config.kind != "alignernet":
        raise ConfigError(
            f"the model's connector is of kind {config.aligner_config.kind!r} already; leave out model.aligner to go "
            "on with it, or start from a model with AlignerNet"
        )
    values = config.to_dict()
    values["aligner_config"]["kind"] = kind
    if kind == "linear":
        values["aligner_config"]["num_queries"] *= LINEAR_LENGTH
    changed: KosmosGConfig = KosmosGConfig.from_dict(values)
    return changed


class LinearConditioner(KosmosGPreTrainedModel):
    """One projection for all states: (B, T, C) to (B, Q, D), of which the first T vectors say something."""

    base_model_prefix = "aligner"

    def __init__(self, config: KosmosGConfig) -> None:
        super().__init__(config)
        self.length = config.aligner_config.num_queries
        self.projection = linear(config.text_config.embed_dim, config.aligner_config.d_model)
        self.post_init()

    def forward(self, states: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Raises PromptError for a prompt of more tokens than the condition has vectors."""
        return _fitted(self.projection(states), padding_mask, self.length)


class MLPConditioner(KosmosGPreTrainedModel):
    """A network over places, then one over features: every vector of the condition reads every state.

    After GlueGen (Qin et al. 2023), whose translator maps both dimensions by small networks of their own.
    """

    base_model_prefix = "aligner"

    def __init__(self, config: KosmosGConfig) -> None:
        super().__init__(config)
        aligner = config.aligner_config
        self.length = min(LINEAR_LENGTH * aligner.num_queries, config.max_tokens)
        self.projection = linear(config.text_config.embed_dim, aligner.d_model)
        self.norm = nn.LayerNorm(aligner.d_model, eps=aligner.layer_norm_eps)
        self.places = _network(self.length, aligner.ffn_dim, aligner.num_queries)
        self.features = _network(aligner.d_model, aligner.ffn_dim, aligner.d_model)
        self.layer_norm = nn.LayerNorm(aligner.d_model, eps=aligner.layer_norm_eps)
        self.post_init()

    def forward(self, states: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Raises PromptError for a prompt of more tokens than `length`."""
        x = _fitted(self.norm(self.projection(states)), padding_mask, self.length)
        x = self.places(x.mT).mT
        out: Tensor = self.layer_norm(x + self.features(x))
        return out


def _network(inner: int, hidden: int, outer: int) -> nn.Sequential:
    return nn.Sequential(linear(inner, hidden), nn.GELU(), linear(hidden, outer))


def _fitted(x: Tensor, padding_mask: Tensor | None, length: int) -> Tensor:
    """(B, T, D) to (B, length, D), pads and what is behind them zero."""
    if x.shape[1] > length:
        raise PromptError(
            f"the prompt is {x.shape[1]} tokens long, this connector passes on at most {length}; shorten the prompt, "
            "use fewer images, or use AlignerNet"
        )
    if padding_mask is not None:
        x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)
    return torch.nn.functional.pad(x, (0, 0, 0, length - x.shape[1]))
