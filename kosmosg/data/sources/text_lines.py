"""Text files with one caption or document per line: .txt, .tsv, .jsonl, each also as .gz."""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, Literal, cast

from kosmosg.data.sources.base import Reader, ReadyRow, RejectedRow, SourceRow, WorkUnit, required
from kosmosg.errors import ConfigError, DataError

SUFFIXES = (".txt", ".tsv", ".jsonl")
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

    def __init__(
        self, source: str | Path, kind: str = "caption", column: str | None = None, shard_rows: int = 16_384
    ) -> None:
        if kind not in MAX_CHARACTERS:
            raise DataError(f"lines become records of kind caption or text, not {kind!r}")
        self.source = Path(source).absolute()
        self.kind = kind
        self.column = column
        self.shard_rows = shard_rows

    def describe(self) -> dict[str, Any]:
        return {"layout": "lines of text", "source": self.source.name, "column": self.column}

    def plan(self, limit: int | None) -> list[WorkUnit]:
        """Chunks of lines, file by file. Counts the lines, so it reads the source once."""
        work: list[WorkUnit] = []
        left = limit
        for name in self._files():
            path = self._path(name)
            lines = self._count(path)
            stat = path.stat()
            header = self._starts_with_header(path)
            used = lines if left is None else min(lines, left + header)
            # A file without lines is still a piece of work: it may be damaged, which reading will report.
            for start in range(0, max(used, 1), self.shard_rows):
                stop = min(start + self.shard_rows, used)
                # The last piece also reports where a damaged file ends.
                last = int(stop == lines)
                work.append(WorkUnit(len(work), ((name, start, stop, last, stat.st_size, stat.st_mtime_ns),)))
            left = None if left is None else left - max(0, used - header)
            if left == 0:
                break
        return work

    def read(self, work: WorkUnit) -> Iterator[SourceRow]:
        for item in work.items:
            name, start, stop, last = str(item[0]), int(item[1]), int(item[2]), bool(item[3])
            form = _form(self._path(name))
            try:
                with _open(self._path(name)) as file:
                    column, number = None, -1
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
                # The lines before the damage are good; the rest is lost and reported as such.
                yield _bad(f"{name}:{number + 2}", "read", "unreadable", f"{name} breaks off here: {error}")

    def _row(self, at: str, line: bytes, form: str, column: int | None) -> SourceRow | None:
        try:
            text = line.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            return _bad(at, "decode", "encoding", f"the line is not UTF-8 ({error.reason})")
        if not text.strip():
            return None
        if form == ".tsv":
            cells = text.rstrip("\r\n").split("\t")
            if (column or 0) >= len(cells):
                return _bad(
                    at, "decode", "no-caption", f"the line has {len(cells)} columns, the caption is in {column}"
                )
            text = cells[column or 0]
        elif form == ".jsonl":
            try:
                text = self._member(json.loads(text))
            except (ValueError, TypeError, KeyError) as error:
                return _bad(at, "decode", "no-caption", f"no text in this line of JSON: {' '.join(str(error).split())}")
        if self.kind == "caption":
            text = " ".join(text.split())
        if not text.strip():
            return _bad(at, "decode", "no-caption", "the caption is empty")
        if len(text) > MAX_CHARACTERS[self.kind]:
            limit = MAX_CHARACTERS[self.kind]
            return _bad(at, "decode", "too-long", f"{len(text):,} characters, a {self.kind} has at most {limit:,}")
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

    def _starts_with_header(self, path: Path) -> bool:
        try:
            with _open(path) as file:
                return self._header(_form(path), file.readline())
        except (OSError, EOFError, zlib.error):
            return False

    def _files(self) -> list[str]:
        if self.source.is_file():
            return [self.source.name]
        if not self.source.is_dir():
            raise DataError(
                f"source: there is no file or folder {self.source}; give source=FOLDER with text files in it"
            )
        files = sorted(
            path.relative_to(self.source).as_posix()
            for path in self.source.rglob("*")
            if path.is_file() and not path.name.startswith(".") and path.name.removesuffix(".gz").endswith(SUFFIXES)
        )
        if not files:
            raise DataError(f"source: no text files under {self.source}; looked for {', '.join(SUFFIXES)}, also .gz")
        return files

    def _path(self, name: str) -> Path:
        return self.source if self.source.is_file() else self.source / name

    @staticmethod
    def _count(path: Path) -> int:
        lines = 0
        try:
            with _open(path) as file:
                for _ in file:
                    lines += 1
        except (OSError, EOFError, zlib.error):
            pass  # `read` will find the same damage and report it as a row
        return lines


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _form(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix


def _bad(at: str, stage: str, reason: str, message: str) -> RejectedRow:
    return RejectedRow({"id": at, "source": at.rsplit(":", 1)[0], "stage": stage, "reason": reason, "message": message})


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

    def open(self, path: Path | None) -> dict[str, Reader]:
        """One reader, of records of `kind`. Raises DataError without a path."""
        return {self.kind: TextLinesReader(required(path), self.kind, self.column, self.shard_rows)}
