"""Files of image hashes, and of the duplicates found in them.

A hash list is Parquet (a file, or a folder of parts as workers leave them), with a row for each image. It serves
twice: the list of an evaluation set keeps its images out of training data (the filter `contaminated`), and the list of
a source tells which of its images are copies of others (`find_duplicates`, the filter `duplicate`).
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kosmosg.data.files.source_files import SourceFiles
from kosmosg.data.image_hash import ALGORITHM, FLAT, VERSION, HashedImage, Hashes
from kosmosg.data.near_duplicates import CAP, RADIUS, groups
from kosmosg.errors import DataError

_MADE_BY = b"kosmosg.image_hash"
HASH_SCHEMA = pa.schema(
    [("key", pa.string()), ("hash", pa.uint64()), ("sha256", pa.binary(32))],
    metadata={_MADE_BY: f"{ALGORITHM}/{VERSION}".encode()},
)
"""Of a hash list; its metadata say which hash it is."""
DUPLICATE_SCHEMA = pa.schema(
    [("key_hash", pa.uint64()), ("key", pa.string()), ("kept", pa.string()), ("exact", pa.bool_())],
    metadata={_MADE_BY: f"duplicates by {ALGORITHM}/{VERSION}".encode()},
)
"""Of a list of duplicates: an image to leave out, the one that is kept for it, and whether their bytes are the same."""
ROW_GROUP = 100_000


class Duplicates(NamedTuple):
    """What `find_duplicates` found."""

    table: Any
    """pyarrow table of `DUPLICATE_SCHEMA`, sorted by `key_hash`: the images to leave out."""
    images: int
    """In the hash list."""
    groups: int
    """Of two images and more."""
    crowded: int
    """How often a hash stood in a bucket larger than the cap, where pairs may be missed."""


class ParquetList:
    """A list in Parquet: one file, or the `.parquet` files of a folder, here or in an object store.

    Args:
        path: file, folder or URL.
        schema: what it must hold; the metadata included.

    Raises DataError when there is nothing, or another kind of file.
    """

    def __init__(self, path: str | Path, schema: Any) -> None:
        self.files = SourceFiles(path)
        self.path = str(path)
        self.schema = schema
        self.entries = tuple(self.files.walk((".parquet",)))
        if not self.entries:
            raise DataError(f"there is no .parquet file in {self.path}; make the list with kosmosg run hash_list")
        self.rows = sum(self._checked(entry.path) for entry in self.entries)

    def stamp(self) -> str:
        """Changes with the files."""
        return ";".join(f"{entry.path}:{entry.stamp}" for entry in self.entries)

    def sha256(self) -> str:
        """Of the bytes of all files, in hex."""
        digest = hashlib.sha256()
        for entry in self.entries:
            with self.files.open(entry.path) as file:
                while block := file.read(1 << 22):
                    digest.update(block)
        return digest.hexdigest()

    def batches(self, column: str) -> Iterator[Any]:
        """One column as pyarrow arrays, part after part, with bounded memory. Raises DataError for empty values."""
        for entry in self.entries:
            with self.files.open(entry.path) as file:
                for batch in pq.ParquetFile(file).iter_batches(batch_size=ROW_GROUP, columns=[column]):
                    values = batch.column(0)
                    if values.null_count:
                        raise DataError(f"{entry.path} of {self.path} has rows without {column}; make the list again")
                    yield values

    def numbers(self, column: str) -> Hashes:
        """A column of 64-bit numbers; of `sha256` the first 8 bytes."""
        out = np.empty(self.rows, np.uint64)
        at = 0
        for values in self.batches(column):
            out[at : at + len(values)] = _numbers(values)
            at += len(values)
        return out

    def strings(self, column: str, rows: NDArray[np.int64]) -> Any:
        """The texts of some rows, given in rising order, as a pyarrow array."""
        parts = [pa.array([], pa.large_string())]
        at = 0
        for values in self.batches(column):
            low, high = np.searchsorted(rows, (at, at + len(values)))
            parts.append(values.take(pa.array(rows[low:high] - at)).cast(pa.large_string()))
            at += len(values)
        return pa.concat_arrays(parts)

    def _checked(self, name: str) -> int:
        """Rows of one part. Raises DataError."""
        try:
            with self.files.open(name) as file:
                part = pq.ParquetFile(file)
                found, rows = part.schema_arrow, int(part.metadata.num_rows)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{name} of {self.path} is no Parquet file ({str(error).splitlines()[0]})") from error
        wanted = self.schema.metadata[_MADE_BY].decode()
        made = (found.metadata or {}).get(_MADE_BY, b"").decode(errors="replace")
        if made != wanted or not found.equals(self.schema):
            raise DataError(
                f"{name} of {self.path} is no list of {wanted}, but {made or 'of something else'} with the columns "
                f"{', '.join(found.names)}; make it again with kosmosg run hash_list"
            )
        return rows


def open_hash_list(path: str | Path) -> ParquetList:
    """A hash list, its schema checked. Raises DataError."""
    return ParquetList(path, HASH_SCHEMA)


def open_duplicates(path: str | Path) -> ParquetList:
    """A list of duplicates, its schema checked. Raises DataError."""
    return ParquetList(path, DUPLICATE_SCHEMA)


def hash_table(images: Sequence[HashedImage]) -> Any:
    """Hashes as a pyarrow table of `HASH_SCHEMA`."""
    return pa.table(
        [
            pa.array([image.key for image in images], pa.string()),
            pa.array([image.hash for image in images], pa.uint64()),
            pa.array([image.sha256 for image in images], pa.binary(32)),
        ],
        schema=HASH_SCHEMA,
    )


def write_hash_list(path: Path, images: Iterable[HashedImage]) -> int:
    """Write a hash list as a stream; it is there when it is complete. Returns how many images it has."""
    stream = iter(images)
    draft = path.with_name(f".{path.name}.part")
    rows = 0
    with pq.ParquetWriter(draft, HASH_SCHEMA) as writer:
        while some := list(islice(stream, ROW_GROUP)):
            writer.write_table(hash_table(some))
            rows += len(some)
    os.replace(draft, path)
    return rows


def write_duplicates(path: Path, found: Duplicates) -> None:
    """Write what `find_duplicates` found; it is there when it is complete."""
    draft = path.with_name(f".{path.name}.part")
    pq.write_table(found.table, draft, row_group_size=ROW_GROUP)
    os.replace(draft, path)


def find_duplicates(listed: ParquetList, radius: int = RADIUS, cap: int = CAP) -> Duplicates:
    """All images but one of each group of copies: those within `radius` bits of each other, chains included.

    The one that is kept is the first by its key, so the answer depends on the set of images only, not on the order in
    which they were hashed. Images without structure are copies of each other when their bytes are the same.

    Raises DataError when a key stands for several images.
    """
    hashes = listed.numbers("hash")
    flat = hashes == FLAT
    labels = np.empty(len(hashes), np.int64)
    labels[~flat], crowded = groups(hashes[~flat], radius, cap)
    del hashes
    content = listed.numbers("sha256")
    labels[flat] = len(labels) + np.unique(content[flat], return_inverse=True)[1]

    order = np.argsort(labels, kind="stable")
    same = labels[order][1:] == labels[order][:-1]
    shared = np.zeros(len(order), np.bool_)
    shared[1:] |= same
    shared[:-1] |= same
    rows = np.sort(order[shared])
    keys = listed.strings("key", rows)
    members = pa.table({"label": labels[rows], "row": rows, "key": keys})
    members = members.take(pc.sort_indices(members, sort_keys=[("label", "ascending"), ("key", "ascending")]))
    labels, rows, keys = members["label"].to_numpy(), members["row"].to_numpy(), members["key"].combine_chunks()

    first = np.append(True, labels[1:] != labels[:-1])[: len(labels)]
    keeper = np.maximum.accumulate(np.where(first, np.arange(len(labels)), 0))
    kept = keys.take(pa.array(keeper))
    # An image that was hashed twice under one key is no copy of itself.
    dropped = ~first & pc.not_equal(keys, kept).to_numpy(zero_copy_only=False)
    _check_once(keys.filter(pa.array(dropped)), keys.filter(pa.array(first)), listed.path)
    names = keys.filter(pa.array(dropped))
    table = pa.table(
        [
            pa.array([key_hash(name) for name in names.to_pylist()], pa.uint64()),
            names.cast(pa.string()),
            kept.filter(pa.array(dropped)).cast(pa.string()),
            pa.array((content[rows] == content[rows[keeper]])[dropped]),
        ],
        schema=DUPLICATE_SCHEMA,
    )
    return Duplicates(table.sort_by("key_hash"), listed.rows, int(first.sum()), crowded)


def key_hash(key: str) -> int:
    """64 bits of a key, so that millions of keys can be looked up in 8 bytes each.

    That a key of nine million has by chance the number of one of a million others has a probability of 5e-7.
    """
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def _check_once(dropped: Any, kept: Any, path: str) -> None:
    torn = dropped.filter(pc.is_in(dropped, kept))
    if len(torn):
        raise DataError(
            f"{path}: the key {torn[0].as_py()!r} stands for several images; hash each image once, under its own key"
        )


def _numbers(values: Any) -> Hashes:
    if pa.types.is_fixed_size_binary(values.type):
        width = values.type.byte_width
        content = np.frombuffer(values.buffers()[1], np.uint8)[values.offset * width :][: len(values) * width]
        return np.ascontiguousarray(content.reshape(-1, width)[:, :8]).view("<u8")[:, 0]
    found: Hashes = values.to_numpy()
    return found
