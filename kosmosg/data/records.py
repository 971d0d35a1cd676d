"""What a dataset is made of: five kinds of records as versioned Arrow schemas, and the rows that were refused.

A kind is a word (`composition`, `edit`, `caption`, `text`, `interleaved`); a record is a plain dict whose keys are the
fields of that kind's schema. Images are encoded bytes (see `kosmosg.data.image_bytes`). Background removal happens at
load time from crop and mask, so one crop is stored, not two.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

import pyarrow as pa

from kosmosg.errors import DataError

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
    """An image, its caption and its entities: what stage 3 composes prompts from."""

    id: str
    caption: str
    image: bytes
    width: int
    height: int
    entities: list[Entity]
    source: str  # where the image came from: a path or address
    sha256: str  # of the source file
    captioner: str  # the annotators that made the record, with model id
    entity_finder: str
    segmenter: str


class EditRecord(TypedDict):
    """Before, instruction, after; `caption` describes the image before."""

    id: str
    caption: str
    instruction: str
    before: bytes
    after: bytes
    source: str


class CaptionRecord(TypedDict):
    """A caption, with its image where there is one (stage 2 needs only the words)."""

    id: str
    text: str
    image: bytes | None
    width: int | None
    height: int | None
    source: str


class TextRecord(TypedDict):
    """A plain document."""

    id: str
    text: str
    source: str


class Part(TypedDict):
    """A piece of an interleaved document: exactly one of the two is set."""

    text: str | None
    image: bytes | None


class InterleavedRecord(TypedDict):
    """Text and images in reading order."""

    id: str
    parts: list[Part]
    source: str


class QuarantineRow(TypedDict):
    """A row that did not become a record: kept beside the dataset so that nothing is lost without a word."""

    id: str
    source: str
    stage: str  # decode, caption, entities, masks, compose
    reason: str  # a short fixed word to count by, such as "unreadable" or "no-entity"
    message: str  # one sentence for a human


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

SCHEMAS: Mapping[str, pa.Schema] = {
    "composition": pa.schema(
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
        ]
    ),
    "edit": pa.schema(
        [
            _required("id", pa.string()),
            _required("caption", pa.string()),
            _required("instruction", pa.string()),
            _required("before", pa.binary()),
            _required("after", pa.binary()),
            _required("source", pa.string()),
        ]
    ),
    "caption": pa.schema(
        [
            _required("id", pa.string()),
            _required("text", pa.string()),
            pa.field("image", pa.binary()),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            _required("source", pa.string()),
        ]
    ),
    "text": pa.schema([_required("id", pa.string()), _required("text", pa.string()), _required("source", pa.string())]),
    "interleaved": pa.schema(
        [
            _required("id", pa.string()),
            _required("parts", pa.list_(pa.struct([pa.field("text", pa.string()), pa.field("image", pa.binary())]))),
            _required("source", pa.string()),
        ]
    ),
}

KINDS = tuple(SCHEMAS)

QUARANTINE = pa.schema([_required(name, pa.string()) for name in ("id", "source", "stage", "reason", "message")])


def schema(kind: str) -> pa.Schema:
    """The Arrow schema of a kind, with its name and version in the metadata. Raises DataError for an unknown kind."""
    if kind not in SCHEMAS:
        raise DataError(f"unknown kind of record {kind!r}; there are {', '.join(KINDS)}")
    return SCHEMAS[kind].with_metadata({"kosmosg.kind": kind, "kosmosg.schema_version": str(SCHEMA_VERSION)})


def table(kind: str, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Records of one kind as an Arrow table.

    Raises DataError when a row has a field too many or too few, or a value of the wrong type: a writer's fault is
    found where it happens, not by the first reader.
    """
    form = schema(kind)
    rows = list(rows)
    expected = set(form.names)
    for row in rows:
        if set(row) != expected:
            surplus, missing = sorted(set(row) - expected), sorted(expected - set(row))
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
    """Every entity's text must stand at its offsets: prompts are cut at these characters. Raises DataError."""
    for entity in entities:
        found = caption[entity["start"] : entity["end"]]
        if found != entity["text"]:
            raise DataError(
                f"entity {entity['text']!r} is said to stand at {entity['start']}:{entity['end']} of {caption!r}, "
                f"where the caption reads {found!r}"
            )
