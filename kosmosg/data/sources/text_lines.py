"""Text files with one caption or document per line: .txt, .tsv, .jsonl, each also as .gz."""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, ClassVar, Literal, cast

from kosmosg.data.sources.base import Item, Reader, ReadyRow, RejectedRow, SourceRow, rejected, required
from kosmosg.data.sources.files import SourceFiles
from kosmosg.errors import ConfigError, DataError

SUFFIXES = (".txt", ".tsv", ".jsonl")
TEXT_SUFFIXES = (*SUFFIXES, *(f"{suffix}.gz" for suffix in SUFFIXES))
COLUMNS = ("caption", "text", "prompt", "title")  # names under which captions usually stand
MAX_CHARACTERS = {"caption": 5_000, "text": 1_000_000}  # longer ones are not captions or documents, but broken files


class TextLinesReader:
    """All text files of a folder, or one file; empty lines are no rows.

    Args:
        source: folder or file.
        kind: "caption" or "text", the records to make.
        column: for a .tsv the column's name in its header, or its number from 0; for a .jsonl the key. By default the
            first of `caption`, `text`, `prompt`, `title` that exists; a .tsv without any of them has no header, and
            its first column is used.
        shard_rows: lines per shard.
    """

    annotated = False
    shuffled = False

    def __init__(
        self, source: str | Path, kind: str = "caption", column: str | None = None, shard_rows: int = 16_384
    ) -> None:
        if kind not in MAX_CHARACTERS:
            raise DataError(f"lines become records of kind caption or text, not {kind!r}")
        self.files = SourceFiles(source)
        self.kind = kind
        self.column = column
        self.shard_rows = shard_rows

    def describe(self) -> dict[str, Any]:
        return {"layout": "lines of text", "source": self.files.name, "column": self.column}

    def items(self) -> Iterator[Item]:
        """Ranges of lines, file by file. Counts the lines, so it reads the source once."""
        found = False
        for entry in self.files.walk(TEXT_SUFFIXES):
            found = True
            lines = self._count(entry.path)
            first = int(self._starts_with_header(entry.path))
            # A file without lines still is an item: it may be a damaged one, which the reading will tell.
            for start in range(first, max(lines, first + 1), self.shard_rows):
                length = max(min(self.shard_rows, lines - start), 0)
                # The last one also reports where a damaged file breaks off.
                last = json.dumps(start + length >= lines)
                key = f"{entry.path}:{start + 1}"
                yield Item(key, entry.path, start, length, max(length, 1), 0, entry.stamp, last)
        if not found:
            raise DataError(
                f"source: no text files under {self.files.root}; looked for {', '.join(SUFFIXES)}, also .gz"
            )

    def read(self, items: Sequence[Item]) -> Iterator[SourceRow]:
        for item in items:
            yield from self._lines(item.place, item.start, item.start + item.length, item.extra == "true")

    def _lines(self, name: str, start: int, stop: int, last: bool) -> Iterator[SourceRow]:
        form = _form(name)
        column, number = None, -1
        try:
            with self._open(name) as file:
                for line in file:
                    number += 1
                    if number == 0 and form == ".tsv":
                        column = self._column(line)
                    if number >= stop and not last:
                        return
                    if start <= number < stop and not (number == 0 and self._header(form, line)):
                        row = self._row(f"{name}:{number + 1}", line, form, column)
                        if row is not None:
                            yield row
        except (OSError, EOFError, zlib.error) as error:
            # The lines before the damage are good; what follows is lost, and said to be.
            yield rejected(f"{name}:{number + 2}", name, "unreadable", f"{name} breaks off here: {error}", stage="read")

    def _row(self, at: str, line: bytes, form: str, column: int | None) -> SourceRow | None:
        try:
            text = line.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            return _bad(at, "encoding", f"the line is not UTF-8 ({error.reason})")
        if not text.strip():
            return None
        if form == ".tsv":
            cells = text.rstrip("\r\n").split("\t")
            if (column or 0) >= len(cells):
                return _bad(at, "no-caption", f"the line has {len(cells)} columns, the caption is in {column}")
            text = cells[column or 0]
        elif form == ".jsonl":
            try:
                text = self._member(json.loads(text))
            except (ValueError, TypeError, KeyError) as error:
                return _bad(at, "no-caption", f"no text in this line of JSON: {' '.join(str(error).split())}")
        if self.kind == "caption":
            text = " ".join(text.split())
        if not text.strip():
            return _bad(at, "no-caption", "the caption is empty")
        if len(text) > MAX_CHARACTERS[self.kind]:
            limit = MAX_CHARACTERS[self.kind]
            return _bad(at, "too-long", f"{len(text):,} characters, a {self.kind} has at most {limit:,}")
        record: dict[str, Any] = {"id": at, "text": text.strip("\r\n"), "source": at.rsplit(":", 1)[0]}
        if self.kind == "caption":
            record |= {"image": None, "width": None, "height": None}
        return ReadyRow(record)

    def _member(self, value: Any) -> str:
        names = [self.column] if self.column is not None else [name for name in COLUMNS if name in value]
        if not names:
            raise KeyError(f"none of the keys {', '.join(COLUMNS)}; set build.source.column")
        text = value[names[0]]
        if not isinstance(text, str):
            raise TypeError(f"{names[0]!r} is a {type(text).__name__}, not a text")
        return text

    def _column(self, first: bytes) -> int:
        """The column of the caption in a .tsv with this first line."""
        cells = [cell.strip().lower() for cell in first.decode("utf-8-sig", errors="replace").split("\t")]
        if self.column is not None:
            if self.column.isdigit():
                return int(self.column)
            if self.column.lower() not in cells:
                raise DataError(
                    f"build.source.column: there is no column {self.column!r}; the first line has {', '.join(cells)}"
                )
            return cells.index(self.column.lower())
        return next((cells.index(name) for name in COLUMNS if name in cells), 0)

    def _header(self, form: str, first: bytes) -> bool:
        if form != ".tsv" or (self.column or "").isdigit():
            return False
        cells = [cell.strip().lower() for cell in first.decode("utf-8-sig", errors="replace").split("\t")]
        return self.column is not None or any(name in cells for name in COLUMNS)

    def _starts_with_header(self, name: str) -> bool:
        try:
            with self._open(name) as file:
                return self._header(_form(name), file.readline())
        except (OSError, EOFError, zlib.error):
            return False  # `read` meets the same damage, and reports it as a row

    def _count(self, name: str) -> int:
        lines = 0
        try:
            with self._open(name) as file:
                for _ in file:
                    lines += 1
        except (OSError, EOFError, zlib.error):
            pass  # `read` will find the same damage and report it as a row
        return lines

    def _open(self, name: str) -> IO[bytes]:
        file = self.files.open(name)
        return cast(IO[bytes], gzip.GzipFile(fileobj=file) if name.endswith(".gz") else file)


def _form(name: str) -> str:
    return PurePosixPath(name.removesuffix(".gz")).suffix


def _bad(at: str, reason: str, message: str) -> RejectedRow:
    return rejected(at, at.rsplit(":", 1)[0], reason, message)


@dataclass(frozen=True)
class TextLines:
    """The entry of `SOURCES`: text files with one caption or document per line."""

    steps: ClassVar[tuple[str, ...]] = ()
    hints: ClassVar[tuple[str, ...]] = ()

    kind: Literal["caption", "text"] = "caption"
    """The records to make: captions (stage 2) or plain documents (stage 1)."""
    column: str | None = None
    """Column of a .tsv (name, or number from 0) or key of a .jsonl with the text; null detects it."""
    shard_rows: int = 16_384
    """Lines per shard."""

    def __post_init__(self) -> None:
        if self.shard_rows < 1:
            raise ConfigError(f"shard_rows is {self.shard_rows}; a shard has at least 1 row")

    def open(self, path: str | None) -> dict[str, Reader]:
        """One reader, of records of `kind`. Raises DataError without a path."""
        return {self.kind: TextLinesReader(required(path), self.kind, self.column, self.shard_rows)}
