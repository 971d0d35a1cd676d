"""Random reads of a dataset beside other readers: bytes per record, records per second of CPU time, memory per shard.

    python tests/benchmarks/reading.py                            # about two minutes
    python tests/benchmarks/reading.py --image-kb 60 --rounds 9

All read the same records in the same random order on one thread, from the page cache, keeping no records:

- ours: `RecordDataset`, once whole records and once the captions alone, as stage 2 reads them;
- pyarrow.parquet: row groups of about 2 MB, one memory-mapped `ParquetFile` per shard that stays open. Releases before
  2026-11-25 read so;
- array_record, if it is installed (pip install array-record): Google's format for random access, a record per group.

Bytes are those of the read calls of the process (`/proc/self/io`), so pyarrow is counted without its memory map. For
the memory, one record of each shard is read in a fresh process, and pages that a file backs are left out. The first row
of ours there is the first process of a node, which compares every shard with its sha256, the second row is the second
process. Nothing here passes or fails.
"""

import argparse
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from kosmosg.data.records import table
from kosmosg_platform.datasets.dataset import RecordDataset, Shard, write_manifest, write_records

Read = Callable[[int], object]
GROUP_BYTES = 2 * 2**20  # of the peer's row groups
ARRAYS = "group_size:1", "readahead_buffer_size:0,max_parallelism:0"


def main() -> None:
    """Print the tables."""
    options = arguments()
    if options.memory:
        print(memory_of(options.memory, options.folder, options.shards))
        return
    os.environ |= {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        os.environ["KOSMOSG_CACHE"] = str(place / "cache")
        size = write_all(place, options)
        speed(place, options, size)
        memory(place, options)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256, help="records of a shard")
    parser.add_argument("--image-kb", type=int, default=130, help="of the image of a record")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reads", type=int, default=400, help="records of a round")
    parser.add_argument("--shards", type=int, default=1000, help="for the memory; all are links to a few files")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def caption(random: np.random.Generator, number: int, size: int) -> dict[str, Any]:
    """A captioned image; the image is noise, which like a JPEG does not compress."""
    return {
        "id": f"shard/{number:07d}.jpg",
        "text": f"a photo of a small red boat number {number} on a quiet lake in the evening",
        "image": random.bytes(size),
        "width": 512,
        "height": 512,
        "source": f"https://example.org/images/{number:07d}.jpg",
        "provenance": None,
    }


def write_all(place: Path, options: argparse.Namespace) -> float:
    """Four shards for each reader; gives the bytes of a record."""
    random, shards, total = np.random.default_rng(0), list[Shard](), 0
    for number in range(4):
        rows = [caption(random, number * options.rows + row, options.image_kb * 1000) for row in range(options.rows)]
        total += sum(len(value) for row in rows for value in row.values() if isinstance(value, (str, bytes)))
        shards.append(write_records(place / "ours", f"data/part-{number:05d}.parquet", "caption", rows))
        (place / "pyarrow").mkdir(exist_ok=True)
        many = max(1, GROUP_BYTES * options.rows // table("caption", rows).nbytes)
        pq.write_table(
            table("caption", rows), place / f"pyarrow/{number}.parquet", row_group_size=many, compression="zstd"
        )
        write_arrays(place / f"arrays/{number}", rows)
    write_manifest(place / "ours", "caption", shards)
    return total / (4 * options.rows)


def write_arrays(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The records as array_record keeps them, if it is installed."""
    try:
        from array_record.python.array_record_module import ArrayRecordWriter
    except ImportError:
        return
    path.parent.mkdir(exist_ok=True)
    writer = ArrayRecordWriter(str(path), ARRAYS[0])
    for row in rows:
        writer.write(pickle.dumps(row))
    writer.close()


def readers(place: Path, count: int = 4, mapped: bool = True) -> dict[str, Read]:
    """What is compared: a function of the record's index for each."""
    ours = RecordDataset(place / "ours", cache_bytes=1)
    captions = RecordDataset(place / "ours", cache_bytes=1, columns=["text", "caption"])
    found: dict[str, Read] = {"ours": ours.__getitem__, "ours, captions alone": captions.__getitem__}
    found["pyarrow.parquet"] = parquet_reader([place / f"pyarrow/{shard}.parquet" for shard in range(count)], mapped)
    if (place / "arrays").is_dir():
        found["array_record"] = array_reader([place / f"arrays/{shard}" for shard in range(count)])
    return found


def parquet_reader(paths: Sequence[Path], mapped: bool) -> Read:
    """Row group by row group, with every file open."""
    files: dict[int, tuple[pq.ParquetFile, list[int]]] = {}
    rows = pq.read_metadata(paths[0]).num_rows

    def read(index: int) -> object:
        shard, row = divmod(index, rows)
        if shard not in files:
            file = pq.ParquetFile(paths[shard], memory_map=mapped)
            sizes = (file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups))
            files[shard] = (file, list(accumulate(sizes)))
        file, ends = files[shard]
        group = bisect_right(ends, row)
        place = row - (ends[group - 1] if group else 0)
        return file.read_row_group(group, use_threads=False).slice(place, 1).to_pylist()[0]

    return read


def array_reader(paths: Sequence[Path]) -> Read:
    """Record by record, with every file open."""
    from array_record.python.array_record_module import ArrayRecordReader

    files: dict[int, Any] = {}
    rows = ArrayRecordReader(str(paths[0]), ARRAYS[1]).num_records()

    def read(index: int) -> object:
        shard, row = divmod(index, rows)
        if shard not in files:
            files[shard] = ArrayRecordReader(str(paths[shard]), ARRAYS[1])
        return pickle.loads(files[shard].read([row])[0])  # noqa: S301 - written above

    return read


def speed(place: Path, options: argparse.Namespace, size: float) -> None:
    """Bytes and records per second, the readers in turn."""
    order = np.random.default_rng(1).permutation(4 * options.rows)
    rates: dict[str, list[float]] = {}
    told: dict[str, float] = {}
    for name, read in readers(place, mapped=False).items():
        for first in range(0, 4 * options.rows, options.rows):
            read(first)  # opened, and ours compared with the manifest
        before = bytes_read()
        for index in order[: options.reads]:
            read(int(index))
        told[name] = (bytes_read() - before) / min(options.reads, len(order))
    everyone = readers(place)
    for _ in range(options.rounds + 1):
        for name, read in everyone.items():
            began = time.process_time()
            for index in order[: options.reads]:
                read(int(index))
            rates.setdefault(name, []).append(min(options.reads, len(order)) / (time.process_time() - began))
    print(f"A record has {size / 1000:.0f} kB.\n")
    print("| reader | bytes read per record | of its own | records per second of CPU time |")
    print("|---|---|---|---|")
    for name, values in rates.items():
        rate = statistics.median(values[1:])
        print(f"| {name} | {told[name] / 1000:,.1f} kB | {told[name] / size:.2f} | {rate:,.0f} |")


def bytes_read() -> int:
    """Of all read calls of this process."""
    return int(Path("/proc/self/io").read_text().split()[1])


def memory(place: Path, options: argparse.Namespace) -> None:
    """Growth of a fresh process that reads one record of each of many shards."""
    shards = [Shard(**shard) for shard in RecordDataset(place / "ours").manifest["shards"]]
    many = []
    for number in range(options.shards):
        shard = shards[number % 4]
        name = f"data/link-{number:06d}.parquet"
        os.link(place / "ours" / shard.name, place / "ours" / name)
        many.append(replace(shard, name=name))
        if number >= 4:
            os.link(place / f"pyarrow/{number % 4}.parquet", place / f"pyarrow/{number}.parquet")
            if (place / "arrays").is_dir():
                os.link(place / f"arrays/{number % 4}", place / f"arrays/{number}")
    write_manifest(place / "ours", "caption", many)
    print(f"\n| reader | memory for {options.shards} shards of {options.rows} records | open files | CPU per shard |")
    print("|---|---|---|---|")
    for name in readers(place):
        command = [sys.executable, __file__, "--memory", name, "--folder", place, "--shards", str(options.shards)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        print(f"| {name} | {float(told[0]):.1f} MB | {told[1]} | {float(told[2]):.1f} ms |")


def memory_of(name: str, place: Path, shards: int) -> str:
    """Megabytes by which this process grows, and files that are open at the end."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    read, rows = readers(place, shards)[name], pq.read_metadata(place / "pyarrow/0.parquet").num_rows
    read(0)
    before, began = private_memory(), time.process_time()
    for shard in range(1, shards):
        read(shard * rows)
    spent = (time.process_time() - began) * 1000 / (shards - 1)
    return f"{(private_memory() - before) / 1e6} {len(os.listdir('/proc/self/fd'))} {spent}"


def private_memory() -> int:
    """Bytes of this process that no file backs: mapped pages of shards do not count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024


if __name__ == "__main__":
    main()
