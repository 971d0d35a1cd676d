"""The books that img2dataset keeps beside its shards: which shards are finished, which rows failed and why.

A shard `00000` is a tar, a folder or a Parquet file of that name; beside tar and folder lies `00000.parquet` with a row
for every URL (`key`, `status`, `error_message`), and beside all of them `00000_stats.json`, which is written last.
"""

from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from kosmosg.data.files.source_files import FileEntry, SourceFiles
from kosmosg.data.sources.base import Item
from kosmosg.data.sources.image_rows import BadRow, refused_item

STATS = "_stats.json"
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
SHARD_SUFFIXES = (*_TAR_SUFFIXES, ".parquet", STATS)


class DownloadShard(NamedTuple):
    """The files of one shard."""

    name: str
    """Path without suffix."""
    tar: FileEntry | None
    table: FileEntry | None
    finished: bool
    """False where the shards beside it have statistics and it has none."""
    has_stats: bool


def shards(entries: Iterable[FileEntry]) -> list[DownloadShard]:
    """Tars, tables and statistics as shards, by name. In memory at once: there are thousands, not millions."""
    tars: dict[str, FileEntry] = {}
    tables: dict[str, FileEntry] = {}
    done: set[str] = set()
    counting: set[str] = set()
    for entry in entries:
        if entry.path.endswith(STATS):
            counting.add(_folder(entry.path))
            if entry.size:
                done.add(entry.path.removesuffix(STATS))
        elif entry.path.lower().endswith(".parquet"):
            tables[entry.path[: -len(".parquet")]] = entry
        else:
            suffix = next(suffix for suffix in _TAR_SUFFIXES if entry.path.lower().endswith(suffix))
            tars[entry.path[: -len(suffix)]] = entry

    def done_or_alone(name: str) -> bool:
        return name in done or _folder(name) not in counting

    return [
        DownloadShard(name, tars.get(name), tables.get(name), done_or_alone(name), name in done)
        for name in sorted({*tars, *tables})
    ]


def unfinished(shard: DownloadShard, place: FileEntry) -> Item:
    """The refusal of a shard that img2dataset did not finish."""
    stats = PurePosixPath(shard.name + STATS).name
    message = f"{place.path} is unfinished: {stats} is missing beside it; run the same img2dataset command again"
    return refused_item(place.path, place.path, "unfinished", message, place.stamp)


class TableRow(NamedTuple):
    """What the table beside a shard says of one row."""

    key: str
    status: str
    error: str


def table_rows(files: SourceFiles, table: FileEntry) -> Iterator[TableRow]:
    """All rows of such a table; only three of its columns are read. Raises BadRow when it is not one."""
    with files.open(table.path) as file:
        try:
            parquet = pq.ParquetFile(file, pre_buffer=False)
            names = parquet.schema_arrow.names
            missing = [name for name in ("key", "status") if name not in names]
            if missing:
                raise BadRow("malformed", f"{table.path} has no column {' or '.join(missing)}; it has {_some(names)}")
            columns = [name for name in ("key", "status", "error_message") if name in names]
            for batch in parquet.iter_batches(batch_size=10_000, columns=columns):
                keys, status = texts(batch.column("key")), texts(batch.column("status"))
                errors = texts(batch.column("error_message")) if "error_message" in columns else [""] * len(keys)
                yield from map(TableRow, keys, status, errors)
        except (pa.ArrowException, OSError) as error:
            raise BadRow("unreadable", f"{table.path} cannot be read ({str(error).splitlines()[0]})") from error


def failures(rows: Iterable[TableRow], place: str) -> Iterator[Item]:
    """The rows that img2dataset could not fetch or decode, in its own words."""
    for row in rows:
        if row.status != "success":
            yield refused_item(f"{place}/{row.key}", place, "failed-download", failure(row.status, row.error))


def failure(status: str, error: str) -> str:
    """What img2dataset says of a row that it could not fetch or decode, on one line."""
    return f"img2dataset: {status or 'no status'}: {' '.join(error.split())[:500] or 'no error message'}"


def lost(rows: Iterable[TableRow], seen: Container[str], place: str, torn: bool) -> Iterator[Item]:
    """The rows that were fetched, if one believes the table, and are not among the keys that the shard holds."""
    for row in rows:
        if row.status == "success" and row.key not in seen:
            why = "which is torn" if torn else "where it is not"
            message = f"{row.key} was downloaded into {place}, {why}"
            yield refused_item(f"{place}/{row.key}", place, "torn" if torn else "missing-file", message)


def texts(column: Any) -> list[str]:
    """A column as texts: null is "", and what is not UTF-8 does not end the reading."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.binary() if pa.types.is_string(column.type) else pa.large_binary())
        return [value.decode("utf-8", "replace") if value else "" for value in column.to_pylist()]
    return ["" if value is None else str(value) for value in column.to_pylist()]


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
