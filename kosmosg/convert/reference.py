"""Published weights in our layout: the released Kosmos-G files, transformers' Kosmos-2, and CLIP vision towers.

Every converter first makes a plan: which of our parameters comes from which of theirs, which of theirs are left out and
why, which of ours start anew. A name that fits nowhere, a shape that does not fit, or a part that is only half there
stops it, so no weight is ever lost silently. The plan then either fills a model or is streamed to a folder, one shard
in memory at a time.
"""

from __future__ import annotations

import json
import re
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from kosmosg.checkpoint.export import (
    ALIGNER_DECODER_FOLDER,
    SHARD_BYTES,
    check_processor,
    parameter_shapes,
    publish,
    write_weights,
)
from kosmosg.checkpoint.state_dict import Source, open_weights, shape_of
from kosmosg.conditioners.alignernet import AlignerDecoder, AlignerNet
from kosmosg.config import VOCABULARY, KosmosGConfig, KosmosGTextConfig, KosmosGVisionConfig
from kosmosg.convert.key_mapping import (
    EMBEDDING,
    KOSMOS2_IGNORED,
    KOSMOS2_NAMES,
    REFERENCE_IGNORED,
    REFERENCE_NAMES,
    TRIMMED,
    as_reference_vision,
    rename,
)
from kosmosg.errors import CheckpointError
from kosmosg.model import KosmosG
from kosmosg.model.layers import KosmosGPreTrainedModel
from kosmosg.model.vision import VisionTower
from kosmosg.processor import KosmosGProcessor

Model = TypeVar("Model", bound=KosmosGPreTrainedModel)


def from_reference(source: Source, config: KosmosGConfig | None = None, *, vision: Source | None = None) -> KosmosG:
    """A model from a released Kosmos-G file, of any stage: `checkpoint_stage1.pt`, `_stage2.pt`, `_final.pt`.

    `source` is the file or its state dict. Without `config` the published sizes are expected, and the aligner's
    position table, of which 32,768 rows are stored, is cut to the 2,050 that the language model can reach. `vision`
    (the released `ViT-L-14-sd.pt`, or any OpenAI CLIP) stands in when the file has no vision tower. Stage 1 has no
    aligner: it starts anew. Weights keep their precision (the released files are fp16).

    Raises `CheckpointError` naming the key that is unknown, missing, not finite or of another shape.
    """
    return plan_reference(source, config, vision=vision).build()


def decoder_from_reference(source: Source, config: KosmosGConfig | None = None) -> AlignerDecoder:
    """N, the aligner's decoder, from a released stage-2 file: to continue stage 2 where the original stopped."""
    return plan_reference(source, config).build_decoder()


def from_kosmos2(source: Source, config: KosmosGConfig | None = None) -> KosmosG:
    """A model from `microsoft/kosmos-2-patch14-224`: a public start for stage 2. The aligner starts anew.

    The first 64,007 rows of its vocabulary are Kosmos-G's; the rest, for grounding, is left out unless `config` asks
    for it. Without `config` a folder is read as its config.json says, a state dict as of the published size.
    """
    return plan_kosmos2(source, config).build()


def grow_vocabulary(model: KosmosG, kosmos2: Source) -> None:
    """Give a model the grounding tokens of Kosmos-2: its embedding rows behind ours, 64,007 to 65,036, in place.

    A processor goes with it when it is made with `extra_tokens=1030`.
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


def load_vision(tower: VisionTower, source: Source) -> None:
    """Fill a vision tower from an OpenAI CLIP file (`visual.*`) or a transformers CLIP folder or state dict, in place.

    Every parameter of the tower must be there in its shape; other parts of CLIP are left out.
    """
    ours = tower.state_dict()
    found: dict[str, Tensor] = {}
    theirs = as_reference_vision(open_weights(source))
    for name in theirs:
        hugging = re.fullmatch(r"(?:vision_model\.)?((?:embeddings|pre_layrnorm|encoder|post_layernorm)\..+)", name)
        target = f"mllm.vision_model.model.{hugging[1]}" if hugging else rename(name, REFERENCE_NAMES)
        target = (target or "").removeprefix("mllm.vision_model.")
        if target in ours:
            found[target] = theirs[name]
    for name, tensor in ours.items():
        if name not in found:
            raise CheckpointError(f"the CLIP checkpoint lacks {name}; give a CLIP whose vision tower is a ViT")
        _same_shape(name, tuple(found[name].shape), tuple(tensor.shape))
    tower.load_state_dict(found)


def import_weights(
    plan: ConversionPlan,
    folder: str | Path,
    processor: KosmosGProcessor | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Stream a plan into an export folder, holding one shard in memory, and return the folder.

    With `processor` (from the released sentencepiece file) the export is complete; without, only the model loads. N,
    where the checkpoint has it, goes into the subfolder `aligner_decoder`, from which stage 2 goes on. README.md says
    what became of every name.
    """

    def fill(draft: Path) -> None:
        _write_part(plan, draft, decoder=False, shard_bytes=shard_bytes)
        if plan.decoder:
            (draft / ALIGNER_DECODER_FOLDER).mkdir()
            _write_part(plan, draft / ALIGNER_DECODER_FOLDER, decoder=True, shard_bytes=shard_bytes)
        if processor is not None:
            check_processor(processor, plan.config, "the processor given")
            processor.save_pretrained(draft)
        (draft / "experiment.yaml").write_text("{}\n")
        (draft / "README.md").write_text(_import_card(plan))

    return publish(Path(folder), fill)


@dataclass(frozen=True)
class ConversionPlan:
    """Where every parameter of ours comes from, and what became of every name of theirs."""

    config: KosmosGConfig
    weights: Mapping[str, Tensor]
    model: dict[str, str]  # our name -> their name
    decoder: dict[str, str]  # the same for N
    ignored: dict[str, str]  # their name -> reason
    fresh: list[str] = field(default_factory=list)  # ours that start anew

    def tensor(self, name: str, *, decoder: bool = False) -> Tensor:
        """Their values for our name, cut to our rows. Raises `CheckpointError` when any is not finite."""
        theirs = (self.decoder if decoder else self.model)[name]
        tensor = self.weights[theirs][: self._shapes[decoder][name][0]]
        if not tensor.is_meta and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{theirs} holds values that are not finite; the checkpoint is damaged")
        return tensor

    def build(self) -> KosmosG:
        """The model, in evaluation mode, in the precision of the checkpoint."""
        return self._fill(KosmosG, {**{name: self.tensor(name) for name in self.model}, **self.fresh_tensors()})

    def build_decoder(self) -> AlignerDecoder:
        """N. Raises `CheckpointError` when the checkpoint has none."""
        if not self.decoder:
            raise CheckpointError("the checkpoint has no aligner.decoder; only those of stage 2 do")
        return self._fill(AlignerDecoder, {name: self.tensor(name, decoder=True) for name in self.decoder})

    def fresh_tensors(self) -> dict[str, Tensor]:
        """Initial values of what starts anew, by our names: of the aligner, or nothing."""
        if not self.fresh:
            return {}
        with torch.device("meta" if self.weights[next(iter(self.model.values()))].is_meta else "cpu"):
            aligner = AlignerNet(KosmosGConfig.from_dict(self.config.to_dict()))
        return {f"aligner.{name}": value.detach().to(self.dtype) for name, value in aligner.named_parameters()}

    def _fill(self, kind: type[Model], tensors: dict[str, Tensor]) -> Model:
        config = KosmosGConfig.from_dict(self.config.to_dict())
        if any(tensor.is_meta for tensor in tensors.values()):
            with torch.device("meta"):
                model: Model = kind(config).eval()
            model.load_state_dict(tensors, strict=False, assign=True)
            model.tie_weights()
            return model
        loaded: Model = kind.from_pretrained(None, config=config, state_dict=tensors, dtype=self.dtype)
        return loaded

    @cached_property
    def _shapes(self) -> dict[bool, dict[str, tuple[int, ...]]]:
        described = self.config.to_json_string()
        return {decoder: _shapes(AlignerDecoder if decoder else KosmosG, described) for decoder in (False, True)}

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the stored weights."""
        return self.weights[next(iter((self.model or self.decoder).values()))].dtype


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
        config = _published_config(weights, "gpt_model.decoder.embed_tokens.weight")
    return _plan(weights, config, REFERENCE_NAMES, REFERENCE_IGNORED)


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
            config = _published_config(weights, "text_model.model.embed_tokens.weight")
        config.text_config.vocab_size = min(config.text_config.vocab_size, VOCABULARY)
    return _plan(weights, config, KOSMOS2_NAMES, KOSMOS2_IGNORED, trimmed=(EMBEDDING,))


def _plan(
    weights: Mapping[str, Tensor],
    config: KosmosGConfig,
    names: dict[str, str],
    reasons: dict[str, str],
    trimmed: tuple[str, ...] = (),
) -> ConversionPlan:
    shapes = {False: _shapes(KosmosG, config.to_json_string()), True: _shapes(AlignerDecoder, config.to_json_string())}
    targets: dict[bool, dict[str, str]] = {False: {}, True: {}}
    ignored: dict[str, str] = {}
    for theirs in weights:
        reason = next((why for pattern, why in reasons.items() if re.fullmatch(pattern, theirs)), None)
        if reason is not None:
            ignored[theirs] = reason
            continue
        ours = rename(theirs, names)
        decoder = ours is not None and ours.startswith("decoder:")
        ours = None if ours is None else ours.removeprefix("decoder:")
        if ours is None or ours not in shapes[decoder]:
            raise CheckpointError(
                f"the checkpoint holds {theirs!r}, which has no place in this model; it is of another kind or deeper "
                f"than the configuration ({config.text_config.layers} text, "
                f"{config.vision_config.num_hidden_layers} vision, {config.aligner_config.layers} aligner layers)"
            )
        _same_shape(theirs, shape_of(weights, theirs), shapes[decoder][ours], ours in TRIMMED + trimmed)
        targets[decoder][ours] = theirs
    fresh = _missing(targets[False], shapes[False])
    if targets[True]:
        _missing(targets[True], shapes[True])
    return ConversionPlan(config, weights, targets[False], targets[True], ignored, fresh)


def _missing(found: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """What starts anew: the whole aligner or nothing. Any other gap is an error."""
    missing = [name for name in shapes if name not in found]
    fresh = [name for name in shapes if name.startswith("aligner.")]
    if missing and missing != fresh:
        raise CheckpointError(
            f"the checkpoint lacks {len(missing)} parameters, the first for {missing[0]!r}; it is incomplete or "
            "shallower than the configuration. A file without vision tower needs one given beside it (vision=)"
        )
    return missing


def _published_config(weights: Mapping[str, Tensor], embedding: str) -> KosmosGConfig:
    """The paper's configuration for a checkpoint of its width. Heads are not stored, so others must be given."""
    config = KosmosGConfig.paper()
    rows, width = shape_of(weights, embedding)
    if width != config.text_config.embed_dim:
        raise CheckpointError(
            f"the checkpoint is {width} wide, the published model {config.text_config.embed_dim}; how many attention "
            "heads such a model has is not stored in its weights, so pass config=KosmosGConfig(...)"
        )
    config.text_config.vocab_size = rows
    config.aligner_config.max_position_embeddings = config.text_config.max_position_embeddings + 2
    return config


def _write_part(plan: ConversionPlan, folder: Path, *, decoder: bool, shard_bytes: int) -> None:
    config = KosmosGConfig.from_dict(plan.config.to_dict())
    config.dtype, config.architectures = plan.dtype, [(AlignerDecoder if decoder else KosmosG).__name__]
    config.save_pretrained(folder)
    names = plan.decoder if decoder else plan.model
    loaded = ((name, plan.tensor(name, decoder=decoder)) for name in names)
    write_weights(loaded if decoder else chain(loaded, plan.fresh_tensors().items()), folder, shard_bytes)


def _import_card(plan: ConversionPlan) -> str:
    lines = ["# Imported weights", ""]
    lines.append(
        f"{len(plan.model)} parameters of the model and {len(plan.decoder)} of the aligner's decoder N were taken."
    )
    if plan.fresh:
        lines.append("The source has no aligner; it starts anew and has to be trained (stage 2).")
    lines += ["", "Left out:", ""]
    reasons: dict[str, int] = {}
    for reason in plan.ignored.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    lines += [f"- {count} x {reason}" for reason, count in reasons.items()]
    return "\n".join(lines) + "\n"


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


def _same_shape(name: str, theirs: tuple[int, ...], ours: tuple[int, ...], longer: bool = False) -> None:
    if theirs == ours or (longer and theirs[1:] == ours[1:] and theirs[0] > ours[0]):
        return
    raise CheckpointError(
        f"{name} is {theirs} in the checkpoint and {ours} in the model; give the configuration it is of"
    )


@cache
def _shapes(kind: type[KosmosGPreTrainedModel], config: str) -> dict[str, tuple[int, ...]]:
    """`parameter_shapes`, kept; the configuration comes as JSON because that is hashable."""
    return parameter_shapes(KosmosGConfig.from_dict(json.loads(config)), kind)
