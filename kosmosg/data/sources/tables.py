"""Rows of tables in any form: Parquet, CSV, TSV, JSON lines or plain lines, the latter four also compressed.

What a table must have is the business of the source that reads it: it looks at a file's `TableHead` while the files are
listed, and either says which columns it takes or refuses the file. A source where no file fits is refused as a whole.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from kosmosg.data.files.csv_records import read_records, record_ranges, text
from kosmosg.data.files.line_ranges import (
    PACKED,
    BrokenOffError,
    common_width,
    form_of,
    growing,
    line_ranges,
    read_lines,
    sample_lines,
)
from kosmosg.data.files.parquet_ranges import group_ranges, parquet_head, read_rows
from kosmosg.data.files.source_files import FileEntry, SourceFiles
from kosmosg.data.sources.base import Item, RejectedRow, rejected
from kosmosg.errors import DataError

_SAMPLES = 20
_FIRST = 16  # rows of the first item of a source
FORMS = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson", ".txt")


@dataclass(frozen=True)
class TableHead:
    """What one file of a table has."""

    path: str
    form: str
    names: list[str]
    """Of the columns; "0", "1", ... where the file has no header."""
    header: bool = False
    """Whether its first line names the columns."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """Some of its first rows; of Parquet only columns that hold no bytes, lists or structs."""
    types: Mapping[str, Any] = field(default_factory=dict)
    """Arrow types of Parquet."""


@dataclass(frozen=True)
class Fitting:
    """How a source reads one file."""

    columns: Sequence[str]
    """Those it takes."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """Plain values that come back with every row."""
    rows: int = 1024
    """Rows of an item, at most."""
    row_bytes: int = 0
    """What a row costs beside the table, such as an image file."""


class FoundRow(NamedTuple):
    """One row, or why there is none."""

    id: str
    place: str
    values: dict[str, Any] | None
    told: Mapping[str, Any]
    """Of the `Fitting`."""
    reason: str = ""
    message: str = ""

    def refused(self, reason: str = "", message: str = "", stage: str = "read") -> RejectedRow:
        """This row as a refusal; by default for its own reason."""
        return rejected(self.id, self.place, reason or self.reason, message or self.message, stage=stage)


class Tables:
    """All files of some forms under a source.

    Args:
        files: where they are.
        forms: of `FORMS`, those that are looked for.
        longest: bytes of a line, at most.
        header: whether CSV and TSV files have a header; None decides by `known`.
        known: names of columns, in lower case, of which a header has one at least.
        item_bytes: bytes of an item, at most.
    """

    def __init__(
        self,
        files: SourceFiles,
        forms: Sequence[str],
        longest: int,
        header: bool | None = None,
        known: Collection[str] = (),
        item_bytes: int = 1 << 25,
    ) -> None:
        self.files = files
        self.forms = tuple(forms)
        self.longest = longest
        self.header = header
        self.known = frozenset(known)
        self.item_bytes = item_bytes

    def items(self, fit: Callable[[TableHead], Fitting]) -> Iterator[Item]:
        """Ranges of rows, file by file. A file that does not fit is an item too, which reads as one refusal.

        Args:
            fit: raises DataError for a file that is no such table.

        Raises DataError when no file fits.
        """
        refused: list[Item] = []
        first: DataError | None = None
        fits = False
        for entry in self._entries():
            try:
                head = self.head(entry)
                fitting = fit(head)
            except DataError as error:
                first = first or error
                extra = json.dumps({"problem": str(error)})
                refused.append(Item(entry.path, entry.path, 0, 0, 1, 0, entry.stamp, extra))
            else:
                yield from refused
                refused = []
                yield from self._ranges(entry, head, fitting, growing(fitting.rows if fits else _FIRST, fitting.rows))
                fits = True
            if fits:
                yield from refused
                refused = []
        if first is not None and not fits:
            raise DataError(f"source: {first}")
        if not fits:
            raise DataError(f"source: no tables under {self.files.root}; looked for {', '.join(self.forms)}")

    def rows(self, items: Sequence[Item]) -> Iterator[FoundRow]:
        """The rows of some items, each of them once. Raises StoreError."""
        for item in _merged(items):
            extra = json.loads(item.extra)
            if "problem" in extra:
                yield FoundRow(item.key, item.place, None, {}, "malformed", extra["problem"])
            elif form_of(item.place) == ".parquet":
                yield from self._parquet_rows(item, extra)
            else:
                yield from self._line_rows(item, extra)

    def head(self, entry: FileEntry) -> TableHead:
        """What a file has. Raises DataError when it cannot be read, StoreError."""
        form = form_of(entry.path)
        if form == ".parquet":
            return self._parquet_head(entry.path)
        try:
            if form == ".csv":
                return self._csv_head(entry.path)
            lines = [line.data or b"" for line in sample_lines(self.files, entry.path, self.longest)]
        except BrokenOffError as error:
            raise DataError(f"{entry.path} cannot be read: {error}") from error
        if form == ".txt":
            return TableHead(entry.path, form, ["text"])
        if form == ".tsv":
            return self._cells_head(
                entry.path, form, [line.decode("utf-8-sig", "replace").split("\t") for line in lines]
            )
        found = [value for value in map(_parsed, lines) if isinstance(value, dict)]
        if lines and not found:
            raise DataError(f"{entry.path} holds no JSON objects, one a line")
        return TableHead(entry.path, form, list(dict.fromkeys(name for row in found for name in row)), samples=found)

    def _entries(self) -> Iterator[FileEntry]:
        suffixes = [
            form + packed for form in self.forms for packed in ("", *PACKED) if form != ".parquet" or not packed
        ]
        return self.files.walk(suffixes)

    def _parquet_head(self, path: str) -> TableHead:
        facts = parquet_head(self.files, path)
        types = dict(zip(facts.schema.names, facts.schema.types, strict=True))
        plain = [name for name, kind in types.items() if not (pa.types.is_nested(kind) or pa.types.is_binary(kind))]
        group = next((index for index, (rows, _) in enumerate(facts.groups) if rows), None)
        samples = []
        if group is not None and plain:
            rows = min(facts.groups[group][0], _SAMPLES)
            found = read_rows(self.files, path, group, 0, 0, rows, plain)
            samples = [row.values for row in found if row.values is not None]
        return TableHead(path, ".parquet", list(types), samples=samples, types=types)

    def _csv_head(self, path: str) -> TableHead:
        rows = []
        for record in read_records(self.files, path, longest=self.longest):
            if record.cells:
                rows.append([cell.encode("latin-1").decode("utf-8", "replace") for cell in record.cells])
            if len(rows) == _SAMPLES:
                break
        return self._cells_head(path, ".csv", rows)

    def _cells_head(self, path: str, form: str, rows: list[list[str]]) -> TableHead:
        if not rows:
            return TableHead(path, form, [])
        first = [cell.strip() for cell in rows[0]]
        header = self.header if self.header is not None else any(cell.lower() in self.known for cell in first)
        names = first if header else [str(index) for index in range(common_width(rows))]
        samples = [dict(zip(names, row, strict=True)) for row in rows[header:] if len(row) == len(names)]
        return TableHead(path, form, names, header, samples)

    def _ranges(self, entry: FileEntry, head: TableHead, fitting: Fitting, sizes: Iterator[int]) -> Iterator[Item]:
        extra: dict[str, Any] = {"columns": list(fitting.columns), "told": dict(fitting.told)}
        if head.form == ".parquet":
            facts = parquet_head(self.files, entry.path, fitting.columns)
            for part in group_ranges(facts, sizes, self.item_bytes):
                size = part.size + part.rows * fitting.row_bytes
                more = json.dumps({**extra, "group": part.group, "skip": part.skip})
                key = f"{entry.path}:{part.start}"
                yield Item(key, entry.path, part.start, part.rows, part.rows, size, entry.stamp, more)
            return
        extra |= {"names": head.names, "header": head.header}
        if head.form == ".csv":
            ranges = record_ranges(self.files, entry.path, sizes, self.item_bytes, self.longest)
        else:
            try:
                sample = sample_lines(self.files, entry.path, self.longest)
            except BrokenOffError:
                sample = []
            ranges = line_ranges(self.files, entry, sample, sizes, self.item_bytes)
        for lines in ranges:
            length = lines.stop - lines.start if lines.stop else 0
            size = (length or entry.size) + lines.rows * fitting.row_bytes
            key = f"{entry.path}@{lines.start}"
            yield Item(key, entry.path, lines.start, length, lines.rows, size, entry.stamp, json.dumps(extra))

    def _parquet_rows(self, item: Item, extra: Mapping[str, Any]) -> Iterator[FoundRow]:
        group, skip, columns = extra["group"], extra["skip"], extra["columns"]
        for row in read_rows(self.files, item.place, group, skip, item.start, item.length, columns):
            name = f"{item.place}:{row.number}"
            yield FoundRow(name, item.place, row.values, extra["told"], row.reason, row.message)

    def _line_rows(self, item: Item, extra: Mapping[str, Any]) -> Iterator[FoundRow]:
        form = form_of(item.place)
        stop = item.start + item.length if item.length else 0
        told = extra["told"]
        header = extra["header"] and item.start == 0
        try:
            if form == ".csv":
                for record in read_records(self.files, item.place, item.start, stop, self.longest):
                    name = f"{item.place}@{record.start}"
                    if not (header and record.start == 0):
                        row = _csv_row(record.cells, extra["names"]) if record.cells is not None else record.message
                        yield _row(name, item.place, row, told)
                return
            for line in read_lines(self.files, item.place, item.start, stop, self.longest):
                name = f"{item.place}@{line.start}"
                if line.data is None:
                    message = f"the line is longer than {self.longest:,} bytes"
                    yield FoundRow(name, item.place, None, told, "too-long", message)
                elif line.data.strip() and not (header and line.start == 0):
                    yield _row(name, item.place, _line_row(line.data, form, extra["names"]), told)
        except BrokenOffError as error:
            # The rows in front of the damage are good; what follows is lost, and said to be.
            yield FoundRow(
                f"{item.place}@{error.start}", item.place, None, told, "unreadable", f"{item.place}: {error}"
            )


def _row(name: str, place: str, found: dict[str, Any] | str | UnicodeDecodeError, told: Mapping[str, Any]) -> FoundRow:
    if isinstance(found, dict):
        return FoundRow(name, place, found, told)
    if isinstance(found, UnicodeDecodeError):
        return FoundRow(name, place, None, told, "encoding", f"the line is not UTF-8 ({found.reason})")
    return FoundRow(name, place, None, told, "malformed", found)


def _csv_row(cells: list[str], names: Sequence[str]) -> dict[str, Any] | str | UnicodeDecodeError:
    if len(cells) != len(names):
        return f"the line has {len(cells)} columns, the table has {len(names)}"
    try:
        return {name: text(cell) for name, cell in zip(names, cells, strict=True)}
    except UnicodeDecodeError as error:
        return error


def _line_row(data: bytes, form: str, names: Sequence[str]) -> dict[str, Any] | str | UnicodeDecodeError:
    try:
        line = data.decode("utf-8-sig").removesuffix("\r")
    except UnicodeDecodeError as error:
        return error
    if form == ".txt":
        return {"text": line}
    if form == ".tsv":
        # No quoting: a lone quote in a caption is text.
        cells = line.split("\t")
        if len(cells) != len(names):
            return f"the line has {len(cells)} columns, the table has {len(names)}"
        return dict(zip(names, cells, strict=True))
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"the line is no JSON: {' '.join(str(error).split())}"
    return value if isinstance(value, dict) else f"the line is JSON of a {type(value).__name__}, not of an object"


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _merged(items: Sequence[Item]) -> Iterator[Item]:
    """Items that follow each other in one file (in Parquet: in one row group) as one, so that it is read once."""
    held: Item | None = None
    for item in items:
        if held is not None and held.length and _follows(held, item):
            held = held._replace(length=item.length and held.length + item.length, rows=held.rows + item.rows)
            continue
        if held is not None:
            yield held
        held = item
    if held is not None:
        yield held


def _follows(held: Item, item: Item) -> bool:
    next_to = held.place == item.place and held.start + held.length == item.start
    return next_to and json.loads(held.extra).get("group") == json.loads(item.extra).get("group")
