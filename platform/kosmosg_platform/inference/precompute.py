"""Compute columns of datasets with frozen models: shard by shard on Ray actors, resumable, one column file per shard.

A shard's column is kept under the shard's digest, so that a dataset that has grown gets only what is missing.
"""

import base64
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa
from pydantic import Field

from kosmosg.data.records import table
from kosmosg.errors import DataError
from kosmosg_platform.cluster.session import ScaleConfig
from kosmosg_platform.config import Section
from kosmosg_platform.datasets.dataset import MANIFEST, RecordDataset, Shard, write_manifest, write_record_tables
from kosmosg_platform.datasets.precomputed import column_folder, is_complete
from kosmosg_platform.inference.actors import run_blocks
from kosmosg_platform.owned_folder import check_stored, claim_folder
from kosmosg_platform.storage import read_json, write_json
from kosmosg_platform.stores.folder_sync import FolderSync, kept_in_step
from kosmosg_platform.stores.node_copy import bucket_of, drop, send

Record = Mapping[str, Any]
RECEIPTS = ".receipts"


class PrecomputeConfig(Section):
    """What `precompute` computes."""

    columns: tuple[Literal["target_posterior", "text_states"], ...] = ("target_posterior", "text_states")
    """`target_posterior` saves stage 3 the VAE, `text_states` stage 2 the text encoder."""
    batch_size: int = Field(default=16, ge=1)
    """Images, or captions, that a model encodes together."""


class ColumnEncoder(Protocol):
    """A frozen model that gives one value for each record, packed (`kosmosg.data.precomputed.pack`)."""

    def prepare(self, record: Record) -> Any:
        """What the model reads of a record. Called from several threads. Raises DataError if that is not there."""
        ...

    def encode(self, inputs: Sequence[Any]) -> Sequence[bytes]:
        """The values of prepared records."""
        ...

    def empty(self) -> bytes | None:
        """The value of an empty record, which training also needs; None if there is no such thing."""
        ...


@dataclass(frozen=True)
class Column:
    """A column to compute. Small and picklable: it is sent to the actors."""

    name: str
    dataset: Path
    identity: Mapping[str, Any]
    """All that the values depend on beside the records; `shape` is that of one value."""
    make_encoder: Callable[[], ColumnEncoder]
    batch_size: int = 16

    @property
    def folder(self) -> Path:
        return column_folder(self.dataset, self.name, self.identity)


@dataclass(frozen=True)
class ComputedColumn:
    """What a column became."""

    folder: Path
    rows: int
    computed: int
    """Rows computed in this run."""
    without: int
    """Rows without a value, because their image cannot be decoded."""
    bytes: int


def precompute(column: Column, scale: ScaleConfig, start_ray: Callable[[], object]) -> ComputedColumn:
    """Compute a column, or what is missing of it. Ray is started only when something is.

    Raises DataError if the dataset is not complete, and ConfigError if the cluster lacks what `scale` asks for.
    """
    check_stored(column.folder)
    with kept_in_step(column.folder, ("data", MANIFEST)) as sync:
        return _precompute(column, scale, start_ray, sync)


def _precompute(
    column: Column, scale: ScaleConfig, start_ray: Callable[[], object], sync: FolderSync | None
) -> ComputedColumn:
    dataset = RecordDataset(column.dataset)
    shards: list[Mapping[str, Any]] = dataset.manifest["shards"]
    folder = claim_folder(column.folder, "precompute", f"{column.name} of {column.dataset.name}")
    missing = [str(index) for index, shard in enumerate(shards) if _receipt(folder, shard) is None]
    computed = 0
    if missing:
        start_ray()
        drop(folder / MANIFEST)
        computed = run_blocks(column.name, "rows", ShardWorker, column, missing, scale)
        if sync is not None:
            sync.once()  # the receipts of other nodes
    receipts = [receipt for shard in shards if (receipt := _receipt(folder, shard)) is not None]
    made = [Shard(**receipt["shard"]) for receipt in receipts]
    if not is_complete(column.dataset, folder):
        write_manifest(
            folder,
            column.name,
            made,
            config=column.identity,
            source={"sha256": dataset.manifest["sha256"], "rows": len(dataset)},
            extra={"empty": receipts[0]["empty"]} if receipts else {},
        )
        _remove_others(folder, {one.name for one in made})
    without = sum(receipt["without"] for receipt in receipts)
    return ComputedColumn(folder, sum(one.rows for one in made), computed, without, sum(one.bytes for one in made))


class ShardWorker:
    """Computes the column of one shard after another."""

    def __init__(self, column: Column) -> None:
        self.column = column
        self.encoder = column.make_encoder()
        self.dataset = RecordDataset(column.dataset)
        self.without = 0

    def __call__(self, block: str) -> int:
        """Write the column of shard number `block`, then its receipt; returns its rows."""
        shards: list[Mapping[str, Any]] = self.dataset.manifest["shards"]
        index, self.without = int(block), 0
        first = sum(shard["rows"] for shard in shards[:index])
        rows = range(first, first + shards[index]["rows"])
        folder, name = self.column.folder, _stem(shards[index])
        made = write_record_tables(folder, f"data/{name}.parquet", self.column.name, self._tables(rows))
        empty = self.encoder.empty()
        receipt = {
            "shard": asdict(made),
            "without": self.without,
            "empty": None if empty is None else base64.b64encode(empty).decode(),
        }
        if bucket_of(folder) is not None:
            send(folder / made.name)
            (folder / made.name).unlink()  # readers keep what they need in the node's cache
        write_json(_receipt_path(folder, shards[index]), receipt)
        send(_receipt_path(folder, shards[index]))
        return made.rows

    def _tables(self, rows: range) -> Iterator[pa.Table]:
        """Batches of values, in order. While the model works on one, the next two are read and decoded."""
        size = self.column.batch_size
        batches = iter([rows[start : start + size] for start in range(0, len(rows), size)])
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:

            def submitted(batch: range) -> list[Future[tuple[str, Any]]]:
                return [pool.submit(self._prepare, row) for row in batch]

            ahead = deque(map(submitted, islice(batches, 2)))
            while ahead:
                ready = [future.result() for future in ahead.popleft()]
                ahead.extend(map(submitted, islice(batches, 1)))
                yield self._encoded(ready)

    def _prepare(self, row: int) -> tuple[str, Any]:
        record = self.dataset[row]
        try:
            return record["id"], self.encoder.prepare(record)
        except DataError:
            return record["id"], None  # counted in the receipt; training says what is wrong with the record

    def _encoded(self, ready: Sequence[tuple[str, Any]]) -> pa.Table:
        values = iter(self.encoder.encode([given for _, given in ready if given is not None]))
        self.without += sum(given is None for _, given in ready)
        rows = [{"id": key, self.column.name: None if given is None else next(values)} for key, given in ready]
        return table(self.column.name, rows)


def _stem(shard: Mapping[str, Any]) -> str:
    return f"{Path(shard['name']).stem}-{shard['sha256'][:16]}"


def _receipt_path(folder: Path, shard: Mapping[str, Any]) -> Path:
    return folder / RECEIPTS / f"{_stem(shard)}.json"


def _receipt(folder: Path, shard: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was written for a shard; None if that is not complete."""
    path = _receipt_path(folder, shard)
    if not path.is_file():
        return None
    receipt: dict[str, Any] = read_json(path)
    bucket = bucket_of(folder)
    if bucket is not None:
        stored = bucket.stat(receipt["shard"]["name"])
        return receipt if stored is not None and stored.size == receipt["shard"]["bytes"] else None
    file = folder / receipt["shard"]["name"]
    return receipt if file.is_file() and file.stat().st_size == receipt["shard"]["bytes"] else None


def _remove_others(folder: Path, names: set[str]) -> None:
    """Files of shards that the dataset no longer has, and of writers that were killed."""
    bucket = bucket_of(folder)
    found = (
        [f"data/{path.name}" for path in (folder / "data").iterdir()] if bucket is None else list(bucket.list("data"))
    )
    for name in found:
        if name not in names:
            drop(folder / name)
            drop(folder / RECEIPTS / f"{Path(name).stem}.json")
