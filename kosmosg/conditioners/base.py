"""The conditioner protocol and registry. A conditioner maps the language model's states to the U-Net's condition.

`aligner_config.kind` selects one. Published weights use AlignerNet; the other kinds were compared with it
(docs/results.md). To add a kind, write a class like `Conditioner` and add it to `CONDITIONERS`, here or in a plug-in.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from kosmosg.conditioners.alignernet import AlignerNet
from kosmosg.conditioners.linear import LinearConditioner
from kosmosg.conditioners.mlp import MLPConditioner
from kosmosg.config import KosmosGAlignerConfig, KosmosGConfig
from kosmosg.errors import ConfigError
from kosmosg.layers.magneto import KosmosGPreTrainedModel
from kosmosg.plugins import find_entry


class Conditioner(Protocol):
    """A module built from a `KosmosGConfig`; subclass `KosmosGPreTrainedModel`, which initialises and saves it.

    Letters: B batch, T tokens, C language model width, Q vectors of the condition, D condition width.
    """

    def __call__(self, states: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """States (B, T, C) to a condition (B, Q, D). `padding_mask` is (B, T) bool, True at pads.

        The values at padded positions must not change the condition. Raises PromptError if the prompt is too long.
        """

    @classmethod
    def configure(cls, aligner: KosmosGAlignerConfig) -> None:
        """Change AlignerNet's configuration to this kind's, in place: number of vectors Q, settings of its own.

        Attributes set here are saved in config.json and restored when the model is loaded.
        """


CONDITIONERS: dict[str, type[KosmosGPreTrainedModel]] = {
    "alignernet": AlignerNet,
    "linear": LinearConditioner,
    "mlp": MLPConditioner,
}
"""Kind -> class (a `Conditioner`)."""


def make_conditioner(config: KosmosGConfig) -> KosmosGPreTrainedModel:
    """Create a conditioner of the kind that the configuration names. Raises ConfigError for an unknown kind."""
    return find_entry(CONDITIONERS, config.aligner_config.kind, "aligner_config.kind")(config)


def with_conditioner(config: KosmosGConfig, kind: str) -> KosmosGConfig:
    """A copy of a model's configuration with another kind of conditioner. `config` must be AlignerNet's.

    Raises ConfigError if it is not, because then its number of queries is not the U-Net's, and for unknown kinds.
    """
    if config.aligner_config.kind != "alignernet":
        raise ConfigError(
            f"the model's conditioner is of kind {config.aligner_config.kind!r} already; leave out model.aligner to "
            "keep it, or start from a model with AlignerNet"
        )
    entry = find_entry(CONDITIONERS, kind, "model.aligner")
    changed: KosmosGConfig = KosmosGConfig.from_dict(config.to_dict())
    changed.aligner_config.kind = kind
    entry.configure(changed.aligner_config)  # type: ignore[attr-defined]  # a Conditioner, see above
    return changed
