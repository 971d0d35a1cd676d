"""The section `build`: which source is read, who annotates it, how records are cut. Words become readers and callables.

Neural annotators are imported only where they run: choosing one here costs nothing.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from kosmosg.data.annotators.base import Annotator
from kosmosg.data.composition import ComposeOptions
from kosmosg.data.sources.base import Reader
from kosmosg.toyworld.scene import EDIT_KINDS
from kosmosg_platform.config import Section
from kosmosg_platform.datasets.pipeline import AnnotationStep

# What the original used is too old to be asked for in every case: its language model needs code from the hub.
DEFAULT_MODELS = {
    "blip2": "Salesforce/blip2-opt-2.7b",
    "language": "Qwen/Qwen2.5-1.5B-Instruct",
    "clipseg": "CIDAS/clipseg-rd64-refined",
}


class AnnotatorConfig(Section):
    """What all annotators share; the model settings count for those with a model."""

    model: str | None = None
    """Hub id or local folder; null takes the annotator's default."""
    device: str = "auto"
    """Torch device; auto is the GPU of the actor where it has one, else the CPU."""
    dtype: str = "auto"
    """float32, float16 or bfloat16; auto is float16 on a GPU, float32 on a CPU."""
    batch_size: int = Field(default=16, ge=1)
    """Samples that the model sees at once."""
    actors: int = Field(default=1, ge=1)
    """Copies of the model, each in its own process."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs that each copy takes from the cluster; parts of one may be shared."""

    def weights(self) -> str | None:
        """The model that will be loaded; None for annotators without one."""
        default = DEFAULT_MODELS.get(getattr(self, "use", ""))
        return default and (self.model or default)

    def shaping(self) -> dict[str, Any]:
        """The settings that change what is written; where and how often a model runs does not."""
        idle = {"device", "actors", "gpus"} if self.weights() else set(AnnotatorConfig.model_fields)
        return self.model_dump(mode="json", exclude=idle) | ({"model": self.weights()} if self.weights() else {})


class CaptionerConfig(AnnotatorConfig):
    """Who captions the images."""

    use: Literal["toyworld", "sidecar", "blip2"] = "toyworld"
    """world: the scene's own words; sidecar: text file beside the photo, or folder name; blip2: a BLIP-2 model."""
    template: str = "a photo of {name}"
    """The sentence that `sidecar` puts around a folder name."""


class EntityConfig(AnnotatorConfig):
    """Who says which words of a caption are things."""

    use: Literal["toyworld", "noun", "language"] = "toyworld"
    """world: exact; noun: the first noun phrase of a simple caption; language: a causal language model."""


class MaskConfig(AnnotatorConfig):
    """Who says where the things are."""

    use: Literal["toyworld", "grabcut", "clipseg"] = "toyworld"
    """world: exact; grabcut: the one subject of a photo, without any weights; clipseg: a CLIPSeg model."""


class BuildConfig(Section):
    """How `build_dataset` turns a source into a dataset."""

    reader: Literal["toyworld", "photos", "lines"] = "toyworld"
    """world: the procedural toy world; photos: a folder of photos; lines: text files with one caption a line."""
    kind: Literal["caption", "text"] = "caption"
    """What `lines` makes: captions (stage 2) or plain documents (stage 1)."""
    column: str | None = None
    """Column of a .tsv (name, or number from 0) or key of a .jsonl in which `lines` finds the text; null guesses."""
    shard_rows: int | None = Field(default=None, ge=1)
    """Source rows in a shard, about; null takes what suits the reader."""
    square: bool = True
    """Cut the middle square of every photo first, as the original did."""
    working_size: int = Field(default=1024, ge=64)
    """Longest side in pixels at which photos are annotated."""
    captioner: CaptionerConfig = CaptionerConfig()
    entities: EntityConfig = EntityConfig()
    masks: MaskConfig = MaskConfig()
    compose: ComposeOptions = ComposeOptions()
    max_refused: float = Field(default=0.5, ge=0, le=1)
    """Share of rows in quarantine above which nothing is published."""

    @model_validator(mode="after")
    def _annotators_fit_the_reader(self) -> Self:
        words = {"captioner": self.captioner.use, "entities": self.entities.use, "masks": self.masks.use}
        for name, use in words.items():
            if self.reader == "photos" and use == "toyworld":
                raise ValueError(f"{name}.use: 'toyworld' annotates scenes, not photos; start from the preset photos")
            if self.reader == "toyworld" and use != "toyworld":
                raise ValueError(f"{name}.use: {use!r} cannot read scenes; use world, or the preset photos")
        return self

    def settings(self, reader: Reader) -> dict[str, Any]:
        """Everything here that shapes a record, as plain values: the key of every shard, and part of the manifest."""
        if not reader.annotated:
            return {}
        return {
            "captioner": self.captioner.shaping(),
            "entities": self.entities.shaping(),
            "masks": self.masks.shaping(),
            "compose": self.model_dump(mode="json")["compose"],
        }

    def stages(self, reader: Reader) -> list[AnnotationStep]:
        """The annotators of a build as stages of the graph."""
        if not reader.annotated:
            return []
        parts: list[tuple[str, str, str, AnnotatorConfig]] = [
            ("caption", "captioner", self.captioner.use, self.captioner),
            ("entities", "entity_finder", self.entities.use, self.entities),
            ("masks", "segmenter", self.masks.use, self.masks),
        ]
        return [_stage(name, role, use, config) for name, role, use, config in parts]


def image_folder_reader(config: BuildConfig, source: Path) -> Reader:
    """The reader of a folder of photos."""
    from kosmosg.data.sources.image_folder import ImageFolderReader

    return ImageFolderReader(source, config.shard_rows or 8, config.square, config.working_size)


def text_lines_reader(config: BuildConfig, source: Path) -> Reader:
    """The reader of text files."""
    from kosmosg.data.sources.text_lines import TextLinesReader

    return TextLinesReader(source, config.kind, config.column, config.shard_rows or 16_384)


def toyworld_readers(
    config: BuildConfig, scenes: int, edits: int, questions: int, seed: int, edit_kinds: Sequence[str] = EDIT_KINDS
) -> dict[str, Reader]:
    """The readers of the toy world by dataset folder: scenes, then edits and questions if there are to be any."""
    from kosmosg.toyworld.source import EditReader, QuestionReader, SceneReader

    rows = config.shard_rows or 500
    readers: dict[str, Reader] = {"composition": SceneReader(scenes, seed, rows)}
    if edits:
        readers["edit"] = EditReader(edits, seed, rows, edit_kinds)
    if questions:
        readers["questions"] = QuestionReader(questions, seed, rows)
    return readers


def _stage(name: str, role: str, use: str, config: AnnotatorConfig) -> AnnotationStep:
    model = config.weights()
    if model is not None:
        make = partial(_neural, use, model, config.device, config.dtype)
        return AnnotationStep(name, role, make, config.batch_size, config.actors, config.gpus, model)
    # The light annotators take whole shards: the toy world paints all references of a batch in one go.
    return AnnotationStep(name, role, partial(_light, use, config), batch_size=1024)


def _light(use: str, config: AnnotatorConfig) -> Annotator:
    if use == "sidecar":
        from kosmosg.data.annotators.sidecar import SidecarCaptioner

        return SidecarCaptioner(config.template) if isinstance(config, CaptionerConfig) else SidecarCaptioner()
    if use == "noun":
        from kosmosg.data.annotators.nouns import NounFinder

        return NounFinder()
    if use == "grabcut":
        from kosmosg.data.annotators.grabcut import GrabCutSegmenter

        return GrabCutSegmenter()
    from kosmosg.toyworld import annotators as world

    exact: dict[type[AnnotatorConfig], type[Annotator]] = {
        CaptionerConfig: world.ToyworldCaptioner,
        EntityConfig: world.ToyworldEntityFinder,
        MaskConfig: world.ToyworldSegmenter,
    }
    return exact[type(config)]()


def _neural(use: str, model: str, device: str, dtype: str) -> Annotator:
    from kosmosg.data.annotators.pretrained import Loading

    loading = Loading(device, dtype)
    if use == "blip2":
        from kosmosg.data.annotators.blip2 import Blip2Captioner

        return Blip2Captioner(model, loading)
    if use == "language":
        from kosmosg.data.annotators.language_model import LanguageEntityFinder

        return LanguageEntityFinder(model, loading)
    from kosmosg.data.annotators.clipseg import ClipSegSegmenter

    return ClipSegSegmenter(model, loading)
