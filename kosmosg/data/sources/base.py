"""Sources: each reader knows one real layout of source data, lists what there is to read, and reads a part of it.

`SOURCES` lists all sources; plug-ins can add more (`kosmosg.plugins`).

A listing is a stream of items: plain values, one for each image, range of lines or row group, so that nine million of
them never have to be in memory at once. How items are grouped into shards is the build's business and depends on the
listing alone, never on how many workers there are. Listing is light (names, sizes, times); reading happens wherever the
items are sent.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

from kosmosg.data.annotators.base import Sample
from kosmosg.data.records import QuarantineRow
from kosmosg.errors import DataError


class Item(NamedTuple):
    """A part of the source that is read as one, and enough about it to notice a change. Plain values only."""

    key: str
    """Unique within the source and stable from build to build, such as a relative path."""
    place: str
    """File, relative to the source; what else it means is the reader's business."""
    start: int = 0
    """First byte, line or row."""
    length: int = 0
    """Bytes, lines or rows; 0: all of the file."""
    rows: int = 1
    """Rows that come of it, about."""
    size: int = 0
    """Bytes that are read, about."""
    stamp: str = ""
    """Changes when the content does: size and time, a checksum, an ETag."""
    extra: str = ""
    """JSON for the reader: what the listing knows of it (rotation, licence, labels)."""


@dataclass(frozen=True)
class ReadyRow:
    """A record that needs no annotation: a caption, an edit."""

    record: Mapping[str, Any]


@dataclass(frozen=True)
class RejectedRow:
    """A source row that cannot be read."""

    refusal: QuarantineRow


SourceRow = Sample | ReadyRow | RejectedRow


class Reader(Protocol):
    """One layout of source data. Readers are small and picklable."""

    kind: str
    """Of the records that come of it."""
    annotated: bool
    """Whether it gives samples for the annotators, or ready records."""
    shuffled: bool
    """Whether the build deals its items to shards by a hash of their keys; false keeps the order of the listing."""
    shard_rows: int
    """Rows of a shard, at most; 0 leaves it to the build."""

    def describe(self) -> dict[str, Any]:
        """What goes into the manifest and the key of every shard: layout, place, settings."""
        ...

    def items(self) -> Iterator[Item]:
        """What there is to read, as a stream in a fixed order; memory must not grow with it.

        Raises DataError when there is nothing to read, or when the source has another layout: with what was expected
        and what was found.
        """
        ...

    def read(self, items: Sequence[Item]) -> Iterator[SourceRow]:
        """The rows of some items, in their order. A bad row is a `RejectedRow`, never an exception."""
        ...


class Source(Protocol):
    """A source with its settings: a frozen dataclass whose fields are the settings that `build.source` accepts."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    steps: ClassVar[tuple[str, ...]]
    """Default annotators, used if the build lists no steps; empty if its records are ready."""
    hints: ClassVar[tuple[str, ...]]
    """Hints that its samples have for annotators (`Sample.hints`)."""

    def open(self, path: str | None) -> dict[str, Reader]:
        """The readers, by the name of their dataset's folder. `path` is the setting `source`, a path or URL, or None.

        Raises DataError if a path is needed (`required`), ConfigError if the source cannot read one.
        """
        ...


SOURCES: dict[str, str | type] = {
    "image_folder": "kosmosg.data.sources.image_folder:ImageFolder",
    "webdataset": "kosmosg.data.sources.webdataset:WebDataset",
    "img2dataset": "kosmosg.data.sources.img2dataset:Img2Dataset",
    "open_images": "kosmosg.data.sources.open_images:OpenImages",
    "instruct_pix2pix": "kosmosg.data.sources.instruct_pix2pix:InstructPix2Pix",
    "caption_table": "kosmosg.data.sources.caption_table:CaptionTable",
    "text_corpus": "kosmosg.data.sources.text_corpus:TextCorpus",
    "interleaved": "kosmosg.data.sources.interleaved:Interleaved",
}
"""Value of `build.source.use` -> class or `module:class`. Plug-ins can add more (`kosmosg.plugins`)."""


def required(path: str | None) -> str:
    """The path or URL to read. Raises DataError where none was given."""
    if not path:
        raise DataError("source: say what to read, for example source=my_photos or source=s3://bucket/photos")
    return path


def rejected(key: str, place: str, reason: str, message: str, stage: str = "decode") -> RejectedRow:
    """A row that cannot be read; `message` is one sentence."""
    return RejectedRow({"id": key, "source": place, "stage": stage, "reason": reason, "message": message})


def limited(items: Iterable[Item], limit: int | None) -> Iterator[Item]:
    """Items of about `limit` rows; one of many rows is shortened where its length is in rows."""
    left = limit
    for item in items:
        if left is not None:
            if left <= 0:
                return
            if item.rows > left and item.length == item.rows:
                item = item._replace(rows=left, length=left)
            left -= item.rows
        yield item


def digest(text: str) -> str:
    """sha256 of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()
