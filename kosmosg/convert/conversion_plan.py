"""The plan of a conversion: where each of our parameters comes from, checked before anything is loaded.

It maps our parameter names to those of the source checkpoint, and lists which of theirs are dropped and why and which
of ours are newly initialised. Unknown names, wrong shapes and incomplete parts are errors, so no weight is ever lost
silently. A plan then either fills a model (`build`) or is streamed to a folder, one shard in memory at a time
(`import_weights`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import chain, count
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from kosmosg.checkpoint.export import (
    ALIGNER_DECODER_FOLDER,
    EXPORT,
    SHARD_BYTES,
    check_processor,
    parameter_shapes,
    write_weights,
)
from kosmosg.checkpoint.publish import publish_folder
from kosmosg.checkpoint.state_dict import shape_of
from kosmosg.checkpoint.sums import write_sums
from kosmosg.conditioners.alignernet import AlignerDecoder, AlignerNet
from kosmosg.config import KosmosGConfig
from kosmosg.convert.key_mapping import TRIMMED, rename
from kosmosg.errors import CheckpointError
from kosmosg.layers.magneto import KosmosGPreTrainedModel
from kosmosg.model import KosmosG
from kosmosg.processor import KosmosGProcessor

Model = TypeVar("Model", bound=KosmosGPreTrainedModel)
Tensors = Iterable[tuple[str, Tensor]]


@dataclass(frozen=True)
class ConversionPlan:
    """Where every parameter of ours comes from, and what happened to every name of theirs."""

    config: KosmosGConfig
    weights: Mapping[str, Tensor]
    model: dict[str, str]  # our name -> their name
    decoder: dict[str, str]  # the same for N
    ignored: dict[str, str]  # their name -> reason
    fresh: list[str] = field(default_factory=list)  # ours that are newly initialised

    def tensor(self, name: str, *, decoder: bool = False) -> Tensor:
        """Their values for our name, cut to our number of rows. Raises `CheckpointError` if any is not finite."""
        theirs = (self.decoder if decoder else self.model)[name]
        tensor = self.weights[theirs][: self._shapes[decoder][name][0]]
        if not tensor.is_meta and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{theirs} holds values that are not finite; the checkpoint is damaged")
        return tensor

    def build(self) -> KosmosG:
        """The model, in evaluation mode, in the precision of the checkpoint."""
        return self._fill(KosmosG, {**{name: self.tensor(name) for name in self.model}, **self.fresh_tensors()})

    def build_decoder(self) -> AlignerDecoder:
        """N. Raises `CheckpointError` if the checkpoint has none."""
        if not self.decoder:
            raise CheckpointError("the checkpoint has no aligner.decoder; only those of stage 2 do")
        return self._fill(AlignerDecoder, {name: self.tensor(name, decoder=True) for name in self.decoder})

    def fresh_tensors(self) -> dict[str, Tensor]:
        """Initial values, by our names, of what the checkpoint lacks: of the aligner, or nothing."""
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


def make_plan(
    weights: Mapping[str, Tensor],
    config: KosmosGConfig,
    names: dict[str, str],
    reasons: dict[str, str],
    trimmed: tuple[str, ...] = (),
) -> ConversionPlan:
    """Match every name of a checkpoint with one of ours, or with the reason why it is dropped.

    `names` and `reasons` are tables of `kosmosg.convert.key_mapping`. Parameters in `trimmed` may have more rows in the
    checkpoint than in the model. Raises CheckpointError for unknown names, wrong shapes and missing parameters.
    """
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
        require_same_shape(theirs, shape_of(weights, theirs), shapes[decoder][ours], ours in TRIMMED + trimmed)
        targets[decoder][ours] = theirs
    fresh = _missing(targets[False], shapes[False])
    if targets[True]:
        _missing(targets[True], shapes[True])
    return ConversionPlan(config, weights, targets[False], targets[True], ignored, fresh)


def import_weights(
    plan: ConversionPlan,
    folder: str | Path,
    processor: KosmosGProcessor | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
    on_tensor: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Stream a plan into an export folder, holding one shard in memory, and return the folder.

    With `processor` (from the released sentencepiece file) the export is complete; without, only the model loads. N,
    if the checkpoint has it, goes into the subfolder `aligner_decoder`, from which stage 2 continues. README.md says
    what happened to every name. `on_tensor` is told how many tensors are written, of how many. An earlier export is
    replaced; CheckpointError if the folder holds anything else.
    """
    total, numbers = len(plan.model) + len(plan.decoder), count(1)

    def counted(tensors: Tensors) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors:
            yield name, tensor
            on_tensor(next(numbers), total)

    def fill(draft: Path) -> None:
        _write_part(plan, draft, counted, decoder=False, shard_bytes=shard_bytes)
        if plan.decoder:
            (draft / ALIGNER_DECODER_FOLDER).mkdir()
            _write_part(plan, draft / ALIGNER_DECODER_FOLDER, counted, decoder=True, shard_bytes=shard_bytes)
        if processor is not None:
            check_processor(processor, plan.config, "the processor given")
            processor.save_pretrained(draft)
        (draft / "experiment.yaml").write_text("{}\n")
        (draft / "README.md").write_text(_import_card(plan))
        write_sums(draft)

    return publish_folder(Path(folder), EXPORT, fill)


def published_config(weights: Mapping[str, Tensor], embedding: str) -> KosmosGConfig:
    """The paper's configuration, for a checkpoint of that width; others need `config`, as heads are not stored."""
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


def require_same_shape(name: str, theirs: tuple[int, ...], ours: tuple[int, ...], longer: bool = False) -> None:
    """Raises CheckpointError if the shapes differ; with `longer`, theirs may have more rows."""
    if theirs == ours or (longer and theirs[1:] == ours[1:] and theirs[0] > ours[0]):
        return
    raise CheckpointError(
        f"{name} is {theirs} in the checkpoint and {ours} in the model; give the configuration it is of"
    )


def _missing(found: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """What is newly initialised: the whole aligner or nothing. Anything else that is missing is an error."""
    missing = [name for name in shapes if name not in found]
    fresh = [name for name in shapes if name.startswith("aligner.")]
    if missing and missing != fresh:
        raise CheckpointError(
            f"the checkpoint lacks {len(missing)} parameters, the first for {missing[0]!r}; it is incomplete or "
            "shallower than the configuration. A file without vision tower needs one given beside it (vision=)"
        )
    return missing


def _write_part(
    plan: ConversionPlan, folder: Path, counted: Callable[[Tensors], Tensors], *, decoder: bool, shard_bytes: int
) -> None:
    config = KosmosGConfig.from_dict(plan.config.to_dict())
    config.dtype, config.architectures = plan.dtype, [(AlignerDecoder if decoder else KosmosG).__name__]
    config.save_pretrained(folder)
    names = plan.decoder if decoder else plan.model
    loaded = counted((name, plan.tensor(name, decoder=decoder)) for name in names)
    write_weights(loaded if decoder else chain(loaded, plan.fresh_tensors().items()), folder, shard_bytes)


def _import_card(plan: ConversionPlan) -> str:
    lines = ["# Imported weights", ""]
    lines.append(
        f"{len(plan.model)} parameters of the model and {len(plan.decoder)} of the aligner's decoder N were taken."
    )
    if plan.fresh:
        lines.append("The source has no aligner; a newly initialised one was added and must be trained (stage 2).")
    lines += ["", "Left out:", ""]
    reasons: dict[str, int] = {}
    for reason in plan.ignored.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    lines += [f"- {count} x {reason}" for reason, count in reasons.items()]
    return "\n".join(lines) + "\n"


@cache
def _shapes(kind: type[KosmosGPreTrainedModel], config: str) -> dict[str, tuple[int, ...]]:
    """`parameter_shapes`, kept; the configuration comes as JSON because that is hashable."""
    return parameter_shapes(KosmosGConfig.from_dict(json.loads(config)), kind)
