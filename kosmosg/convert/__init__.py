"""Published weights in our layout: the released Kosmos-G files, Kosmos-2 of transformers, and CLIP vision towers."""

from kosmosg.convert.reference import (
    decoder_from_reference,
    from_kosmos2,
    from_reference,
    grow_vocabulary,
    import_weights,
    load_vision,
    plan_kosmos2,
    plan_reference,
)

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
