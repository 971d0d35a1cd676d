"""Where a stage's model comes from: the section `model`, and the model that it means."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import field_validator

from kosmosg import KosmosG, KosmosGConfig, KosmosGProcessor
from kosmosg.checkpoint.digest import model_digest
from kosmosg.checkpoint.export import ALIGNER_DECODER_FOLDER, load_aligner_decoder, load_export
from kosmosg.checkpoint.sums import verify_sums
from kosmosg.conditioners.alignernet import AlignerDecoder
from kosmosg.conditioners.base import CONDITIONERS, make_conditioner, with_conditioner
from kosmosg.errors import CheckpointError, ConfigError
from kosmosg.hub import decoder_folder, resolve_model, shipped_decoder
from kosmosg.plugins import load_plugins
from kosmosg.shapes import MODEL_SHAPES, new_config
from kosmosg_platform.config import Section, plain
from kosmosg_platform.run_paths import STAGES, RunPaths
from kosmosg_platform.storage import read_json, sha256
from kosmosg_platform.stores.location import told
from kosmosg_platform.stores.node_copy import bring_folder

NEW = "new"
DECODER_PARTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
"""The subfolders of a decoder that training uses; a shipped folder also contains trained models."""


class ModelConfig(Section):
    """Where the model comes from. Only the first stage creates one; later stages start from their parent's."""

    init: str = "tiny"
    """A new model of a known shape (`tiny`, `toyworld`, `paper`), or a model to continue from: `toyworld:STAGE`, a
    folder, a URL or a Hub id."""
    tokenizer: str = "toyworld"
    """`toyworld` (ships with the package), a sentencepiece model, or the folder with `sentencepiece.bpe.model`."""
    vision: str | None = None
    """Weights for the vision tower: `toyworld`, or the folder or file of a CLIP vision model; null
    initialises randomly."""
    aligner: str | None = None
    """Replace the parent's AlignerNet with a new conditioner of this kind: `alignernet`, the baselines `linear` and
    `mlp`, or one of a plug-in (kosmosg/conditioners/base.py). Null keeps the parent's."""

    @field_validator("init", "tokenizer", "vision")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return value if value is None else absolute(value)

    @field_validator("aligner")
    @classmethod
    def _known_conditioner(cls, value: str | None) -> str | None:
        load_plugins()
        if value is not None and value not in CONDITIONERS:
            raise ValueError(f"there is no conditioner of that kind; choose one of {', '.join(CONDITIONERS)}")
        return value


@dataclass(frozen=True)
class InitialModel:
    """Where a stage's model comes from: an export folder, or a new model."""

    model: ModelConfig
    decoder: str
    parent: Path | None
    """Export folder to start from; None makes a new model."""
    source: str = ""
    """What the folder is a copy of, if it is one that every node makes for itself."""

    @classmethod
    def of(cls, stage: str, model: ModelConfig, decoder: str, parent: str | None, layout: RunPaths) -> "InitialModel":
        """The initial model for these settings. Raises ConfigError if the previous stage has no export."""
        if parent not in (None, NEW):
            # The newest export is a link, which changes when this run ends.
            source = str(parent) if "://" in str(parent) else ""
            return cls(model, decoder, _resolve("parent:", str(parent)).resolve(), source)
        if parent is None and stage != STAGES[0]:
            return cls(model, decoder, layout.export(STAGES[STAGES.index(stage) - 1]))
        load_plugins()
        if model.init in MODEL_SHAPES:
            return cls(model, decoder, None)
        shapes = ", ".join(MODEL_SHAPES)
        return cls(model, decoder, _resolve(f"model.init: {model.init!r} is none of {shapes}, and", model.init))

    def fingerprint(self) -> dict[str, Any]:
        """What identifies it: a digest of the parent's weights, or the settings of the new model.

        Raises ConfigError if the parent is not an export folder or is damaged, or the new model's tokenizer is missing.
        """
        decoder = decoder_fingerprint(self.decoder)
        if self.parent is None:
            tokenizer_path(self.model.tokenizer)
            return {"parent": NEW, "model": plain(self.model), "decoder": decoder}
        other = {} if self.model.aligner is None else {"aligner": self.model.aligner}
        try:
            verify_sums(self.parent)
            return {"parent": model_digest(self.parent), "decoder": decoder, **other}
        except CheckpointError as error:
            raise ConfigError(f"parent: {error}") from None

    def aligner_decoder_fingerprint(self) -> dict[str, Any]:
        """A digest of the parent's aligner decoder N; empty if it has none."""
        files = [] if self.parent is None else list((self.parent / ALIGNER_DECODER_FOLDER).glob("*.safetensors"))
        return {"aligner_decoder": sha256(files)} if files else {}

    def lineage(self) -> dict[str, str]:
        """The parent's export folder, and its MLflow run if it was trained here."""
        if self.parent is None:
            return {"parent.export": NEW}
        finished = self.parent.parent / "finished.json"
        run_id = str(read_json(finished)["run_id"]) if finished.is_file() else ""
        return {"parent.export": self.source or told(self.parent), **({"parent.run": run_id} if run_id else {})}

    def load(self) -> tuple[KosmosG, KosmosGProcessor]:
        """Model, in training mode, and processor. A new model's weights come from torch's seed.

        In fp32 whatever precision the parent was saved in (the released files are fp16): the engine casts its own copy,
        and the optimizer keeps the weights given here.
        """
        folder = self._folder()
        model, processor = self._new() if folder is None else load_export(folder)
        if self.model.aligner is not None:
            replace_conditioner(model, self.model.aligner)
        model.float().train()
        return model, processor

    def load_aligner_decoder(self) -> AlignerDecoder | None:
        """N of a parent that went through stage 2, in training mode; None if there is none, so N is initialised."""
        folder = self._folder()
        if folder is None or self.model.aligner is not None:
            return None
        decoder = load_aligner_decoder(folder)
        return None if decoder is None else decoder.float().train()

    def processor(self) -> KosmosGProcessor:
        """The processor alone."""
        folder = self._folder()
        if folder is not None:
            return KosmosGProcessor.from_pretrained(folder)
        config = new_config(self.model.init, 1000)
        return KosmosGProcessor.from_sentencepiece(
            tokenizer_path(self.model.tokenizer),
            config.vision_config.image_size,
            config.latent_query_num,
            config.max_tokens,
        )

    def _folder(self) -> Path | None:
        """The parent's folder, with its files on this node."""
        if self.parent is None:
            return None
        if self.source and not self.parent.is_dir():
            return _resolve("parent:", self.source)
        return bring_folder(self.parent)

    def _new(self) -> tuple[KosmosG, KosmosGProcessor]:
        processor = self.processor()
        config = new_config(self.model.init, processor.vocab_size)
        if self.model.init == "paper":
            if config.text_config.vocab_size != processor.vocab_size:
                raise ConfigError(
                    f"model.tokenizer: it has {processor.vocab_size} words with the specials, the paper's model "
                    f"{config.text_config.vocab_size}; give the released sentencepiece.bpe.model"
                )
        else:
            _fit_to_decoder(config, self.decoder)
        model = KosmosG(config)
        if self.model.vision is not None:
            _load_vision(model, self.model.vision)
        return model, processor


def replace_conditioner(model: KosmosG, kind: str) -> None:
    """Replace the conditioner with a new one; language model and vision tower keep their weights."""
    config = with_conditioner(model.config, kind)
    model.config.aligner_config = config.aligner_config
    model.aligner = make_conditioner(model.config)


def absolute(name: str) -> str:
    """An existing path made absolute, because workers run in other folders; other names (ids) are
    returned unchanged."""
    return str(Path(name).absolute()) if Path(name).exists() else name


def tokenizer_path(tokenizer: str) -> Path:
    """The sentencepiece file that a setting names. Raises ConfigError if it does not exist."""
    shipped = shipped_decoder(tokenizer)
    named = shipped.folder if shipped else Path(tokenizer)
    path = named / "sentencepiece.bpe.model" if named.is_dir() else named
    if not path.is_file():
        raise ConfigError(
            f"model.tokenizer: there is no {path}; give `toyworld` or the path of sentencepiece.bpe.model"
        )
    return path


def decoder_fingerprint(decoder: str, parts: Sequence[str] = DECODER_PARTS) -> str:
    """What identifies a decoder, or some parts of it: a digest of the contents if it is a folder, else its name."""
    folder = Path(decoder_folder(decoder))
    return model_digest(folder, parts) if folder.is_dir() else decoder


def _resolve(setting: str, name: str) -> Path:
    try:
        return resolve_model(name)
    except CheckpointError as error:
        raise ConfigError(f"{setting} {error}") from None


def _fit_to_decoder(config: KosmosGConfig, decoder: str) -> None:
    """Match the aligner of a small new model to the decoder's text encoder."""
    from transformers import CLIPTextConfig

    from kosmosg.diffusion.decoder import load_part

    text: Any = load_part(CLIPTextConfig, decoder, "text_encoder")
    config.aligner_config.d_model = text.hidden_size
    config.aligner_config.num_queries = text.max_position_embeddings


def _load_vision(model: KosmosG, vision: str) -> None:
    from kosmosg.convert import load_vision

    shipped = shipped_decoder(vision)
    load_vision(model.mllm.vision_model, shipped.folder / "vision_model" if shipped else vision)
