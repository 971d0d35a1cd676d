"""The released Kosmos-G files, of any stage."""

from __future__ import annotations

from collections import ChainMap

from kosmosg.checkpoint.state_dict import Source, open_weights
from kosmosg.conditioners.alignernet import AlignerDecoder
from kosmosg.config import KosmosGConfig
from kosmosg.convert.clip import as_reference_vision
from kosmosg.convert.conversion_plan import ConversionPlan, make_plan, published_config
from kosmosg.convert.key_mapping import REFERENCE_IGNORED, REFERENCE_NAMES, rename
from kosmosg.errors import CheckpointError
from kosmosg.model import KosmosG


def from_reference(source: Source, config: KosmosGConfig | None = None, *, vision: Source | None = None) -> KosmosG:
    """A model from a released Kosmos-G file, of any stage: `checkpoint_stage1.pt`, `_stage2.pt`, `_final.pt`.

    `source` is the file or its state dict. Without `config` the published sizes are expected, and the aligner's
    position table, stored with 32,768 rows, is cut to the 2,050 that the language model can reach. `vision` (the
    released `ViT-L-14-sd.pt`, or any OpenAI CLIP) is used if the file has no vision tower. Stage 1 files have no
    aligner; it is newly initialised. Weights keep their precision (the released files are fp16).

    Raises `CheckpointError` naming the key that is unknown, missing, not finite or has the wrong shape.
    """
    return plan_reference(source, config, vision=vision).build()


def decoder_from_reference(source: Source, config: KosmosGConfig | None = None) -> AlignerDecoder:
    """N, the aligner's decoder, from a released stage-2 file: to continue stage 2 where the original stopped."""
    return plan_reference(source, config).build_decoder()


def plan_reference(
    source: Source, config: KosmosGConfig | None = None, *, vision: Source | None = None
) -> ConversionPlan:
    """The plan behind `from_reference`."""
    weights = open_weights(source)
    if vision is not None and not any(name.startswith("img_model.visual.") for name in weights):
        tower = as_reference_vision(open_weights(vision))
        kept = {name: tower[name] for name in tower if rename(name, REFERENCE_NAMES)}
        weights = ChainMap(kept, weights)  # type: ignore[arg-type]  # only read
    if "gpt_model.decoder.embed_tokens.weight" not in weights:
        raise CheckpointError(
            f"this is no released Kosmos-G checkpoint: it has no gpt_model.decoder, but {next(iter(weights))!r}; "
            "for Kosmos-2 from the Hub use from_kosmos2"
        )
    if config is None:
        config = published_config(weights, "gpt_model.decoder.embed_tokens.weight")
    return make_plan(weights, config, REFERENCE_NAMES, REFERENCE_IGNORED)
