"""Hash lists of whole sources, made by Ray: a part for each shard of the listing, and what is a copy of what.

    DEST/hashes/part-00000-<digest>.parquet    a hash list (`kosmosg.data.hash_list`), in parts
    DEST/duplicates.parquet                    which images to leave out, for the filter `duplicate`

A part is there when it is complete, so the same command resumes, and hashes only what is new.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kosmosg.data.annotators.base import Sample
from kosmosg.data.hash_list import Duplicates, find_duplicates, open_hash_list, write_duplicates, write_hash_list
from kosmosg.data.image_hash import HashedImage, hash_images
from kosmosg.data.sources.base import Reader, ReadyRow
from kosmosg.errors import DataError
from kosmosg_platform.datasets.listing import ListedShard, read_items, write_listing
from kosmosg_platform.faults import told_in_a_sentence
from kosmosg_platform.owned_folder import claim_folder
from kosmosg_platform.progress import Progress

SHARD_ROWS = 4096
SHARD_BYTES = 512 * 2**20
UNDER_WAY = 64  # tasks that wait or run; Ray queues them


@dataclass(frozen=True)
class HashedSource:
    """What a source became."""

    folder: Path
    hashed: int
    """Images in the list."""
    refused: int
    """Rows without an image that can be read, of the parts made in this run."""
    duplicates: Duplicates


def hash_source(
    folder: Path, reader: Reader, radius: int, limit: int | None, start_ray: Callable[[], object]
) -> HashedSource:
    """Hash every image of a source, and find its copies within `radius` bits.

    Raises DataError when the source cannot be read, or has no image that can be, and UnavailableError as `build` does.
    """
    with told_in_a_sentence(folder):
        return _hash_source(folder, reader, radius, limit, start_ray)


def _hash_source(
    folder: Path, reader: Reader, radius: int, limit: int | None, start_ray: Callable[[], object]
) -> HashedSource:
    next(reader.items(), None)  # a source that cannot be read is refused before anything is written
    folder = claim_folder(folder, "hash_list", f"hashes of {reader.describe()['layout']}")
    shards = write_listing(folder, reader, SHARD_ROWS, SHARD_BYTES, limit)
    place = folder / "hashes"
    place.mkdir(exist_ok=True)
    missing = [shard for shard in shards if not _part(folder, shard).is_file()]
    refused = _hash(folder, reader, missing, start_ray) if missing else 0
    wanted = {_part(folder, shard) for shard in shards}
    for path in place.glob("part-*.parquet"):
        if path not in wanted:
            path.unlink()
    listed = open_hash_list(place)
    if not listed.rows:
        raise DataError(f"source: none of the {refused:,} rows has an image that can be read")
    found = find_duplicates(listed, radius)
    write_duplicates(folder / "duplicates.parquet", found)
    return HashedSource(folder, listed.rows, refused, found)


def _hash(folder: Path, reader: Reader, shards: Sequence[ListedShard], start_ray: Callable[[], object]) -> int:
    import ray

    start_ray()
    task = ray.remote(num_cpus=1, max_retries=3)(hash_shard)
    waiting: list[ray.ObjectRef[tuple[int, int]]] = []
    todo = list(shards)
    rows = refused = 0
    with Progress("hashes", len(shards), "shards") as shown:
        done = 0
        while todo or waiting:
            while todo and len(waiting) < UNDER_WAY:
                waiting.append(task.remote(folder, reader, todo.pop(0)))
            ready, waiting = ray.wait(waiting, num_returns=1)
            for hashed, bad in ray.get(ready):
                done, rows, refused = done + 1, rows + hashed, refused + bad
                shown.update(done, f"{rows:,} images, {refused:,} refused")
    return refused


def hash_shard(folder: Path, reader: Reader, shard: ListedShard) -> tuple[int, int]:
    """Hash the images of one shard; gives how many were hashed, and how many rows were refused."""
    hashed: list[HashedImage] = []
    refused = 0
    for row in reader.read(read_items(folder, shard.name)):
        if isinstance(row, Sample):
            made = next(iter(hash_images([(row.id, row.encoded)])))
        elif isinstance(row, ReadyRow) and row.record.get("image"):
            made = next(iter(hash_images([(str(row.record["id"]), row.record["image"])])))
        else:
            refused += 1
            continue
        if isinstance(made, HashedImage):
            hashed.append(made)
        else:
            refused += 1
    write_hash_list(_part(folder, shard), hashed)
    return len(hashed), refused


def _part(folder: Path, shard: ListedShard) -> Path:
    return folder / "hashes" / f"{shard.name}-{shard.digest[:16]}.parquet"
