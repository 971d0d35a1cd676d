"""The section `build`: a source, a list of steps (annotators and filters in any order), and how records are cut.

Every entry's own settings are declared next to the entry; a step names an entry, its settings and its resources.
Neural annotators are imported only where they run: selecting one here costs nothing.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import Field, TypeAdapter, ValidationError

from kosmosg.data.annotators.base import ANNOTATORS, FIELDS, Annotator, Sample
from kosmosg.data.composition import ComposeOptions
from kosmosg.data.files.store_file import PATIENCE
from kosmosg.data.filters.base import FILTERS, Filter
from kosmosg.data.sources.base import SOURCES, Source
from kosmosg.errors import ConfigError, DataError
from kosmosg.plugins import find_entry, load_entry, load_plugins
from kosmosg_platform.config import Section, digest

WHOLE_SHARD = 1024
"""Batch size of light annotators: the toy world renders all references of a batch together."""

WITHOUT_MODELS = "[{use: told}, {use: nouns}, {use: grabcut}]"
"""Steps for captioned images that need no weights and no extra."""


class StepResources(Section):
    """The resources of a step; only steps with a model have processes of their own."""

    batch_size: int = Field(default=16, ge=1)
    """Samples that a model sees at once."""
    actors: int | tuple[int, int] = 1
    """Copies of a model, each in its own process; two numbers let Ray choose between them as work queues up."""
    cpus: float = Field(default=1.0, ge=0)
    """CPUs that each copy takes from the cluster."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs that each copy takes from the cluster; parts of one may be shared."""
    memory_gb: float = Field(default=0.0, ge=0)
    """Memory that is set aside for each copy; 0 sets none aside."""


def _nothing() -> None:
    """What a step without weights requires."""


@contextmanager
def _remedy(text: str) -> Iterator[None]:
    """Errors of the user inside end with one more remedy."""
    try:
        yield
    except (ConfigError, DataError) as error:
        raise type(error)(f"{error}; {text}") from None


def _require_default(require: Callable[[], None], remedy: str) -> None:
    """`PipelineStep.require` of a step that nobody asked for."""
    with _remedy(remedy):
        require()


@dataclass(frozen=True)
class PipelineStep:
    """One annotator or filter of a build. `make` creates it in the worker, so weights are loaded where they
    are used."""

    name: str
    """Name under which rejections are counted: the field that an annotator fills, or the filter's name."""
    make: Any
    """() -> Annotator, a callable on a batch of samples; a filter's answers are None or a Rejection."""
    batch_size: int
    """Samples per batch."""
    fills: str = ""
    """The field of the sample that it answers for; "" for filters."""
    key: str = ""
    """Digest of all that its answers depend on, the steps whose fields it needs included."""
    keep: bool = False
    """Whether its answers are kept for later builds."""
    actors: tuple[int, int] = (0, 0)
    """Processes of its own, at least and at most; (0, 0): light enough to run where its rows are."""
    cpus: float = 1.0
    """Per actor."""
    gpus: float = 0.0
    """Per actor."""
    memory: float = 0.0
    """Bytes that are set aside per actor."""
    model: str | None = None
    """Hub id or folder of its weights."""
    require: Callable[[], None] = _nothing
    """Raises DataError where weights are missing; called before workers start."""


class BuildConfig(Section):
    """How `build_dataset` turns a source into a dataset."""

    source: dict[str, Any] = Field(default_factory=lambda: {"use": "toyworld"})
    """The source: `use` names it (toyworld, image_folder, open_images, webdataset, img2dataset, instruct_pix2pix,
    caption_table, text_corpus, interleaved), the other keys are its settings."""
    steps: tuple[dict[str, Any], ...] = ()
    """Annotators and filters, in order; `use` names one, the other keys are its own settings and `batch_size`,
    `actors`, `gpus`. Empty takes the source's default annotators."""
    compose: ComposeOptions = ComposeOptions()
    shard_rows: int = Field(default=4096, ge=1)
    """Source rows of a shard (a Parquet file), at most; the source may ask for fewer."""
    shard_mb: int = Field(default=256, ge=1)
    """Megabytes of source that a shard reads, about, at most."""
    chunk_rows: int = Field(default=64, ge=1)
    """Rows that go through the steps together, at least as many as a model's batch_size; what a crash can cost."""
    keep_masks: bool = False
    """Keep the masks of segmenters beside the captions and entities that are always kept: a build with another
    threshold then asks no model, for some ten times the space."""
    keep_answers: int = Field(default=3, ge=1)
    """Of how many last settings the answers of models are kept (`DEST/.answers`), so that going back to one asks no
    model again; 1 keeps those of the dataset that is there."""
    store_retry_s: float = Field(default=PATIENCE, ge=0)
    """Seconds for which an object store that has ceased to answer is asked again before the build ends."""
    max_refused: float = Field(default=0.5, ge=0, le=1)
    """Maximum share of rejected rows; above it, nothing is published."""

    @property
    def source_name(self) -> str:
        """The name of the source."""
        return str(self.source.get("use", "toyworld"))

    def opened_source(self, options: Mapping[str, Any] | None = None) -> Source:
        """The source with its settings; `options` are those of the section with its name. Raises ConfigError."""
        kind = load_entry(SOURCES, self.source_name, "build.source.use")
        given = {**(options or {}), **{key: value for key, value in self.source.items() if key != "use"}}
        source: Source = checked(kind, given, "build.source")
        return source

    def plain_steps(self, source: Source) -> list[dict[str, Any]]:
        """The steps as the user wrote them, or the source's defaults."""
        return [dict(step) for step in self.steps] or [{"use": use} for use in source.steps]

    def pipeline_steps(self, source: Source) -> list[PipelineStep]:
        """The validated steps of a build: each entry exists, its settings are valid, and what it needs is filled.

        Raises ConfigError with the dotted path of the error.
        """
        if not source.steps:
            if self.steps:
                raise ConfigError(
                    f"build.steps: {self.source_name} records need no annotation and take no steps; leave them out"
                )
            return []
        filled: dict[str, str] = {}  # field -> key of the step that fills it
        base = digest([self.source_name, dataclasses.asdict(source)])
        steps = []
        for index, values in enumerate(self.plain_steps(source)):
            step = self._checked_step(values, f"build.steps.{index}", source, filled, base)
            step = dataclasses.replace(step, keep=bool(step.model) and (step.fills != "masks" or self.keep_masks))
            if step.fills:
                filled[step.fills] = step.key
            steps.append(step)
        missing = [field for field in FIELDS if field not in filled]
        if missing:
            raise ConfigError(f"build.steps: no step fills {', '.join(missing)}, without which there is no record")
        return steps

    def _checked_step(
        self, values: Mapping[str, Any], path: str, source: Source, filled: Mapping[str, str], base: str
    ) -> PipelineStep:
        """`_step`; where a default step lacks a package or a model, the error says what else there is."""
        if self.steps:
            return _step(values, path, source, filled, base)
        remedy = f"{values['use']} is a default step of {self.source_name}; build.steps can list others"
        if "caption" in source.hints:
            remedy += f", for a first try without models 'build.steps={WITHOUT_MODELS}'"
        with _remedy(remedy):
            step = _step(values, path, source, filled, base)
        return dataclasses.replace(step, require=partial(_require_default, step.require, remedy))

    def settings(self, source: Source) -> dict[str, Any]:
        """Everything here that affects a record, as plain values: the key of every shard, and part of the manifest.

        Where a model runs, and with how many copies, affects nothing.
        """
        if not source.steps:
            return {}
        shaping = []
        for values in self.plain_steps(source):
            own, resources = _split(values)
            settings = checked(_settings_of(_kind(values.get("use"), "build.steps")), own, "")
            shaping.append(_shaping(str(values["use"]), settings, StepResources(**resources)))
        return {"steps": shaping, "compose": self.model_dump(mode="json")["compose"]}


class FilterStep:
    """A filter as an annotator that fills nothing: None keeps a sample, a Rejection rejects it."""

    def __init__(self, name: str, judge: Filter) -> None:
        self.name = name
        self.judge = judge

    def __call__(self, samples: Sequence[Sample]) -> list[Any]:
        return [self.judge(sample) for sample in samples]


def _step(values: Mapping[str, Any], path: str, source: Source, filled: Mapping[str, str], base: str) -> PipelineStep:
    use = values.get("use")
    kind = _kind(use, path)
    own, given = _split(values)
    resources: StepResources = _validated(StepResources, given, path)
    settings = checked(_settings_of(kind), own, path)
    is_filter = use in FILTERS
    needs = kind.needs if is_filter else FIELDS[kind.fills].needs
    unfilled = [field for field in needs if field not in filled]
    if unfilled:
        raise ConfigError(f"{path}: {use} needs {', '.join(unfilled)}; put it after a step that fills it")
    if not is_filter and kind.hint and kind.hint not in source.hints:
        raise ConfigError(
            f"{path}: {use} cannot annotate this source: it needs the hint {kind.hint!r}, which its samples do not "
            "carry; choose another annotator"
        )
    actors = (resources.actors, resources.actors) if isinstance(resources.actors, int) else resources.actors
    if not 1 <= actors[0] <= actors[1]:
        raise ConfigError(f"{path}.actors: {resources.actors} is no number of processes; give 1 or more, or [1, 8]")
    shaping = _shaping(str(use), settings, resources)
    key = digest([base, shaping, [filled[field] for field in needs]])
    if is_filter and not hasattr(kind, "settings"):
        return PipelineStep(str(use), partial(FilterStep, str(use), settings), WHOLE_SHARD, key=key)
    fills = "" if is_filter else kind.fills
    make = partial(_make, kind, dataclasses.asdict(settings))
    model = getattr(settings, "model", None)
    if model is None:
        return PipelineStep(fills or str(use), make, WHOLE_SHARD, fills, key)
    return PipelineStep(
        name=fills or str(use),
        make=make,
        batch_size=resources.batch_size,
        fills=fills,
        key=key,
        actors=actors,
        cpus=resources.cpus,
        gpus=resources.gpus,
        memory=resources.memory_gb * 1e9,
        model=str(model),
        require=getattr(settings, "require", _nothing),
    )


def _shaping(use: str, settings: Any, resources: StepResources) -> dict[str, Any]:
    """Everything of a step that shapes its answers: not where, and not how often a model runs."""
    told = {"use": use, **dataclasses.asdict(settings)}
    told.pop("device", None)
    if hasattr(settings, "identity"):  # a filter that reads files
        told |= settings.identity()
    return told | ({"batch_size": resources.batch_size} if "model" in told else {})


def _make(kind: Any, settings: Mapping[str, Any]) -> Annotator:
    annotator: Annotator = kind(**settings)
    return annotator


def _kind(use: Any, path: str) -> Any:
    """The class that a step's `use` names. Raises ConfigError."""
    load_plugins()
    registry: dict[str, str | type] = {**ANNOTATORS, **FILTERS}
    if not isinstance(use, str):
        raise ConfigError(f"{path}.use: name an annotator or a filter, one of {', '.join(sorted(registry))}")
    find_entry(registry, use, f"{path}.use")
    return load_entry(registry, use, f"{path}.use")


def _settings_of(kind: Any) -> type:
    """The settings class: that of an annotator, or the filter itself."""
    settings: type = getattr(kind, "settings", kind)
    return settings


def _split(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """An entry's own settings, and the resources of its step."""
    resources = {key: value for key, value in values.items() if key in StepResources.model_fields}
    return {key: value for key, value in values.items() if key not in resources and key != "use"}, resources


def checked(kind: type, values: Mapping[str, Any], path: str) -> Any:
    """An instance of a frozen dataclass from plain values. Raises ConfigError with the dotted path of the error."""
    known = [field.name for field in dataclasses.fields(kind)]
    for key in values:
        if key not in known:
            raise ConfigError(f"{path}.{key}: no such setting; there are {', '.join(known) or 'none'}")
    return _validated(kind, values, path)


def _validated(kind: Any, values: Mapping[str, Any], path: str) -> Any:
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([path, *map(str, first["loc"])])
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{where}: {message} (given: {first.get('input')!r})") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
