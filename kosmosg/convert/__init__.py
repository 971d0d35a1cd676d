"""Importing published weights into our layout.

`reference` reads the released Kosmos-G files, `kosmos2` the Kosmos-2 checkpoints of transformers, `clip` CLIP's vision
towers. The first two build a `ConversionPlan` (`conversion_plan`) from the names in `key_mapping`.
"""

from kosmosg.convert.clip import load_vision
from kosmosg.convert.conversion_plan import import_weights
from kosmosg.convert.kosmos2 import from_kosmos2, grow_vocabulary, plan_kosmos2
from kosmosg.convert.reference import decoder_from_reference, from_reference, plan_reference

__all__ = [
    "decoder_from_reference",
    "from_kosmos2",
    "from_reference",
    "grow_vocabulary",
    "import_weights",
    "load_vision",
    "plan_kosmos2",
    "plan_reference",
]
