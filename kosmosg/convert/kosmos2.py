"""Kosmos-2 as transformers publishes it: a public start for stage 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kosmosg.checkpoint.state_dict import Source, open_weights
from kosmosg.config import VOCABULARY, KosmosGConfig, KosmosGTextConfig, KosmosGVisionConfig
from kosmosg.convert.conversion_plan import ConversionPlan, make_plan, published_config
from kosmosg.convert.key_mapping import EMBEDDING, KOSMOS2_IGNORED, KOSMOS2_NAMES
from kosmosg.errors import CheckpointError
from kosmosg.model import KosmosG


def from_kosmos2(source: Source, config: KosmosGConfig | None = None) -> KosmosG:
    """A model from `microsoft/kosmos-2-patch14-224`, a public start for stage 2. The aligner is newly initialised.

    The first 64,007 rows of its vocabulary are Kosmos-G's; the others, for grounding, are dropped unless `config` asks
    for them. Without `config`, the sizes come from a folder's config.json; a state dict must have the published size.
    """
    return plan_kosmos2(source, config).build()


def plan_kosmos2(source: Source, config: KosmosGConfig | None = None) -> ConversionPlan:
    """The plan behind `from_kosmos2`."""
    weights = open_weights(source)
    if "text_model.model.embed_tokens.weight" not in weights:
        raise CheckpointError(
            f"this is no Kosmos-2 checkpoint of transformers: it has no text_model.model, but {next(iter(weights))!r}; "
            "for the released Kosmos-G files use from_reference"
        )
    if config is None:
        described = Path(source) / "config.json" if isinstance(source, str | Path) else None
        if described is not None and described.is_file():
            config = _described_config(json.loads(described.read_text()))
        else:
            config = published_config(weights, "text_model.model.embed_tokens.weight")
        config.text_config.vocab_size = min(config.text_config.vocab_size, VOCABULARY)
    return make_plan(weights, config, KOSMOS2_NAMES, KOSMOS2_IGNORED, trimmed=(EMBEDDING,))


def grow_vocabulary(model: KosmosG, kosmos2: Source) -> None:
    """Add the grounding tokens of Kosmos-2 to a model, in place: embedding rows 64,007 to 65,036, after ours.

    The matching processor is made with `extra_tokens=1030`.
    """
    rows = open_weights(kosmos2)["text_model.model.embed_tokens.weight"]
    ours: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    if rows.shape[1] != ours.shape[1] or len(rows) <= len(ours):
        raise CheckpointError(
            f"the model's embedding is {tuple(ours.shape)}, Kosmos-2's {tuple(rows.shape)}; "
            "Kosmos-2's must be as wide and longer"
        )
    known = len(ours)
    model.mllm.resize_token_embeddings(len(rows), mean_resizing=False)
    with torch.no_grad():
        grown: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
        grown[known:] = rows[known:].to(ours)


def _described_config(theirs: dict[str, Any]) -> KosmosGConfig:
    """Our configuration with the sizes that a Kosmos-2 folder's config.json gives; the aligner is the paper's."""
    parts: dict[str, dict[str, Any]] = {}
    for part, kind in (("text_config", KosmosGTextConfig), ("vision_config", KosmosGVisionConfig)):
        given = theirs.get(part, {})
        # Sizes and activations, not dropout: that is training's, and the original had none on attention.
        known = [name for name in kind.__annotations__ if "dropout" not in name and name != "model_type"]
        parts[part] = {name: given[name] for name in known if name in given}
    aligner = KosmosGConfig.paper().aligner_config
    config = KosmosGConfig(**parts, latent_query_num=theirs.get("latent_query_num", 64), aligner_config=aligner)
    config.aligner_config.max_position_embeddings = config.text_config.max_position_embeddings + 2
    return config
