"""A dataset is a folder: Parquet shards, a quarantine table and a manifest that is written last.

    DEST/manifest.json             kind, schema version, rows, shards with size and sha256, config, annotators, source
    DEST/data/part-00000.parquet   records (`kosmosg.data.records`)
    DEST/quarantine/...            rejected rows: id, source, stage, reason, message

Publishing is atomic: without a manifest the folder is not a dataset, and every file is written under a temporary name
and renamed. The bytes of a shard depend only on its records, never on the time or the number of workers.
"""

import hashlib
import json
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kosmosg.data.records import QUARANTINE, SCHEMA_VERSION, schema, table
from kosmosg.errors import DataError
from kosmosg_platform.datasets.shard_files import AGAIN, ShardFiles
from kosmosg_platform.storage import file_sha256, replaced, write_json
from kosmosg_platform.stores.location import told
from kosmosg_platform.stores.node_copy import bring, send

MANIFEST = "manifest.json"

ROW_GROUP_BYTES = 32 * 2**10  # a random read takes one row group, so a record of half as many bytes has its own
ROW_GROUP_ROWS = 256  # small records: the footer must not be larger than the data

CACHE_BYTES = 64 * 2**20  # decoded row groups that a RecordDataset keeps: the whole of a small set


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a dataset, as the manifest lists it."""

    name: str  # relative to the dataset folder, with slashes
    rows: int
    bytes: int
    sha256: str


def write_records(folder: Path, name: str, kind: str, rows: Sequence[Mapping[str, Any]]) -> Shard:
    """Write records as `folder/name` and return what the manifest needs. Raises DataError for rows of another form."""
    return _write_tables(folder, name, schema(kind), [table(kind, rows)])


def write_refusals(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> Shard:
    """Write refused rows (`kosmosg.data.records.Refusal`) as `folder/name`."""
    return _write_tables(folder, name, QUARANTINE, [pa.Table.from_pylist(list(rows), schema=QUARANTINE)])


def write_record_tables(folder: Path, name: str, kind: str, tables: Iterable[pa.Table]) -> Shard:
    """`write_records` of tables one after the other, so that a large shard is never in memory as a whole."""
    return _write_tables(folder, name, schema(kind), tables)


def _write_tables(folder: Path, name: str, form: pa.Schema, tables: Iterable[pa.Table]) -> Shard:
    target = folder / name
    count = 0
    # Row groups of one record or a few: dictionaries and statistics would take more room than they save.
    layout = {"use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
    with replaced(target) as temporary:
        with pq.ParquetWriter(temporary, form, compression=_compression(form), **layout) as writer:
            for rows in tables:
                group = ROW_GROUP_ROWS
                if rows.num_rows:
                    group = max(1, min(group, ROW_GROUP_BYTES * rows.num_rows // max(1, rows.nbytes)))
                writer.write_table(rows, row_group_size=group)
                count += rows.num_rows
        return Shard(name, count, temporary.stat().st_size, file_sha256(temporary))


def _compression(form: pa.Schema) -> dict[str, str]:
    """Codec by leaf column: binary fields hold encoded images or random numbers, which a codec only makes slower."""

    def leaves(path: str, kind: pa.DataType) -> Iterator[tuple[str, str]]:
        if pa.types.is_struct(kind):
            for field in kind:
                yield from leaves(f"{path}.{field.name}", field.type)
        elif pa.types.is_list(kind):
            yield from leaves(f"{path}.list.element", kind.value_type)
        else:
            yield path, "none" if pa.types.is_binary(kind) else "zstd"

    return dict(leaf for field in form for leaf in leaves(field.name, field.type))


def write_manifest(
    folder: Path,
    kind: str,
    shards: Sequence[Shard],
    quarantine: Sequence[Shard] = (),
    config: Mapping[str, Any] | None = None,
    annotators: Mapping[str, str] | None = None,
    source: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Publish the folder as a dataset by writing its manifest, atomically and last. Returns the manifest.

    Its `sha256` represents all records: it is equal for two builds exactly if every shard is equal.
    """
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "rows": sum(shard.rows for shard in shards),
        "sha256": _digest_of([asdict(shard) for shard in shards]),
        "shards": [asdict(shard) for shard in shards],
        "quarantine": {"rows": sum(s.rows for s in quarantine), "shards": [asdict(shard) for shard in quarantine]},
        "config": dict(config or {}),
        "annotators": dict(annotators or {}),
        "source": dict(source or {}),
        **(extra or {}),
    }
    write_json(folder / MANIFEST, manifest)
    send(folder / MANIFEST)
    return manifest


def _digest_of(shards: Sequence[Mapping[str, Any]]) -> str:
    return hashlib.sha256("".join(f"{s['name']} {s['sha256']}\n" for s in shards).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a dataset folder. Raises DataError if it is missing, unreadable or of another version."""
    path = bring(folder / MANIFEST)
    if not folder.is_dir():
        raise DataError(f"there is no dataset folder {told(folder)}; build one with `kosmosg run build_dataset`")
    if not path.is_file():
        raise DataError(
            f"{told(folder)} has no {MANIFEST}: its build is not finished; run the same build again to finish it"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); build the dataset again") from error
    if not isinstance(manifest, dict) or "kind" not in manifest or "shards" not in manifest:
        raise DataError(f"{path} is not the manifest of a dataset: it has no kind or no shards")
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise DataError(
            f"{folder} has schema version {manifest.get('schema_version')}, this release reads {SCHEMA_VERSION}; "
            "build the dataset again"
        )
    if manifest.get("sha256") != (found := _digest_of(manifest["shards"])):
        raise DataError(
            f"{path} is damaged: its sha256 is {manifest.get('sha256')}, that of its list of shards {found}; "
            "delete it and run the same build again, which keeps the shards, or copy it again"
        )
    return manifest


class RecordDataset:
    """Random access to the records of a dataset folder: `dataset[i]` is a dict, `len(dataset)` the number of records.

    The unit of reading is a row group: one record if it is large, else some that are small together. The `cache_bytes`
    most recently used stay decoded, so a small dataset is read once. Index order is shard order. Cheap to pickle: a
    worker opens the files again. A shard is compared with its sha256 in the manifest before its first record is read,
    once per node.

    Args:
        folder: the dataset.
        kind: what the manifest must say.
        cache_bytes: limit of the decoded row groups.
        columns: read only these fields of the records, those of them that the kind has; null reads all.
        verify: whether shards are compared with the manifest.

    Raises DataError if the folder is missing, incomplete or does not match its manifest.
    """

    def __init__(
        self,
        folder: str | Path,
        kind: str | None = None,
        cache_bytes: int = CACHE_BYTES,
        columns: Sequence[str] | None = None,
        verify: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.kind: str = self.manifest["kind"]
        if kind is not None and kind != self.kind:
            raise DataError(
                f"{told(folder)} holds records of kind {self.kind!r}, {kind!r} are needed; give another folder"
            )
        self.cache_bytes = cache_bytes
        self.columns = None if columns is None else [name for name in schema(self.kind).names if name in columns]
        self.verify = verify
        self._shards = [shard for shard in self.manifest["shards"] if shard["rows"]]
        self._ends = list(accumulate(int(shard["rows"]) for shard in self._shards))
        self._start()

    def _start(self) -> None:
        self._files = ShardFiles(self.folder, self._shards, self.columns, self.verify)
        self._cache: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._cached = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_files", "_cache", "_cached", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        shard, row = self._place(index)
        with self._lock:  # data loaders may read from several threads
            group, place = self._files.index(shard).group_of(row)
            rows = self._group(shard, group)
        record: dict[str, Any] = rows.slice(place, 1).to_pylist()[0]
        return record

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"RecordDataset({told(self.folder)!r}, kind={self.kind!r}, rows={len(self)})"

    def read_ids(self, indices: Iterable[int]) -> list[str]:
        """The ids of some records, in their order. Nothing else of the records is read."""
        places = [self._place(index) for index in indices]
        found: dict[tuple[int, int], list[str]] = {}
        ids = []
        with self._lock:
            for shard, row in places:
                group, place = self._files.index(shard).group_of(row)
                if (shard, group) not in found:
                    found[shard, group] = self._files.read_ids(shard, group)
                ids.append(found[shard, group][place])
        return ids

    def ids(self) -> Iterator[str]:
        """The ids of all records, in their order. Reads one column of the shards, one shard after the other."""
        for shard in range(len(self._shards)):
            path = self._files.path(shard)
            try:
                column = pq.read_table(path, columns=["id"], use_threads=False, partitioning=None).column("id")
            except (OSError, pa.ArrowException) as error:
                raise DataError(f"shard {path} cannot be read ({error}); {AGAIN}") from error
            yield from column.to_pylist()

    def find(self, record_id: str) -> tuple[int, str, int] | None:
        """The first record of that id: its index, its shard's file, and its row there; None when there is none.

        Reads one column of the shards, and does not compare them with the manifest.
        """
        for shard, entry in enumerate(self._shards):
            first = self._ends[shard - 1] if shard else 0
            path = self._files.path(shard)
            try:
                ids = pq.read_table(path, columns=["id"], use_threads=False, partitioning=None).column("id")
            except (OSError, pa.ArrowException) as error:
                raise DataError(f"shard {path} cannot be read ({error}); {AGAIN}") from error
            row = pc.index(ids, pa.scalar(record_id)).as_py()
            if row >= 0:
                return first + row, entry["name"], row
        return None

    def _place(self, index: int) -> tuple[int, int]:
        """Shard and row of a record."""
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of a dataset of {len(self)} in {self.folder}")
        shard = bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def _group(self, shard: int, group: int) -> pa.Table:
        key = (shard, group)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        rows = self._files.read(shard, group)
        self._cache[key] = rows
        self._cached += rows.nbytes
        while self._cached > self.cache_bytes and len(self._cache) > 1:
            _, oldest = self._cache.popitem(last=False)
            self._cached -= oldest.nbytes
        return rows
