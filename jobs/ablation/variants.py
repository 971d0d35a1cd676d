"""What `ablation` compares: the recipe, and variants that differ in one respect from it or from another variant.

Every variant is a stage 3 run with the same data, steps and seed; `parent` is the stage whose model it starts from.
The settings work on the command line too: `kosmosg run instruct toyworld parent=toyworld:align SETTING` trains one.
"""

from dataclasses import dataclass
from typing import Literal

from kosmosg.errors import ConfigError


@dataclass(frozen=True)
class Variant:
    """One row of the ablation table."""

    name: str
    changed: str
    """What differs from the recipe, in words."""
    parent: Literal["align", "pretrain", "new"] = "align"
    settings: tuple[str, ...] = ()
    against: str = "recipe"
    """The row that it differs from in this one respect."""


REFERENCE = Variant("recipe", "nothing: align, then instruct; language model at a tenth of the rate")

ABLATIONS = (
    Variant("no stage 2", "starts from stage 1 with a new AlignerNet", "pretrain"),
    Variant(
        "linear",
        "no stage 2, and one projection for AlignerNet: the U-Net sees four times as many vectors, one for each token",
        "pretrain",
        ("model.aligner=linear",),
        against="no stage 2",
    ),
    Variant(
        "mlp", "no stage 2, and GlueGen's MLP for AlignerNet", "pretrain", ("model.aligner=mlp",), against="no stage 2"
    ),
    Variant(
        "end to end",
        "neither stage 1 nor 2: starts from scratch, so all of it learns at the full rate",
        "new",
        ("model.init=toyworld", "model.vision=toyworld", "train.lr_multipliers={model.mllm: 1.0}"),
    ),
    Variant(
        "frozen",
        "language model and vision tower frozen, only AlignerNet learns",
        settings=("train.lr_multipliers={model.mllm: 0.0}",),
    ),
    Variant("words stay", "entity words are never dropped", settings=("templates.instruct.drop_entity_text=0.0",)),
    Variant("no cut-outs", "crops always keep their background", settings=("templates.instruct.mask_background=0.0",)),
)


def chosen(names: tuple[str, ...]) -> list[Variant]:
    """The variants with these names; all if no name is given, none for `none`. Raises ConfigError for unknown names."""
    if names == ("none",):
        return []
    known = {variant.name: variant for variant in ABLATIONS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(
            f"ablation.ablations: there is no {unknown[0]!r}; choose from {', '.join(known)}, or use none"
        )
    return [known[name] for name in names] if names else list(ABLATIONS)
