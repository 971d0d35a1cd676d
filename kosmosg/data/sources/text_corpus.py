"""Documents: JSON lines, Parquet (FineWeb, the Pile), tables, or plain text with a document a line."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from kosmosg.data.files.source_files import SourceFiles
from kosmosg.data.sources.base import Item, Reader, ReadyRow, SourceRow, required
from kosmosg.data.sources.scores import ScoreRange, Thresholds, listed
from kosmosg.data.sources.tables import FORMS, Fitting, FoundRow, TableHead, Tables
from kosmosg.errors import ConfigError, DataError

TEXTS = ("text", "content", "raw_content", "document", "body")
_LONGEST = 1 << 25  # bytes of a line
_ITEM_ROWS = 16_384


class TextCorpusReader:
    """All documents under a source; see `TextCorpus` for what can be chosen."""

    kind = "text"
    annotated = False
    shuffled = False
    shard_rows = 0

    def __init__(self, source: str | SourceFiles, chosen: "TextCorpus") -> None:
        self.files = source if isinstance(source, SourceFiles) else SourceFiles(source)
        self.chosen = chosen
        self.thresholds = Thresholds(chosen.thresholds)
        self.tables = Tables(self.files, FORMS, _LONGEST, known=(*TEXTS, *(_lower(chosen.column))))

    def describe(self) -> dict[str, Any]:
        return {
            "layout": "text corpus",
            "source": self.files.name,
            "column": self.chosen.column,
            "id": self.chosen.id,
            "min_characters": self.chosen.min_characters,
            "max_characters": self.chosen.max_characters,
            "thresholds": self.thresholds.describe(),
        }

    def items(self) -> Iterator[Item]:
        return self.tables.items(self._fit)

    def read(self, items: Sequence[Item]) -> Iterator[SourceRow]:
        for row in self.tables.rows(items):
            yield row.refused() if row.values is None else self._row(row, row.values)

    def _fit(self, head: TableHead) -> Fitting:
        if not head.names:
            raise DataError(f"{head.path} is empty")
        lower = {name.lower(): name for name in reversed(head.names)}
        wanted = TEXTS if self.chosen.column is None else _lower(self.chosen.column)
        column = next((lower[name] for name in wanted if name in lower), None)
        if column is None:
            asked = "text (looked for " + ", ".join(TEXTS) + ")" if self.chosen.column is None else self.chosen.column
            there = listed(head.names)
            raise DataError(f"{head.path} has no column of {asked}; it has {there}; name one with build.source.column")
        if self.chosen.id is not None and self.chosen.id not in head.names:
            raise DataError(f"{head.path} has no column {self.chosen.id}; it has {listed(head.names)}")
        scores = self.thresholds.columns(head.path, head.names)
        columns = dict.fromkeys((column, *([self.chosen.id] if self.chosen.id else []), *scores))
        return Fitting([*columns], {"text": column}, _ITEM_ROWS)

    def _row(self, row: FoundRow, values: Mapping[str, Any]) -> SourceRow:
        outside = self.thresholds.judge(values)
        if outside is not None:
            return row.refused(outside.reason, outside.message, stage="scores")
        text = values.get(row.told["text"])
        if not isinstance(text, str):
            return row.refused("malformed", f"the text is a {type(text).__name__}")
        text = text.strip("\r\n")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return row.refused("encoding", f"the text is not valid Unicode ({error.reason})")
        if not text.strip():
            return row.refused("empty", "there is no text")
        if len(text) < self.chosen.min_characters:
            return row.refused("too-short", f"{len(text):,} characters, the least is {self.chosen.min_characters:,}")
        if len(text) > self.chosen.max_characters:
            return row.refused("too-long", f"{len(text):,} characters, the most is {self.chosen.max_characters:,}")
        key = row.id
        if self.chosen.id is not None:
            key = str(values.get(self.chosen.id) or "").strip()
            if not key:
                return row.refused("malformed", f"the column {self.chosen.id} is empty, but ids are taken from it")
        return ReadyRow({"id": key, "text": text, "source": row.place})


def _lower(name: str | None) -> tuple[str, ...]:
    return () if name is None else (name.lower(),)


@dataclass(frozen=True)
class TextCorpus:
    """The entry of `SOURCES`: documents, of which stage 1 learns."""

    steps: ClassVar[tuple[str, ...]] = ()
    hints: ClassVar[tuple[str, ...]] = ()

    column: str | None = None
    """Column or key of the text; null takes the first of `text`, `content`, `raw_content`, `document`, `body`."""
    id: str | None = None
    """Column or key whose values become the records' ids; they must be unique. Null takes file and place in it."""
    min_characters: int = 1
    """Shorter documents are rejected as `too-short`."""
    max_characters: int = 1_000_000
    """Longer ones as `too-long`."""
    thresholds: dict[str, ScoreRange] = field(default_factory=dict)
    """Documents whose score lies outside are rejected, by column: {language_score: {min: 0.65}}."""

    def __post_init__(self) -> None:
        if not 0 < self.min_characters <= self.max_characters:
            raise ConfigError(
                f"min_characters is {self.min_characters}, max_characters {self.max_characters}; the least is 1, "
                "and not above the most"
            )

    def open(self, path: str | None) -> dict[str, Reader]:
        """One reader, of documents. Raises DataError without a path."""
        return {"text": TextCorpusReader(required(path), self)}
