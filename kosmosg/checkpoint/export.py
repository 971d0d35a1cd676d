"""An export: the folder of a trained or imported model, which is also what one stage hands to the next.

    config.json  model.safetensors (or shards with an index)  processor files  experiment.yaml  README.md  SHA256SUMS
    aligner_decoder/  (N, config and weights: only stage 2 writes and reads it)

It is an ordinary transformers checkpoint, so `KosmosG.from_pretrained(folder)` can load it too; this module adds the
processor, the settings of the run and the model card, and gives clear errors for folders that are something else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from kosmosg.checkpoint.publish import WEIGHTS, FolderLayout, publish_folder
from kosmosg.checkpoint.state_dict import open_weights, shape_of
from kosmosg.checkpoint.sums import SUMS, verify_sums, write_sums
from kosmosg.conditioners.alignernet import AlignerDecoder
from kosmosg.config import KosmosGConfig
from kosmosg.errors import CheckpointError, KosmosGError
from kosmosg.layers.magneto import KosmosGPreTrainedModel
from kosmosg.model import KosmosG
from kosmosg.processor import CONFIG_FILE, SENTENCEPIECE_FILE, KosmosGProcessor

SHARD_BYTES = 2_000_000_000
ALIGNER_DECODER_FOLDER = "aligner_decoder"
_MODEL = ("config.json", "generation_config.json", *WEIGHTS)
EXPORT = FolderLayout(
    kind="an export",
    files=(
        *_MODEL,
        *(f"{ALIGNER_DECODER_FOLDER}/{name}" for name in _MODEL),
        *(CONFIG_FILE, SENTENCEPIECE_FILE, "experiment.yaml", "README.md", SUMS),
    ),
    identity=("config.json", "model_type", KosmosGConfig.model_type),
)
"""What `save_export` and `import_weights` write."""


def save_export(
    model: KosmosG,
    processor: KosmosGProcessor,
    folder: str | Path,
    experiment: dict[str, Any] | None = None,
    card: str = "",
    decoder: AlignerDecoder | None = None,
) -> Path:
    """Write an export and return its folder. The write is atomic; an existing export of that name is replaced.

    `experiment` is the resolved configuration of the run as plain values, `card` the text of README.md, `decoder` the
    aligner's decoder N, for another stage 2 that continues from this export. Raises `CheckpointError`, and changes
    nothing, if the folder contains anything that is not part of an export.
    """
    check_processor(processor, model.config, "the processor given")

    def fill(draft: Path) -> None:
        model.save_pretrained(draft, max_shard_size=SHARD_BYTES)
        if decoder is not None:
            decoder.save_pretrained(draft / ALIGNER_DECODER_FOLDER, max_shard_size=SHARD_BYTES)
        processor.save_pretrained(draft)
        (draft / "experiment.yaml").write_text(yaml.safe_dump(experiment or {}, sort_keys=False, allow_unicode=True))
        (draft / "README.md").write_text(card)
        write_sums(draft)

    return publish_folder(Path(folder), EXPORT, fill)


def load_export(folder: str | Path) -> tuple[KosmosG, KosmosGProcessor]:
    """Load the model, in evaluation mode, and the processor of an export.

    Raises `CheckpointError` if the folder is missing, incomplete, of another kind or size, if a file is not what its
    `SHA256SUMS` says, or its weights are not finite.
    """
    folder = Path(folder)
    config = read_config(folder)
    _complete(folder, config)
    processor = KosmosGProcessor.from_pretrained(folder)
    check_processor(processor, config, f"the processor in {folder}")
    verify_sums(folder)  # last, so that what is wrong is told in its own words where that can be said
    model: KosmosG = KosmosG.from_pretrained(folder).eval()
    _finite(model, folder)
    return model, processor


def load_aligner_decoder(folder: str | Path) -> AlignerDecoder | None:
    """Load the aligner's decoder N of an export, in evaluation mode; None if the export has none.

    Raises `CheckpointError` as `load_export` does.
    """
    part = Path(folder) / ALIGNER_DECODER_FOLDER
    if not part.exists():
        return None
    config = read_config(part)
    _complete(part, config, AlignerDecoder)
    verify_sums(Path(folder), ALIGNER_DECODER_FOLDER)
    decoder: AlignerDecoder = AlignerDecoder.from_pretrained(part).eval()
    _finite(decoder, part)
    return decoder


def read_config(folder: Path) -> KosmosGConfig:
    """The configuration of an export. Raises `CheckpointError` if the folder is not an export."""
    if not folder.is_dir():
        raise CheckpointError(f"there is no export folder {folder}; give one that holds config.json and weights")
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is no export: it has no config.json; give the folder that a training job wrote"
        )
    try:
        content = json.loads(path.read_text())
        kind = content.get("model_type")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy the export again") from error
    if kind != KosmosGConfig.model_type:
        raise CheckpointError(
            f"{folder} holds a model of type {kind!r}, not {KosmosGConfig.model_type!r}; give another"
        )
    try:
        config: KosmosGConfig = KosmosGConfig.from_dict(content)
    except KosmosGError as error:
        raise CheckpointError(f"{path} describes no possible model: {error}") from error
    return config


def write_weights(tensors: Iterable[tuple[str, Tensor]], folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Stream named tensors into safetensors shards of at most `shard_bytes`, one shard in memory at a time.

    The files are those of `save_pretrained`: one `model.safetensors`, or numbered shards and their index.
    """
    shards: list[tuple[Path, list[str]]] = []
    pending: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        path = folder / f"model-{len(shards):05}.part"
        save_file(pending, path, metadata={"format": "pt"})
        shards.append((path, list(pending)))
        pending.clear()

    for name, tensor in tensors:
        count = tensor.numel() * tensor.element_size()
        if pending and size + count > shard_bytes:
            flush()
            size = 0
        # A slice of a memory-mapped file is copied here, so that only the slice is saved, contiguously.
        pending[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
        size, total = size + count, total + count
    flush()
    if len(shards) == 1:
        shards[0][0].rename(folder / "model.safetensors")
        return
    where = {}
    for number, (path, names) in enumerate(shards, start=1):
        final = f"model-{number:05}-of-{len(shards):05}.safetensors"
        path.rename(folder / final)
        where.update(dict.fromkeys(names, final))
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _complete(folder: Path, config: KosmosGConfig, kind: type[KosmosGPreTrainedModel] = KosmosG) -> None:
    """Check that every parameter is there with its shape: transformers only warns and initialises missing ones."""
    weights = open_weights(folder)
    for name, shape in parameter_shapes(config, kind).items():
        if name not in weights:
            raise CheckpointError(f"{folder} lacks the weights of {name}; it is unfinished or of an earlier layout")
        found = shape_of(weights, name)
        if found != shape:
            raise CheckpointError(f"{name} in {folder} is {found}, its config.json says {shape}; copy the export again")


def _finite(model: KosmosGPreTrainedModel, folder: Path) -> None:
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise CheckpointError(f"{name} in {folder} holds values that are not finite; use an earlier checkpoint")


def parameter_shapes(config: KosmosGConfig, kind: type[KosmosGPreTrainedModel] = KosmosG) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's parameters, tied ones once, without allocating the model."""
    with torch.device("meta"):
        model = kind(KosmosGConfig.from_dict(config.to_dict()))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def check_processor(processor: KosmosGProcessor, config: KosmosGConfig, which: str) -> None:
    """Raise `CheckpointError` unless processor and model agree on vocabulary, image size and slots per image."""
    pairs = {
        "vocabulary size": (processor.vocab_size, config.text_config.vocab_size),
        "image size": (processor.image_size, config.vision_config.image_size),
        "slots an image": (processor.num_image_tokens, config.latent_query_num),
    }
    for what, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise CheckpointError(f"{which} has {what} {theirs}, the model {ours}; use the processor of this model")


__all__ = [
    "ALIGNER_DECODER_FOLDER",
    "EXPORT",
    "check_processor",
    "load_aligner_decoder",
    "load_export",
    "parameter_shapes",
    "read_config",
    "save_export",
    "write_weights",
]
