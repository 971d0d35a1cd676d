"""Large CSV files in blocks of columns: Arrow reads what is whole, and a broken line costs itself only.

Columns come as bytes: what is not UTF-8, or quoted wrongly, must not end the reading of nine million lines.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import csv as arrow_csv

from kosmosg.errors import DataError

BLOCK_BYTES = 8 << 20
_MAX_LINES_OF_ROW = 8  # a quoted title may hold line ends


@dataclass(frozen=True)
class CsvBlock:
    """Some whole rows of a file."""

    columns: dict[str, Any]
    """Arrow arrays of bytes, by name, without nulls."""
    lines: Sequence[int]
    """Number of the line of each row, from 1."""
    broken: list[tuple[int, str]]
    """Lines that are no rows: number, and how that shows."""


def csv_blocks(
    file: Any,
    names: Sequence[str],
    wanted: Sequence[str],
    skip_lines: int,
    delimiter: str = ",",
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[CsvBlock]:
    """The rows of a CSV with standard quoting, some columns of them.

    Args:
        file: open for reading bytes.
        names: of all its columns, in their order.
        wanted: names of those that are needed.
        skip_lines: 1 where the first line is a header.
        delimiter: between cells.
        block_bytes: how much is read at a time.
    """
    line, rest = 1, b""
    while True:
        data = file.read(block_bytes)
        whole, end, rest = _cut(rest + data, last=not data)
        if skip_lines and whole:
            whole = whole[whole.find(b"\n") + 1 :] if b"\n" in whole else b""
            line, skip_lines = line + 1, 0
        if whole.strip():
            yield _block(whole, names, wanted, line, delimiter)
        line += whole.count(b"\n")
        if end:
            return


def first_row(data: bytes) -> list[str]:
    """The cells of the first line of a CSV, "" cells and all; [] where it has none."""
    line = data.partition(b"\n")[0].decode("utf-8-sig", "replace").strip("\r")
    return next(csv.reader([line]), [])


def _cut(data: bytes, last: bool) -> tuple[bytes, bool, bytes]:
    """Whole lines, whether that is all, and what is left for the next block."""
    if last:
        return data, True, b""
    end = data.rfind(b"\n") + 1
    if not end and len(data) > 16 * BLOCK_BYTES:
        raise DataError(f"a line of more than {16 * BLOCK_BYTES:,} bytes: this is no CSV")
    return data[:end], False, data[end:]


def _block(data: bytes, names: Sequence[str], wanted: Sequence[str], line: int, delimiter: str) -> CsvBlock:
    rows = data.count(b"\n") + (not data.endswith(b"\n"))
    try:
        table = arrow_csv.read_csv(
            pa.py_buffer(data),
            read_options=arrow_csv.ReadOptions(column_names=list(names), use_threads=False, block_size=len(data) + 1),
            parse_options=arrow_csv.ParseOptions(delimiter=delimiter, ignore_empty_lines=False),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.binary()),
                include_columns=list(wanted),
                strings_can_be_null=False,
                check_utf8=False,
            ),
        )
    except pa.ArrowInvalid:
        return _line_by_line(data, names, wanted, line, delimiter)
    if table.num_rows != rows:  # a quote has swallowed lines, or a title holds a line end
        return _line_by_line(data, names, wanted, line, delimiter)
    columns = {name: table.column(name).combine_chunks() for name in wanted}
    return CsvBlock(columns, range(line, line + rows), [])


def _line_by_line(data: bytes, names: Sequence[str], wanted: Sequence[str], line: int, delimiter: str) -> CsvBlock:
    """The slow way, for blocks with something broken in them."""
    lines = data.splitlines(keepends=True) if b"\r" not in data else io.BytesIO(data).readlines()
    places = [names.index(name) for name in wanted]
    columns: list[list[bytes]] = [[] for _ in wanted]
    numbers: list[int] = []
    broken: list[tuple[int, str]] = []
    at = 0
    while at < len(lines):
        row, used, why = _row(lines, at, len(names), delimiter)
        if row is not None:
            for column, place in zip(columns, places, strict=True):
                column.append(row[place].encode("latin-1"))
            numbers.append(line + at)
        elif lines[at].strip():
            broken.append((line + at, why))
        at += used
    arrays = {name: pa.array(column, pa.binary()) for name, column in zip(wanted, columns, strict=True)}
    return CsvBlock(arrays, numbers, broken)


def _row(lines: Sequence[bytes], at: int, width: int, delimiter: str) -> tuple[list[str] | None, int, str]:
    """A row that begins in a line, how many lines it has, and what is wrong where it is none."""
    why = ""
    for used in range(1, min(_MAX_LINES_OF_ROW, len(lines) - at) + 1):
        # Latin-1 gives every byte back as it was.
        text = b"".join(lines[at : at + used]).decode("latin-1")
        try:
            list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
        except csv.Error as error:
            if "unexpected end" in str(error):  # a quote is open
                why = why or "a quote is opened in it and not closed"
                continue
            if used > 1:  # the open quote has met another row's
                break
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
        if len(rows) == 1 and len(rows[0]) == width:
            return rows[0], used, ""
        return None, 1, why or f"it has {len(rows[0]) if rows else 0} columns, not {width}"
    return None, 1, why
