"""Chunks: what a build has under way. A shard is written from its chunks when all of them are there.

    DEST/.chunks/part-00012/00003.parquet      records
    DEST/.chunks/part-00012/00003.json         rejections and counts, and the key; written last

A chunk that an earlier, killed build has finished is taken as it is when its key is what would be built now.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq

from kosmosg.data.annotators.apply import UNEXPECTED
from kosmosg_platform.datasets.dataset import write_record_tables, write_records, write_refusals
from kosmosg_platform.datasets.listing import ListedShard, item_rows
from kosmosg_platform.datasets.spent import FINISH, WRITE, Costs, plain_costs, read_costs, timed, total
from kosmosg_platform.storage import replaced, write_json, write_text
from kosmosg_platform.stores.node_copy import bring, bucket_of, drop, send

CHUNKS = ".chunks"
RECEIPTS = ".receipts"  # DEST/.receipts/part-00000.json: what is known of a finished shard


class Chunk(NamedTuple):
    """Some items of a shard, one after the other."""

    shard: str
    """Stem of the shard's files."""
    number: int
    """Within the shard, from 0."""
    first: int
    """Its first item within the shard."""
    items: int
    """How many."""
    key: str
    """Of everything that the records depend on."""
    content: str
    """Digest of the items, whatever is done with them."""

    def __str__(self) -> str:
        return f"chunk {self.number} of {self.shard}"

    def path(self, folder: Path, suffix: str) -> Path:
        """Where its records (.parquet) or counts (.json) lie."""
        return folder / CHUNKS / self.shard / f"{self.number:05d}{suffix}"


def chunks_of(folder: Path, shard: ListedShard, key: str, rows: int) -> Iterator[Chunk]:
    """The chunks of a shard, of about `rows` rows each; an item is never split."""
    ends = np.cumsum(item_rows(folder, shard.name))
    start = number = 0
    while start < len(ends):
        done = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, done + rows, side="right")), start + 1)
        told = sha256(f"{shard.digest}:{start}:{stop}".encode()).hexdigest()
        yield Chunk(shard.name, number, start, stop - start, sha256(f"{key}:{told}".encode()).hexdigest(), told[:32])
        start, number = stop, number + 1


def write_plan(folder: Path, chunks: Sequence[Chunk]) -> str:
    """Write down the chunks that a build is to make, for its workers; gives the file's name.

    As an argument the chunks of a large dataset would be copied for every worker, and lost with the node that holds
    them.
    """
    told = pa.Table.from_pylist([chunk._asdict() for chunk in chunks])
    name = f"plan-{sha256(repr(chunks).encode()).hexdigest()[:16]}.arrow"
    with replaced(folder / CHUNKS / name) as partial:
        feather.write_feather(told, partial, compression="zstd")
    send(folder / CHUNKS / name)
    return name


@cache
def read_plan(folder: Path, name: str) -> Sequence[Chunk]:
    """The chunks of `write_plan`, once in a process."""
    path = folder / CHUNKS / name
    if not path.is_file():
        bring(path)
    return [Chunk(**row) for row in feather.read_table(path, memory_map=False).to_pylist()]


def write_chunk(
    folder: Path,
    chunk: Chunk,
    kind: str,
    records: Sequence[Mapping[str, Any]],
    refusals: Sequence[Mapping[str, Any]],
    dropped: Mapping[str, int],
    annotators: Mapping[str, str],
    costs: Costs,
) -> None:
    """Write what a chunk became. Its counts come last: without them it is built again. Adds to `costs`."""
    path = chunk.path(folder, ".parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    with timed(costs, WRITE, len(records)):
        write_records(path.parent, path.name, kind, records)
    told = {
        "key": chunk.key,
        "rows": len(records) + len(refusals),
        "records": len(records),
        "refusals": list(refusals),
        "dropped": dict(sorted(dropped.items())),
        "annotators": dict(annotators),
        "costs": plain_costs(costs),
    }
    write_text(chunk.path(folder, ".json"), json.dumps(told))
    send(path)
    send(chunk.path(folder, ".json"))


def read_counts(folder: Path, chunk: Chunk) -> dict[str, Any] | None:
    """What is known of a finished chunk; None when it is not there, damaged, or of another build."""
    try:
        told: dict[str, Any] = json.loads(chunk.path(folder, ".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return told if told.get("key") == chunk.key and chunk.path(folder, ".parquet").is_file() else None


def bring_chunk(folder: Path, chunk: Chunk) -> None:
    """Have a finished chunk of another node on this one; nothing to do for a folder on a disk."""
    if bucket_of(folder) is not None and not chunk.path(folder, ".json").is_file():
        bring(chunk.path(folder, ".parquet"))
        bring(chunk.path(folder, ".json"))


def finish_shard(folder: Path, kind: str, key: str, chunks: Sequence[Chunk]) -> dict[str, Any]:
    """Put the chunks of a shard together: Parquet, quarantine, receipt. Returns the receipt."""
    name = chunks[0].shard
    for chunk in chunks:
        bring_chunk(folder, chunk)
    told = [read_counts(folder, chunk) for chunk in chunks]
    counts = [each for each in told if each is not None]
    if len(counts) != len(chunks):
        raise RuntimeError(f"{len(chunks) - len(counts)} chunks of {name} are not there; run the same build again")
    tables = (pq.read_table(chunk.path(folder, ".parquet")) for chunk in chunks)
    costs = total(read_costs(each.get("costs", {})) for each in counts)
    with timed(costs, FINISH, sum(each["records"] for each in counts)):
        data = write_record_tables(folder, f"data/{name}.parquet", kind, tables)
    refusals = [row for each in counts for row in each["refusals"]]
    if refusals:
        quarantine = asdict(write_refusals(folder, f"quarantine/{name}.parquet", refusals))
    else:
        quarantine = None
        drop(folder / "quarantine" / f"{name}.parquet")
    reasons = Counter(f"{row['stage']}: {row['reason']}" for row in refusals)
    dropped: Counter[str] = Counter()
    annotators: dict[str, str] = {}
    for each in counts:
        dropped.update(each["dropped"])
        annotators |= each["annotators"]
    receipt = {
        "shard": name,
        "key": key,
        "rows": sum(each["rows"] for each in counts),
        "data": asdict(data),
        "quarantine": quarantine,
        "reasons": dict(sorted(reasons.items())),
        "example": {f"{row['stage']}: {row['reason']}": row["message"] for row in reversed(refusals)},
        "dropped": dict(sorted(dropped.items())),
        "unexpected": sum(row["reason"].startswith(UNEXPECTED) for row in refusals),
        "annotators": annotators,
        "costs": plain_costs(costs),
    }
    for part in ("data", "quarantine") if bucket_of(folder) is not None else ():
        if (folder / part / f"{name}.parquet").is_file():
            send(folder / part / f"{name}.parquet")
            (folder / part / f"{name}.parquet").unlink()  # readers keep what they need in the node's cache
    write_json(folder / RECEIPTS / f"{name}.json", receipt)
    send(folder / RECEIPTS / f"{name}.json")
    if (folder / CHUNKS / name).is_dir():
        drop(folder / CHUNKS / name)
    return receipt
