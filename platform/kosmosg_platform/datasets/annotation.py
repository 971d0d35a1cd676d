"""The section `build`: which source is read, who annotates it, how records are cut. Words become readers and callables.

Neural annotators are imported only where they run: choosing one here costs nothing.
"""

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, model_validator

from kosmosg.data.annotators.base import ANNOTATORS, Annotator, AnnotatorEntry
from kosmosg.data.composition import ComposeOptions
from kosmosg.data.sources.base import SOURCES, Reader, SourceSettings
from kosmosg.errors import ConfigError
from kosmosg.plugins import find_entry
from kosmosg_platform.config import Section
from kosmosg_platform.datasets.pipeline import AnnotationStep

Entry = TypeVar("Entry")


class AnnotatorConfig(Section):
    """What all annotators share; the model settings count for those with a model."""

    section: ClassVar[str] = ""
    """The key of this section in `build` and in `ANNOTATORS`."""

    use: str = "toyworld"
    """A word of `ANNOTATORS`."""
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

    @property
    def entry(self) -> AnnotatorEntry:
        """What `use` names. Raises ConfigError."""
        return find_entry(ANNOTATORS[self.section], self.use, f"build.{self.section}.use")

    def weights(self) -> str | None:
        """The model that will be loaded; None for annotators without one."""
        default = self.entry.model
        return default and (self.model or default)

    def shaping(self) -> dict[str, Any]:
        """The settings that change what is written; where and how often a model runs does not."""
        idle = {"device", "actors", "gpus"} if self.weights() else set(AnnotatorConfig.model_fields) - {"use"}
        return self.model_dump(mode="json", exclude=idle) | ({"model": self.weights()} if self.weights() else {})


class CaptionerConfig(AnnotatorConfig):
    """Who captions the images."""

    section: ClassVar[str] = "captioner"

    use: str = "toyworld"
    """toyworld: the scene's own words; sidecar: text file beside the photo, or folder name; blip2: a BLIP-2 model."""
    template: str = "a photo of {name}"
    """The sentence that `sidecar` puts around a folder name."""


class EntityConfig(AnnotatorConfig):
    """Who says which words of a caption are things."""

    section: ClassVar[str] = "entities"

    use: str = "toyworld"
    """toyworld: exact; noun: the first noun phrase of a simple caption; language: a causal language model."""


class MaskConfig(AnnotatorConfig):
    """Who says where the things are."""

    section: ClassVar[str] = "masks"

    use: str = "toyworld"
    """toyworld: exact; grabcut: the one subject of a photo, without any weights; clipseg: a CLIPSeg model."""


class BuildConfig(Section):
    """How `build_dataset` turns a source into a dataset."""

    reader: str = "toyworld"
    """toyworld: the procedural toy world; photos: a folder of photos; lines: text files with one caption a line."""
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
        source = _known(SOURCES, self.reader, "reader")
        for config in (self.captioner, self.entities, self.masks):
            name = f"{config.section}.use"
            only = _known(ANNOTATORS[config.section], config.use, name).source
            if source.is_annotated and only not in (None, self.reader):
                raise ValueError(
                    f"{name}: {config.use!r} annotates scenes, not {self.reader}; start from the preset photos"
                )
            if source.is_generated and only != self.reader:
                raise ValueError(f"{name}: {config.use!r} cannot read scenes; use {self.reader}, or the preset photos")
        return self

    def source_settings(self, path: Path | None = None, options: Mapping[str, Any] | None = None) -> SourceSettings:
        """What the source is told."""
        return SourceSettings(
            path, self.kind, self.column, self.shard_rows, self.square, self.working_size, options or {}
        )

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
        """The annotators of a build as steps of the pipeline."""
        if not reader.annotated:
            return []
        return [
            _step("caption", "captioner", self.captioner),
            _step("entities", "entity_finder", self.entities),
            _step("masks", "segmenter", self.masks),
        ]


def _known(registry: Mapping[str, Entry], name: str, setting: str) -> Entry:
    try:
        return find_entry(registry, name, setting)
    except ConfigError as error:  # pydantic names the section, and wants the rest of the sentence
        raise ValueError(str(error)) from None


def _step(name: str, role: str, config: AnnotatorConfig) -> AnnotationStep:
    make, model = partial(make_annotator, config), config.weights()
    if model is not None:
        return AnnotationStep(name, role, make, config.batch_size, config.actors, config.gpus, model)
    # The light annotators take whole shards: the toy world renders all references of a batch at once.
    return AnnotationStep(name, role, make, batch_size=1024)


def make_annotator(config: AnnotatorConfig) -> Annotator:
    """The annotator of a section, where it runs; its model is loaded here."""
    entry = config.entry
    module, _, name = entry.annotator.partition(":")
    kind = getattr(import_module(module), name)
    options = {option: getattr(config, option) for option in entry.options}
    if entry.model is None:
        light: Annotator = kind(**options)
        return light
    from kosmosg.data.annotators.pretrained import Loading

    neural: Annotator = kind(config.weights(), Loading(config.device, config.dtype), **options)
    return neural
