"""Sources: each reader knows one real layout of source data, splits it into pieces of work, and reads a piece.

`SOURCES` names them all; a plug-in adds its own (`kosmosg.plugins`).

The split depends on the source alone, never on how many workers there are, so the same source gives the same shards.
Planning happens on the driver and is light (names, sizes, counts); reading happens wherever the piece is sent.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from kosmosg.data.annotators.base import Sample
from kosmosg.data.records import QuarantineRow
from kosmosg.errors import DataError
from kosmosg.plugins import find_entry


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


@dataclass(frozen=True)
class SourceEntry:
    """How a source is opened."""

    open: str
    """`module:function`, from `SourceSettings` to readers by the name of their dataset's folder."""
    is_annotated: bool = True
    """Its rows are images for the annotators, not records that are ready."""
    is_generated: bool = False
    """It makes its rows itself, so there is no path to read, and each of its datasets has a folder of its own."""


SOURCES: dict[str, SourceEntry] = {
    "photos": SourceEntry("kosmosg.data.sources.image_folder:open_image_folder"),
    "lines": SourceEntry("kosmosg.data.sources.text_lines:open_text_lines", is_annotated=False),
}
"""Word of the setting `build.reader` -> source."""


@dataclass(frozen=True)
class SourceSettings:
    """What a user may choose; a source reads what concerns it."""

    path: Path | None = None
    """File or folder to read; None for sources that make their rows."""
    kind: str = "caption"
    """Kind of records, where a source can make several."""
    column: str | None = None
    """Column or key that holds the text."""
    shard_rows: int | None = None
    """Source rows in a shard, about; None takes what suits the source."""
    square: bool = True
    """Cut the middle square of every image first."""
    working_size: int = 1024
    """Longest side in pixels at which images are annotated."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The section of the experiment that has the source's name."""

    def required_path(self) -> Path:
        """The path. Raises DataError where none was given."""
        if self.path is None:
            raise DataError("source: say what to read, for example source=my_photos")
        return self.path


def open_source(name: str, settings: SourceSettings) -> dict[str, Reader]:
    """The readers of a source, by the name of their dataset's folder.

    Raises:
        ConfigError: there is no such source, or its options are wrong.
        DataError: it needs a path and has none.
    """
    module, _, function = find_entry(SOURCES, name, "build.reader").open.partition(":")
    readers: dict[str, Reader] = getattr(import_module(module), function)(settings)
    return readers


def digest(text: str) -> str:
    """sha256 of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()
