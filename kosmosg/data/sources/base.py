"""Sources: each reader knows one real layout of source data, splits it into pieces of work, and reads a piece.

`SOURCES` names them all; a plug-in adds its own (`kosmosg.plugins`).

The split depends on the source alone, never on how many workers there are, so the same source gives the same shards.
Planning happens on the driver and is light (names, sizes, counts); reading happens wherever the piece is sent.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from kosmosg.data.annotators.base import Sample
from kosmosg.data.records import QuarantineRow
from kosmosg.errors import DataError


@dataclass(frozen=True)
class WorkUnit:
    """One shard's worth of source: what to read, and enough about it to notice a change (sizes, times)."""

    index: int  # of the shard
    items: tuple[tuple[str | int, ...], ...]  # what the reader needs, plain values

    def digest(self) -> str:
        """A hash that changes when what is to be read changes."""
        return hashlib.sha256(json.dumps(self.items, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class ReadyRow:
    """A record that needs no annotating: a caption, an edit."""

    record: Mapping[str, Any]


@dataclass(frozen=True)
class RejectedRow:
    """A source row that cannot be read."""

    refusal: QuarantineRow


SourceRow = Sample | ReadyRow | RejectedRow


class Reader(Protocol):
    """One layout of source data. Readers are small and picklable."""

    kind: str  # of the records that come of it
    annotated: bool  # whether it gives samples for the annotators, or ready records

    def describe(self) -> dict[str, Any]:
        """What goes into the manifest and the key of every shard: layout, place, settings."""
        ...

    def plan(self, limit: int | None) -> list[WorkUnit]:
        """The pieces of work, in order of their index. Raises DataError when there is nothing to read."""
        ...

    def read(self, work: WorkUnit) -> Iterator[SourceRow]:
        """The rows of one piece, in a fixed order. A bad row is a `RejectedRow`, never an exception."""
        ...


class Source(Protocol):
    """A source as it is chosen: a frozen dataclass, whose fields are what `build.source` may say beside `use`."""

    steps: ClassVar[tuple[str, ...]]
    """Annotators that fill its samples where the build names none; empty where its records are ready."""
    hints: ClassVar[tuple[str, ...]]
    """What its samples carry for annotators (`Sample.hints`)."""

    def open(self, path: Path | None) -> dict[str, Reader]:
        """The readers, by the name of their dataset's folder. `path` is the setting `source` or None.

        Raises DataError where a path is needed (`required`), ConfigError where none can be read.
        """
        ...


SOURCES: dict[str, str | type] = {
    "image_folder": "kosmosg.data.sources.image_folder:ImageFolder",
    "text_lines": "kosmosg.data.sources.text_lines:TextLines",
}
"""Word of `build.source.use` -> class or `module:class`. A plug-in adds its own (`kosmosg.plugins`)."""


def required(path: Path | None) -> Path:
    """The path to read. Raises DataError where none was given."""
    if path is None:
        raise DataError("source: say what to read, for example source=my_photos")
    return path


def digest(text: str) -> str:
    """sha256 of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()
