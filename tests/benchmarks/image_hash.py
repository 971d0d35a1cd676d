"""What hashing, finding copies and decontaminating cost: milliseconds an image, seconds and gigabytes for ten million.

    OMP_NUM_THREADS=1 python tests/benchmarks/image_hash.py --hashes 10_000_000     # about a minute on one core

Hashes are random, every tenth is a copy of another with one bit changed. Images are those of DreamBench
(`$KOSMOSG_SHARED/data`) where they are at hand. Nothing here passes or fails.
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kosmosg.data.hash_list import HASH_SCHEMA, find_duplicates, open_hash_list, write_duplicates
from kosmosg.data.image_hash import hash_images, image_hash
from kosmosg.data.near_duplicates import HashIndex
from kosmosg.prompt import read_image

PART = 100_000


def gigabytes() -> float:
    """Peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def write_random_list(path: Path, count: int) -> None:
    """A hash list of `count` random images, a tenth of them copies, written in parts."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(1, 2**64, count, dtype=np.uint64)
    copies = count // 10
    flipped = np.uint64(1) << rng.integers(0, 64, copies, dtype=np.uint64)
    hashes[rng.integers(0, count, copies)] = hashes[rng.integers(0, count, copies)] ^ flipped
    with pq.ParquetWriter(path, HASH_SCHEMA) as writer:
        for start in range(0, count, PART):
            rows = min(PART, count - start)
            keys = pa.array([f"images/{row:09d}.jpg" for row in range(start, start + rows)])
            content = pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(32), rows, [None, pa.py_buffer(rng.bytes(32 * rows))]
            )
            part = pa.array(hashes[start : start + rows])
            writer.write_table(pa.table([keys, part, content], schema=HASH_SCHEMA))


def measure_search(count: int, folder: Path) -> None:
    """Finding the copies in a list."""
    write_random_list(folder / "list.parquet", count)
    before = gigabytes()
    wall, cpu = time.perf_counter(), time.process_time()
    found = find_duplicates(open_hash_list(folder / "list.parquet"))
    write_duplicates(folder / "duplicates.parquet", found)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(
        f"{count} hashes: {found.table.num_rows} copies in {found.groups} groups, {wall:.1f} s, {cpu:.1f} s of CPU, "
        f"peak {gigabytes():.2f} GB (before: {before:.2f})"
    )


def measure_crowd(count: int) -> None:
    """The worst case: every hash stands in a crowded bucket of every band."""
    from kosmosg.data.near_duplicates import groups

    rng = np.random.default_rng(0)
    mask = np.uint64(sum(0b111111 << shift for shift in (0, 22, 43)))
    cpu = time.process_time()
    labels, crowded = groups(rng.integers(0, 2**64, count, dtype=np.uint64) & mask, 2)
    print(f"{count} crowded hashes: {len(np.unique(labels))} groups, {crowded} times crowded, "
          f"{time.process_time() - cpu:.1f} s of CPU, peak {gigabytes():.2f} GB")  # fmt: skip


def measure_questions() -> None:
    """Is an image near one of an evaluation set?"""
    rng = np.random.default_rng(0)
    wanted = [int(value) for value in rng.integers(0, 2**64, 2000, dtype=np.uint64)]
    for count in (30, 40_504, 1_000_000):
        index = HashIndex(rng.integers(0, 2**64, count, dtype=np.uint64), 4)
        cpu = time.process_time()
        for value in wanted:
            index.nearest(value)
        print(f"a question to {count} hashes, radius 4: {(time.process_time() - cpu) / len(wanted) * 1e6:.0f} us")


def measure_images(folder: Path) -> None:
    """Reading and hashing photos."""
    data = [path.read_bytes() for path in sorted(folder.glob("*/*.jpg"))]
    if not data:
        return print(f"no photos in {folder}")
    decoded = [read_image(one) for one in data]
    small = [image.resize((512, 512)) for image in decoded]
    for name, work in (
        ("bytes to hash (JPEG at a fraction)", lambda: list(hash_images(("", one) for one in data))),
        ("whole decode and hash", lambda: [image_hash(read_image(one)) for one in data]),
        ("hash of an image of 512 x 512", lambda: [image_hash(image) for image in small]),
    ):
        times = []
        for _ in range(3):
            cpu = time.process_time()
            work()
            times.append((time.process_time() - cpu) / len(data) * 1e3)
        print(f"{name}: {sorted(times)[1]:.2f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hashes", type=int, default=1_000_000)
    parser.add_argument("--crowd", type=int, default=100_000)
    options = parser.parse_args()
    measure_images(Path(os.environ.get("KOSMOSG_SHARED", "shared")) / "data" / "dreambench")
    measure_questions()
    measure_crowd(options.crowd)
    with tempfile.TemporaryDirectory() as made:
        measure_search(options.hashes, Path(made))
