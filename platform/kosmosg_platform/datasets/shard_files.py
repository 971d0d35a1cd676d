"""Reading single row groups of many Parquet files, with few files open and little memory per file.

A file's content is compared with the sha256 that the manifest tells before its first record is read: once per node and
file (`kosmosg.node_cache`). It is opened when it is needed; of a file that is not open, about 4 bytes per row group
and half a kilobyte stay in memory.
"""

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kosmosg.errors import DataError
from kosmosg.node_cache import FileStatus, digest_again, file_digest, file_status, once_per_node
from kosmosg_platform.datasets.parquet_footer import FooterIndex, read_footer_index
from kosmosg_platform.stores.node_copy import bucket_of
from kosmosg_platform.stores.shard_cache import cached

OPEN_FILES = 32  # per dataset and process
AGAIN = "delete it and run the same build again, which builds only what is missing, or copy the file again"


def shard_file(folder: Path, entry: Mapping[str, Any]) -> Path:
    """The file of a manifest's entry; for a dataset in an object store, a copy that this node keeps."""
    bucket = bucket_of(folder)
    if bucket is None:
        return folder / str(entry["name"])
    return cached(bucket, str(entry["name"]), int(entry["bytes"]), str(entry["sha256"]))


class ShardFiles:
    """The Parquet files of one dataset.

    Args:
        folder: the dataset's folder.
        entries: the shards as the manifest lists them: name, rows, bytes, sha256.
        columns: read only these columns; null reads all.
        verify: compare each file's sha256 with its entry before anything is read from it.
    """

    def __init__(
        self,
        folder: Path,
        entries: Sequence[Mapping[str, Any]],
        columns: Sequence[str] | None = None,
        verify: bool = True,
    ) -> None:
        self._folder, self._entries, self._verify = folder, entries, verify
        self._columns = list(columns) if columns is not None else None
        self._known: dict[int, tuple[FileStatus, FooterIndex]] = {}
        self._parts: dict[bytes, bytes] = {}  # heads and tails: most shards of a dataset share them
        self._open: OrderedDict[int, pa.NativeFile] = OrderedDict()

    def path(self, shard: int) -> Path:
        """The file of a shard; of a dataset in an object store, a copy that this node keeps.

        Raises DataError, or StoreError, if there is none to be had.
        """
        return shard_file(self._folder, self._entries[shard])

    def index(self, shard: int) -> FooterIndex:
        """Where the shard's row groups lie. Raises DataError as `read` does."""
        if shard not in self._known:
            self._file(shard)
        return self._known[shard][1]

    def read(self, shard: int, group: int) -> pa.Table:
        """One row group.

        Raises:
            DataError: the file is missing, unreadable, or not the one that the manifest describes.
        """
        file = self._file(shard)
        try:
            metadata = self._known[shard][1].metadata(group, file.fileno())
            # Without threads of its own: a data loader's process is forked, and many of them share a node's cores.
            opened = pq.ParquetFile(file, metadata=metadata, page_checksum_verification=True)
            return opened.read_row_group(0, columns=self._columns, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"shard {self.path(shard)} cannot be read ({error}); {AGAIN}") from error

    def read_ids(self, shard: int, group: int) -> list[str]:
        """The ids of one row group."""
        file = self._file(shard)
        opened = pq.ParquetFile(file, metadata=self._known[shard][1].metadata(group, file.fileno()))
        ids: list[str] = opened.read_row_group(0, columns=["id"], use_threads=False).column("id").to_pylist()
        return ids

    def open_files(self) -> int:
        """How many files are open."""
        return len(self._open)

    def _file(self, shard: int) -> pa.NativeFile:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        path = self.path(shard)
        try:
            file = pa.OSFile(str(path))
            status = file_status(file.fileno())
            # A record is one read at a random place: what the system would read ahead is never used.
            if hasattr(os, "posix_fadvise"):  # not on a Mac
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            if shard not in self._known or self._known[shard][0] != status:
                self._known[shard] = (status, self._look(shard, path))
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"shard {path} cannot be read ({error}); {AGAIN}") from error
        self._open[shard] = file
        while len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        return file

    def _look(self, shard: int, path: Path) -> FooterIndex:
        """Check a file against its entry, and index it."""
        entry = self._entries[shard]
        size = path.stat().st_size
        if self._verify and size != entry["bytes"]:
            raise DataError(f"shard {path} has {size} bytes, its manifest says {entry['bytes']}; {AGAIN}")
        # What has been kept is no ground to refuse a file: it is read again first.
        if self._verify and file_digest(path) != entry["sha256"] and (found := digest_again(path)) != entry["sha256"]:
            raise DataError(
                f"shard {path} has the sha256 {found}, its manifest says {entry['sha256']}: it is damaged, or another "
                f"file of the same name; {AGAIN}"
            )
        index = FooterIndex.from_bytes(once_per_node(path, "row groups", lambda one: read_footer_index(one).to_bytes()))
        if index.rows != entry["rows"]:
            raise DataError(f"shard {path} has {index.rows} rows, its manifest says {entry['rows']}; {AGAIN}")
        head, tail = (self._parts.setdefault(part, part) for part in (index.head, index.tail))
        return FooterIndex(head, tail, index.starts, index.footer, index.ends)


__all__ = ["AGAIN", "OPEN_FILES", "ShardFiles", "shard_file"]
