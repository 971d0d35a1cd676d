"""The contents of a dataset: the kinds of records as versioned Arrow schemas, and rejected rows.

A kind has a name (`composition`, `edit`, `caption`, `text`, `interleaved`); a record is a plain dict whose keys are the
fields of that kind's schema. Images are encoded bytes (see `kosmosg.data.image_bytes`). Backgrounds are removed at load
time with crop and mask, so only one crop is stored.

`RECORD_KINDS` is all that the rest of the code knows about a kind: the mixture, the planner, the collates and the
contact sheet read it. To add a kind, add an entry here or in a plug-in (`kosmosg.plugins`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import pyarrow as pa

from kosmosg.data.precomputed import POSTERIOR, TEXT_STATES
from kosmosg.errors import DataError
from kosmosg.plugins import load_plugins

SCHEMA_VERSION = 1


class Entity(TypedDict):
    """One thing that the caption names and the image shows."""

    text: str  # the words as they stand in the caption: caption[start:end]
    start: int  # character offset into the caption
    end: int  # one past the last character
    box: list[int]  # square x0, y0, x1, y1 in pixels of the image, exclusive at the end
    crop: bytes  # encoded square image, background kept
    mask: bytes  # 1-bit PNG of the crop's size, True on the entity
    score: float  # mean of the segmenter's probability over the mask, 0 to 1


class CompositionRecord(TypedDict):
    """An image, its caption and its entities, from which stage 3 composes prompts."""

    id: str
    caption: str
    image: bytes
    width: int
    height: int
    entities: list[Entity]
    source: str  # where the image came from: a path or URL
    sha256: str  # of the source file
    captioner: str  # the annotators that made the record, with model id
    entity_finder: str
    segmenter: str
    provenance: str | None  # JSON: licence, author, url, as far as the source tells


class QuarantineRow(TypedDict):
    """A row that did not become a record, kept with the dataset so that nothing is lost silently."""

    id: str
    source: str
    stage: str  # decode, caption, entities, masks, compose
    reason: str  # a short reason code, such as "unreadable" or "no-entity"
    message: str  # one sentence for the user


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


ENTITY = pa.struct(
    [
        _required("text", pa.string()),
        _required("start", pa.int32()),
        _required("end", pa.int32()),
        _required("box", pa.list_(pa.int32())),
        _required("crop", pa.binary()),
        _required("mask", pa.binary()),
        _required("score", pa.float32()),
    ]
)


@dataclass(frozen=True)
class SampleKind:
    """How one stage reads the records of a kind."""

    share: float
    """Default share of the stage's mixture, in samples."""
    words: int
    """Text tokens of a typical sample."""
    images: int
    """Images in the prompt of a typical sample."""
    name: str = ""
    """Its name in `data.weights`, if that is not the kind's."""
    needs_image: bool = False
    """Whether the records must have an image."""
    template: str = ""
    """Another sample kind whose template applies, if it has none of its own."""
    fields: tuple[str, ...] = ()
    """Fields that the stage reads, of this kind's records and of those that serve it; empty reads all."""


@dataclass(frozen=True)
class RecordKind:
    """One kind of record."""

    schema: pa.Schema
    images: tuple[str, ...] = ()
    """Fields with a whole image, in the order in which to show them; empty for text."""
    target: str = ""
    """Field with the image that stage 3 learns to generate; empty for kinds that it does not read."""
    samples: Mapping[str, SampleKind] = field(default_factory=dict)
    """How each stage that trains on it reads it: `pretrain`, `align`, `instruct`."""
    folder: str = ""
    """Name of its dataset's folder and of the setting `data.<folder>`, if that is not the kind's."""
    stored_as: str = ""
    """Kind that its manifest names, if that is another kind."""
    served_by: tuple[str, ...] = ()
    """Other kinds whose records can be used if this one has no dataset, best first."""


# Tokens that a typical caption has.
_CAPTION_WORDS = 20

# Where the words of a record are (`kosmosg.data.templates.instruct.caption_of`), and its id for messages.
_WORDS = ("id", "text", "caption")

RECORD_KINDS: dict[str, RecordKind] = {
    "composition": RecordKind(
        pa.schema(
            [
                _required("id", pa.string()),
                _required("caption", pa.string()),
                _required("image", pa.binary()),
                _required("width", pa.int32()),
                _required("height", pa.int32()),
                _required("entities", pa.list_(ENTITY)),
                _required("source", pa.string()),
                _required("sha256", pa.string()),
                _required("captioner", pa.string()),
                _required("entity_finder", pa.string()),
                _required("segmenter", pa.string()),
                pa.field("provenance", pa.string()),  # JSON: licence, author, url, as far as the source tells
            ]
        ),
        images=("image",),
        target="image",
        # Paper: composition, editing and captioned images 2:2:1. Typical: two entities with their images.
        samples={"instruct": SampleKind(share=2, words=36, images=2)},
    ),
    "edit": RecordKind(
        pa.schema(
            [
                _required("id", pa.string()),
                _required("caption", pa.string()),  # of the image before
                _required("instruction", pa.string()),
                _required("before", pa.binary()),
                _required("after", pa.binary()),
                _required("source", pa.string()),
                pa.field("provenance", pa.string()),  # JSON: licence, author, url, as far as the source tells
            ]
        ),
        images=("before", "after"),
        target="after",
        samples={"instruct": SampleKind(share=2, words=28, images=1)},
    ),
    "text": RecordKind(
        pa.schema(
            [_required("id", pa.string()), _required("text", pa.string()), _required("source", pa.string())],
        ),
        # Paper: batches of 0.5M tokens of text, 0.5M of captioned images, 0.2M of interleaved documents.
        samples={"pretrain": SampleKind(share=5, words=700, images=0, fields=_WORDS)},
        served_by=("caption", "composition"),
    ),
    "caption": RecordKind(
        pa.schema(
            [
                _required("id", pa.string()),
                _required("text", pa.string()),
                pa.field("image", pa.binary()),  # null in text-only captions, which are enough for stage 2
                pa.field("width", pa.int32()),
                pa.field("height", pa.int32()),
                _required("source", pa.string()),
                pa.field("provenance", pa.string()),  # JSON: licence, author, url, as far as the source tells
            ]
        ),
        images=("image",),
        target="image",
        samples={
            "pretrain": SampleKind(share=5, words=24, images=1, needs_image=True, fields=(*_WORDS, "image")),
            "align": SampleKind(share=1, words=_CAPTION_WORDS, images=0, fields=_WORDS),
            "instruct": SampleKind(
                share=1, words=_CAPTION_WORDS, images=0, name="t2i", needs_image=True, fields=(*_WORDS, "image")
            ),
        },
        folder="captions",
        served_by=("composition",),
    ),
    "interleaved": RecordKind(
        pa.schema(
            [
                _required("id", pa.string()),
                _required(  # in reading order; of each part, exactly one of the two is set
                    "parts", pa.list_(pa.struct([pa.field("text", pa.string()), pa.field("image", pa.binary())]))
                ),
                _required("source", pa.string()),
                pa.field("provenance", pa.string()),  # JSON: licence, author, url, as far as the source tells
            ]
        ),
        samples={"pretrain": SampleKind(share=2, words=300, images=3)},
        served_by=("composition",),
    ),
    # Columns of another dataset (`kosmosg.data.precomputed`): a row for each of its records, in the same order.
    POSTERIOR: RecordKind(pa.schema([_required("id", pa.string()), pa.field(POSTERIOR, pa.binary())])),
    TEXT_STATES: RecordKind(pa.schema([_required("id", pa.string()), _required(TEXT_STATES, pa.binary())])),
}


def stage_samples(stage: str) -> dict[str, tuple[str, SampleKind]]:
    """What a stage can train on: (record kind, how it is read) by the name in `data.weights`."""
    load_plugins()
    found = ((kind, record.samples[stage]) for kind, record in RECORD_KINDS.items() if stage in record.samples)
    return {sample.name or kind: (kind, sample) for kind, sample in found}


def dataset_folder(kind: str) -> str:
    """The folder name of a kind's dataset. Raises DataError for an unknown kind."""
    return record_kind(kind).folder or kind


def record_kind(kind: str) -> RecordKind:
    """The entry of a kind, including those of plug-ins. Raises DataError for an unknown kind."""
    load_plugins()
    if kind not in RECORD_KINDS:
        raise DataError(f"unknown kind of record {kind!r}; there are {', '.join(RECORD_KINDS)}")
    return RECORD_KINDS[kind]


QUARANTINE = pa.schema([_required(name, pa.string()) for name in ("id", "source", "stage", "reason", "message")])


def schema(kind: str) -> pa.Schema:
    """The Arrow schema of a kind, with its name and version in the metadata. Raises DataError for an unknown kind."""
    form: pa.Schema = record_kind(kind).schema
    return form.with_metadata({"kosmosg.kind": kind, "kosmosg.schema_version": str(SCHEMA_VERSION)})


def table(kind: str, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Records of one kind as an Arrow table.

    Raises DataError if a row has missing or additional fields, or a value of the wrong type, so that errors are found
    when writing and not by the first reader.
    """
    form = schema(kind)
    rows = list(rows)
    expected = set(form.names)
    required = {field.name for field in form if not field.nullable}
    for row in rows:
        surplus, missing = sorted(set(row) - expected), sorted(required - set(row))
        if surplus or missing:
            raise DataError(
                f"record {row.get('id')!r} does not fit kind {kind!r}: surplus {surplus}, missing {missing}"
            )
    try:
        made = pa.Table.from_pylist(rows, schema=form)
        made.validate(full=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"records do not fit kind {kind!r}: {error}") from error
    for name in form.names:
        if not form.field(name).nullable and made.column(name).null_count:
            raise DataError(f"records of kind {kind!r} need a value in every row of {name!r}")
    return made


def check_caption_spans(caption: str, entities: Sequence[Mapping[str, Any]]) -> None:
    """Check that every entity's text is at its offsets, where prompts are split. Raises DataError."""
    for entity in entities:
        found = caption[entity["start"] : entity["end"]]
        if found != entity["text"]:
            raise DataError(
                f"entity {entity['text']!r} should be at {entity['start']}:{entity['end']} of {caption!r}, "
                f"where the caption reads {found!r}"
            )
