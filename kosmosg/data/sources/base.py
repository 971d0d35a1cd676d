"""The source protocol: a reader for one layout of source data splits it into pieces of work, and reads a piece.

`SOURCES` lists all sources; plug-ins can add more (`kosmosg.plugins`).

The split depends only on the source, never on the number of workers, so the same source gives the same shards.
Planning happens on the driver and is cheap (names, sizes, counts); reading happens wherever a piece is sent.
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
    """The source data of one shard: what to read, and enough about it to notice changes (sizes, times)."""

    index: int  # of the shard
    items: tuple[tuple[str | int, ...], ...]  # what the reader needs, plain values

    def digest(self) -> str:
        """A hash that changes if the source data changes."""
        return hashlib.sha256(json.dumps(self.items, separators=(",", ":")).encode()).hexdigest()


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

    kind: str  # of the records that come of it
    annotated: bool  # whether it gives samples for the annotators, or ready records

    def describe(self) -> dict[str, Any]:
        """What goes into the manifest and the key of every shard: layout, place, settings."""
        ...

    def plan(self, limit: int | None) -> list[WorkUnit]:
        """The pieces of work, in order of their index. Raises DataError if there is nothing to read."""
        ...

    def read(self, work: WorkUnit) -> Iterator[SourceRow]:
        """The rows of one piece, in a fixed order. A bad row is a `RejectedRow`, never an exception."""
        ...


class Source(Protocol):
    """A source with its settings: a frozen dataclass whose fields are the settings that `build.source` accepts."""

    steps: ClassVar[tuple[str, ...]]
    """Default annotators, used if the build lists no steps; empty if its records are ready."""
    hints: ClassVar[tuple[str, ...]]
    """Hints that its samples have for annotators (`Sample.hints`)."""

    def open(self, path: Path | None) -> dict[str, Reader]:
        """The readers, by the name of their dataset's folder. `path` is the setting `source` or None.

        Raises DataError if a path is needed (`required`), ConfigError if the source cannot read one.
        """
        ...


SOURCES: dict[str, str | type] = {
    "image_folder": "kosmosg.data.sources.image_folder:ImageFolder",
    "text_lines": "kosmosg.data.sources.text_lines:TextLines",
}
"""Value of `build.source.use` -> class or `module:class`. Plug-ins can add more (`kosmosg.plugins`)."""


def required(path: Path | None) -> Path:
    """The path to read. Raises DataError if none was given."""
    if path is None:
        raise DataError("source: say what to read, for example source=my_photos")
    return path


def digest(text: str) -> str:
    """sha256 of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()
