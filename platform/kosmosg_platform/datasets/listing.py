"""The listing of a dataset: which items of the source make up which shard, kept on disk.

    DEST/.listing/index.json             every shard: name, items, rows, bytes, digest
    DEST/.listing/part-00000.parquet     the items of a shard (`kosmosg.data.sources.base.Item`)

The stream of items is dealt to shards by a hash of their keys, so rows of one folder or tar end up everywhere; where
the reader keeps its order, shards follow it. Nothing here grows with the number of items but files: the stream is
spilled into buckets by hash, and one bucket at a time is sorted and cut.

A second listing of a source that has grown leaves every item in the shard where it was; new items make new shards, and
a shard whose items have changed or gone gets another digest, and is built again.
"""

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kosmosg.data.sources.base import Item, Reader, limited
from kosmosg.errors import DataError
from kosmosg_platform.storage import read_json, replaced, write_json

LISTING = ".listing"
BUCKET_BITS = 6
SPILL = 4096  # items of a bucket in memory before they go to its file

ITEMS = pa.schema(
    [
        ("hash", pa.uint64()),
        ("key", pa.string()),
        ("place", pa.string()),
        ("start", pa.int64()),
        ("length", pa.int64()),
        ("rows", pa.int64()),
        ("size", pa.int64()),
        ("stamp", pa.string()),
        ("extra", pa.string()),
    ]
)


@dataclass(frozen=True)
class ListedShard:
    """One shard, as the index has it."""

    number: int
    items: int
    rows: int
    """About."""
    bytes: int
    """To be read, about."""
    first: int
    """Smallest hash of its items; 0 where the order of the source is kept."""
    last: int
    """Largest hash."""
    digest: str
    """sha256 of all that the listing knows of its items."""

    @property
    def name(self) -> str:
        """Stem of its files."""
        return f"part-{self.number:05d}"


def write_listing(
    folder: Path, reader: Reader, shard_rows: int, shard_bytes: int, limit: int | None = None
) -> list[ListedShard]:
    """List the source into `folder/.listing`; gives the shards. Raises DataError when there is nothing to read.

    `shard_rows` and `shard_bytes` are about what a shard holds at most; an item is never split.
    """
    place = folder / LISTING
    rows = reader.shard_rows or shard_rows
    items = limited(reader.items(), limit)
    if reader.shuffled:
        cut = _deal(place, items, rows, shard_bytes, previous_shards(folder))
    else:
        cut = _in_order(place, items, rows, shard_bytes)
    shards = sorted(cut, key=lambda shard: shard.number)
    if not shards:
        raise DataError(f"source: there is nothing to read in the source of {folder}")
    write_json(place / "index.json", {"shards": [asdict(shard) for shard in shards]})
    kept = {shard.name for shard in shards}
    for path in place.glob("part-*.parquet"):
        if path.stem not in kept:
            path.unlink()
    return shards


def previous_shards(folder: Path) -> list[ListedShard]:
    """The shards of an earlier listing; none where there is no listing, or a damaged one."""
    path = folder / LISTING / "index.json"
    try:
        return [ListedShard(**shard) for shard in read_json(path)["shards"]]
    except (OSError, KeyError, TypeError, DataError):
        return []  # the source is then listed as if for the first time


def listing_file(folder: Path, shard: str) -> Path:
    """Where the items of a shard are listed."""
    return folder / LISTING / f"{shard}.parquet"


def read_items(folder: Path, shard: str, first: int = 0, count: int | None = None) -> list[Item]:
    """The items of a shard, or `count` of them from number `first`."""
    rows = pq.read_table(listing_file(folder, shard), columns=list(Item._fields)).slice(first, count)
    return [Item(**row) for row in rows.to_pylist()]


def item_rows(folder: Path, shard: str) -> NDArray[np.int64]:
    """How many rows each item of a shard has, about."""
    column = pq.read_table(listing_file(folder, shard), columns=["rows"]).column("rows")
    return np.asarray(column.to_numpy(), dtype=np.int64)


def _in_order(place: Path, items: Iterable[Item], rows: int, size: int) -> Iterator[ListedShard]:
    number, held, held_rows, held_bytes = 0, list[Item](), 0, 0
    for item in items:
        if held and (held_rows + item.rows > rows or held_bytes + item.size > size):
            yield _write(place, number, _table(held, hashed=False))
            number, held, held_rows, held_bytes = number + 1, [], 0, 0
        held.append(item)
        held_rows += item.rows
        held_bytes += item.size
    if held:
        yield _write(place, number, _table(held, hashed=False))


def _deal(
    place: Path, items: Iterable[Item], rows: int, size: int, previous: list[ListedShard]
) -> Iterator[ListedShard]:
    spilled = place / ".buckets"
    shutil.rmtree(spilled, ignore_errors=True)  # of a listing that was killed
    spilled.mkdir(parents=True)
    try:
        buckets = _spill(spilled, items)
        known: dict[int, list[pa.Table]] = {}  # shards of before that are not complete yet
        fresh = _Cutter(place, max((shard.number for shard in previous), default=-1) + 1, rows, size)
        for number in range(1 << BUCKET_BITS):
            bucket = _sorted(buckets.get(number))
            end = (number + 1) << (64 - BUCKET_BITS)
            here = [shard for shard in previous if shard.first < end and shard.last >= number << (64 - BUCKET_BITS)]
            owner = _owners(place, here, bucket)
            for shard in here:
                kept = bucket.filter(pa.array(owner == shard.number))
                if kept.num_rows:
                    known.setdefault(shard.number, []).append(kept)
                if shard.last < end and (parts := known.pop(shard.number, None)):
                    yield _write(place, shard.number, pa.concat_tables(parts))
            yield from fresh.add(bucket.filter(pa.array(owner < 0)))
        yield from fresh.finish()
    finally:
        shutil.rmtree(spilled, ignore_errors=True)


def _spill(folder: Path, items: Iterable[Item]) -> dict[int, Path | list[Item]]:
    """Items by bucket: in memory while they are few, in files when they are many."""
    held: dict[int, list[Item]] = {}
    writers: dict[int, pq.ParquetWriter] = {}
    for item in items:
        bucket = hash_of(item.key) >> (64 - BUCKET_BITS)
        into = held.setdefault(bucket, [])
        into.append(item)
        if len(into) >= SPILL:
            if bucket not in writers:
                writers[bucket] = pq.ParquetWriter(folder / f"{bucket}.parquet", ITEMS, compression="zstd")
            writers[bucket].write_table(_table(into))
            held[bucket] = []
    found: dict[int, Path | list[Item]] = {}
    for bucket, rest in held.items():
        if bucket in writers:
            writers[bucket].write_table(_table(rest))
            writers[bucket].close()
            found[bucket] = folder / f"{bucket}.parquet"
        else:
            found[bucket] = rest
    return found


def _sorted(bucket: Path | list[Item] | None) -> pa.Table:
    table = pq.read_table(bucket) if isinstance(bucket, Path) else _table(bucket or [])
    return table.sort_by([("hash", "ascending"), ("key", "ascending"), ("place", "ascending"), ("start", "ascending")])


def _owners(place: Path, shards: list[ListedShard], bucket: pa.Table) -> NDArray[np.int64]:
    """For each item of a bucket the shard that had it before, -1 for new ones."""
    owner = np.full(bucket.num_rows, -1, dtype=np.int64)
    hashes = bucket.column("hash").to_numpy()
    for shard in shards:
        path = place / f"{shard.name}.parquet"
        if not path.is_file():
            continue
        old = np.sort(pq.read_table(path, columns=["hash"]).column("hash").to_numpy())
        at = np.searchsorted(old, hashes).clip(max=max(len(old) - 1, 0))
        if len(old):
            owner[(old[at] == hashes) & (owner < 0)] = shard.number
    return owner


class _Cutter:
    """Cuts a stream of sorted tables into shards of about `rows` rows and `size` bytes."""

    def __init__(self, place: Path, number: int, rows: int, size: int) -> None:
        self.place, self.number, self.rows, self.size = place, number, rows, size
        self.held: pa.Table = _table([])

    def add(self, table: pa.Table) -> Iterator[ListedShard]:
        self.held = pa.concat_tables([self.held, table])
        yield from self._cut(last=False)

    def finish(self) -> Iterator[ListedShard]:
        yield from self._cut(last=True)

    def _cut(self, last: bool) -> Iterator[ListedShard]:
        rows = np.cumsum(self.held.column("rows").to_numpy())
        size = np.cumsum(self.held.column("size").to_numpy())
        start = 0
        while start < len(rows):
            before = (int(rows[start - 1]), int(size[start - 1])) if start else (0, 0)
            stop = min(
                int(np.searchsorted(rows, before[0] + self.rows, side="right")),
                int(np.searchsorted(size, before[1] + self.size, side="right")),
            )
            stop = max(stop, start + 1)
            if stop >= len(rows) and not last:
                break  # what comes next may still belong to this shard
            yield _write(self.place, self.number, self.held.slice(start, stop - start))
            self.number += 1
            start = stop
        self.held = self.held.slice(start).combine_chunks()


def hash_of(key: str) -> int:
    """64 bits of a key's hash: they deal items to shards, and know them again."""
    return int.from_bytes(hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest(), "big")


def _table(items: list[Item], hashed: bool = True) -> pa.Table:
    columns = list(zip(*items, strict=True)) if items else [()] * len(Item._fields)
    hashes = [hash_of(key) if hashed else 0 for key in columns[0]]
    arrays = [pa.array(values, type=kind) for values, kind in zip([hashes, *columns], ITEMS.types, strict=True)]
    return pa.Table.from_arrays(arrays, schema=ITEMS)


def _write(place: Path, number: int, items: pa.Table) -> ListedShard:
    """Write the items of a shard, unless they lie there already."""
    told = hashlib.sha256()
    for name in ITEMS.names[1:]:
        for value in items.column(name).to_pylist():
            told.update(f"{value}\0".encode(errors="surrogateescape"))
    shard = ListedShard(
        number=number,
        items=items.num_rows,
        rows=pc.sum(items.column("rows")).as_py(),
        bytes=pc.sum(items.column("size")).as_py(),
        first=pc.min(items.column("hash")).as_py(),
        last=pc.max(items.column("hash")).as_py(),
        digest=told.hexdigest(),
    )
    with replaced(place / f"{shard.name}.parquet") as partial:
        pq.write_table(items, partial, compression="zstd")
    return shard
