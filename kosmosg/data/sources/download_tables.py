"""img2dataset's form `parquet`: a file `00000.parquet` with a row for every URL, its image in a column of bytes."""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kosmosg.data.files.source_files import FileEntry, SourceFiles
from kosmosg.data.sources import download_shards
from kosmosg.data.sources.base import Item, SourceRow, rejected
from kosmosg.data.sources.captioned_files import HASHES, CaptionedFiles, checksum_agrees, kept_as_downloaded
from kosmosg.data.sources.download_shards import SHARD_SUFFIXES, texts
from kosmosg.data.sources.image_rows import BadRow, guarded, refused_item

IMAGE_COLUMNS = ("jpg", "png", "webp", "jpeg", "avif")
"""Names of the column of images: img2dataset names it after the format that it encodes."""
_LOOKED_AT = 32  # rows of a shard by which it is known whether images were encoded anew
_BATCH = 16  # rows that are decoded at once


class DownloadTables:
    """Parquet files with images: what is in them, and how rows are read.

    Args:
        files: of the source.
        captioned: how rows of the table become rows of the build.
    """

    def __init__(self, files: SourceFiles, captioned: CaptionedFiles) -> None:
        self.files = files
        self.captioned = captioned

    def items(self) -> Iterator[Item]:
        """One item for each row group, the smallest piece that can be read; img2dataset writes 100 rows into one."""
        for shard in download_shards.shards(self.files.walk(SHARD_SUFFIXES)):
            if shard.table is not None and shard.finished:
                yield from self._shard_items(shard.table)
            elif shard.table is not None:
                yield download_shards.unfinished(shard, shard.table)

    def _shard_items(self, table: FileEntry) -> Iterator[Item]:
        place, stamp = table.path, table.stamp
        try:
            with self.files.open(place) as file:
                parquet = pq.ParquetFile(file, pre_buffer=False)
                column = image_column(parquet)
                if column is None or "key" not in parquet.schema_arrow.names:
                    what = "column of images" if column is None else "column key"
                    names = ", ".join(parquet.schema_arrow.names[:12])
                    raise BadRow("malformed", f"{place} has no {what}; it has {names}")
                again = _repeated(texts(parquet.read(["key"]).column("key")))
                groups = [parquet.metadata.row_group(number) for number in range(parquet.num_row_groups)]
                compare = self._compares(parquet, column)
        except BadRow as error:
            yield refused_item(place, place, error.reason, str(error), stamp)
            return
        except (pa.ArrowException, OSError) as error:
            message = f"{place} cannot be read ({str(error).splitlines()[0]})"
            yield refused_item(place, place, "unreadable", message, stamp)
            return
        start = 0
        for group in groups:
            rows = group.num_rows
            extra = {"compare": compare, "again": [row for row in again if start <= row < start + rows]}
            size = group.total_byte_size
            yield Item(f"{place}:{start}", place, start, rows, rows, size, stamp, json.dumps(extra))
            start += rows

    def _compares(self, parquet: Any, column: str) -> bool:
        if self.captioned.checksums != "auto":
            return self.captioned.checksums == "compare"
        hashes = [name for name in HASHES if name in parquet.schema_arrow.names]
        if not hashes:
            return False
        batch = next(parquet.iter_batches(_LOOKED_AT, columns=[column, *hashes]), None)
        agree = []
        for row in [] if batch is None else batch.to_pylist():
            if row[column] is not None:
                agree.append(checksum_agrees(row.pop(column), row))
        return kept_as_downloaded(agree)

    def read(self, item: Item) -> Iterator[SourceRow]:
        """The rows of one item; those that a damaged file does not give are refused one by one, so that all count."""
        told = json.loads(item.extra)
        row, end = item.start, item.start + item.length
        try:
            with self.files.open(item.place) as file:
                parquet = pq.ParquetFile(file, pre_buffer=False)
                for values in self._rows(parquet, item.start, item.length):
                    yield self._row(item.place, row, values, told["compare"], row in told["again"])
                    row += 1
            message = f"{item.place} has changed since it was listed: it has only {row:,} rows"
        except (pa.ArrowException, OSError) as error:
            message = f"row {row} of {item.place} cannot be read ({str(error).splitlines()[0]})"
        for lost in range(row, end):
            yield rejected(f"{item.place}@{lost}", item.place, "unreadable", message, stage="read")

    def _rows(self, parquet: Any, start: int, count: int) -> Iterator[dict[str, Any]]:
        """Rows as plain values; texts are bytes still, since they may be anything."""
        column = image_column(parquet)
        known = ("key", "status", "error_message", "exif", *HASHES, self.captioned.caption or "caption")
        origin = ("url", "license", "licence", "author", "creator", "artist", "title")
        names = parquet.schema_arrow.names
        columns = [name for name in names if name in known or name == column or name.lower() in origin]
        first = 0
        for number in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(number).num_rows
            if first + rows > start and first < start + count:
                at = first
                for batch in parquet.iter_batches(_BATCH, row_groups=[number], columns=columns):
                    values = [_plain(batch.column(name)) for name in columns]
                    for index in range(batch.num_rows):
                        if start <= at + index < start + count:
                            yield dict(zip(columns, (value[index] for value in values), strict=True))
                    at += batch.num_rows
            first += rows

    def _row(self, place: str, number: int, values: dict[str, Any], compare: bool, again: bool) -> SourceRow:
        key, status, error = (_text(values.get(name)) for name in ("key", "status", "error_message"))
        name = f"{place}/{key}"
        if not key:
            return rejected(f"{place}@{number}", place, "malformed", f"row {number} of {place} has no key")
        if again:
            message = f"the key {key!r} stands in {place} a second time, in row {number}"
            return rejected(f"{name}@{number}", place, "duplicate", message)
        image = next((values[column] for column in IMAGE_COLUMNS if values.get(column) is not None), None)
        if image is None or status not in ("", "success"):
            return rejected(name, place, "failed-download", download_shards.failure(status, error))
        meta = {column: _text(value) for column, value in values.items() if column not in IMAGE_COLUMNS}
        # As it stands: what is not UTF-8 is refused, not mended.
        given = values.get(self.captioned.caption or "caption")
        caption = given if isinstance(given, bytes) else None

        def make() -> SourceRow:
            return self.captioned.told_row(name, place, name, image, caption, meta, compare)

        return guarded(name, place, make)


def image_column(parquet: Any) -> str | None:
    """The column of encoded images of a Parquet file, None where there is none."""
    schema = parquet.schema_arrow
    kinds = {name: schema.field(name).type for name in IMAGE_COLUMNS if name in schema.names}
    binary = (name for name, kind in kinds.items() if pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
    return next(binary, None)


def _repeated(keys: list[str]) -> list[int]:
    """Rows whose key stands in a row before."""
    seen: set[str] = set()
    again = []
    for row, key in enumerate(keys):
        if key in seen:
            again.append(row)
        seen.add(key)
    return again


def _plain(column: Any) -> list[Any]:
    if pa.types.is_string(column.type):
        column = column.cast(pa.binary())
    elif pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    values: list[Any] = column.to_pylist()
    return values


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
