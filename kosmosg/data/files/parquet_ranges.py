"""Rows of Parquet files in ranges within a row group, so that neither a group nor a file is ever in memory.

A row group of images has hundreds of megabytes. It is decoded in small batches; rows in front of a range are decoded
and thrown away, as Parquet leaves no other way.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from kosmosg.data.files.source_files import SourceFiles
from kosmosg.errors import DataError

_BATCH_BYTES, _BATCH_ROWS = 1 << 24, 1024
_READ_AHEAD = 1 << 20
DAMAGE = (pa.ArrowException, OSError, EOFError)


class GroupRange(NamedTuple):
    """Rows of one row group."""

    group: int
    skip: int
    """Rows of the group in front of it."""
    start: int
    """Its first row, counted in the file."""
    rows: int
    size: int
    """Bytes of all columns asked for, uncompressed, about."""


class ParquetHead(NamedTuple):
    """What a file's footer says."""

    schema: pa.Schema
    groups: list[tuple[int, int]]
    """Of each row group its rows and its uncompressed bytes."""


class ParquetRow(NamedTuple):
    """One row, or why it cannot be read."""

    number: int
    """Counted in the file, from 0."""
    values: dict[str, Any] | None
    reason: str = ""
    message: str = ""


def parquet_head(files: SourceFiles, path: str, columns: Sequence[str] | None = None) -> ParquetHead:
    """The footer of a file; bytes are those of `columns`. Raises DataError when it is no Parquet file, StoreError."""
    try:
        with files.open(path) as file:
            opened = pq.ParquetFile(file)
            metadata, schema = opened.metadata, opened.schema_arrow
    except DAMAGE as error:
        raise DataError(f"{path} is no readable Parquet file: {_first_line(error)}") from error
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    return ParquetHead(schema, [(group.num_rows, _bytes(group, columns)) for group in groups])


def group_ranges(head: ParquetHead, sizes: Iterator[int], size: int) -> Iterator[GroupRange]:
    """Ranges of at most as many rows as `sizes` says, of about `size` bytes at most."""
    start = 0
    for group, (count, total) in enumerate(head.groups):
        each = total / max(count, 1)
        skip = 0
        while skip < count:
            length = min(max(min(next(sizes), int(size / max(each, 1.0))), 1), count - skip)
            yield GroupRange(group, skip, start + skip, length, int(length * each))
            skip += length
        start += count


def read_rows(
    files: SourceFiles, path: str, group: int, skip: int, start: int, length: int, columns: Sequence[str]
) -> Iterator[ParquetRow]:
    """The rows of one range, each of them once: rows that are lost with a damaged page are told one by one.

    Raises StoreError.
    """
    told = start
    try:
        for row in _rows(files, path, group, skip, start, length, columns):
            yield row
            told = row.number + 1
        message = f"{path} has fewer rows than it had when it was listed"
    except DAMAGE as error:
        message = f"{path} is damaged in row group {group}: {_first_line(error)}"
    for number in range(told, start + length):
        yield ParquetRow(number, None, "unreadable", message)


def _rows(
    files: SourceFiles, path: str, group: int, skip: int, start: int, length: int, columns: Sequence[str]
) -> Iterator[ParquetRow]:
    with files.open(path) as file:
        opened = pq.ParquetFile(file, buffer_size=_READ_AHEAD, pre_buffer=False)
        facts = opened.metadata.row_group(group)
        each = _bytes(facts, columns) / max(facts.num_rows, 1)
        batch_rows = max(min(_BATCH_ROWS, int(_BATCH_BYTES / max(each, 1.0))), 1)
        at = 0
        for batch in opened.iter_batches(batch_rows, [group], list(columns), use_threads=False):
            first, last = max(skip - at, 0), min(skip + length - at, batch.num_rows)
            if first < last:
                yield from _decoded(batch.slice(first, last - first), start + at + first - skip)
            at += batch.num_rows
            if at >= skip + length:
                return


def _decoded(batch: pa.RecordBatch, number: int) -> Iterator[ParquetRow]:
    problems: dict[int, str] = {}
    columns: dict[str, list[Any]] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            columns[name] = column.to_pylist()
        except UnicodeDecodeError:
            columns[name] = [_value(value, index, name, problems) for index, value in enumerate(column)]
    for index in range(batch.num_rows):
        if index in problems:
            yield ParquetRow(number + index, None, "encoding", problems[index])
        else:
            yield ParquetRow(number + index, {name: values[index] for name, values in columns.items()})


def _value(value: Any, index: int, name: str, problems: dict[int, str]) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        problems[index] = f"the column {name} is not UTF-8 ({error.reason})"
        return None


def _bytes(group: Any, columns: Sequence[str] | None) -> int:
    """Uncompressed bytes of some top-level columns of a row group."""
    found = (group.column(index) for index in range(group.num_columns))
    return sum(
        column.total_uncompressed_size
        for column in found
        if columns is None or column.path_in_schema.split(".", 1)[0] in columns
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
