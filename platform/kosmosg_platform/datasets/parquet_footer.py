"""One row group of a Parquet file without the rest of its footer.

Parquet keeps the metadata of all row groups in one footer, about a kilobyte per group, and a reader holds all of it in
decoded form. A dataset for random access has a row group for every few records, so its footers together are gigabytes.
`FooterIndex` holds only where the metadata of each group begins in the file (4 bytes a group); to read a group, its own
metadata is read and put between the head and tail of the footer, which is then a valid footer of one group.

The footer is a Thrift struct in the compact protocol: `FileMetaData` of parquet.thrift, with the row groups in field 4.
Source: https://github.com/apache/parquet-format and Thrift's thrift-compact-protocol.md.
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kosmosg.errors import DataError

MAGIC = b"PAR1"
ROW_GROUPS = 4  # field of FileMetaData
TRAILER = 8  # bytes after the footer: its length, and the magic
ONE_STRUCT = b"\x19\x1c"  # field header: one after the last field, a list; list header: one element, a struct

# Types of the compact protocol.
_BOOLEANS, _BYTE, _VARINTS, _DOUBLE, _BINARY, _LISTS, _STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 12


@dataclass(frozen=True, slots=True)
class FooterIndex:
    """Where the row groups of one Parquet file lie."""

    head: bytes
    """The footer before its row groups."""
    tail: bytes
    """The footer after them."""
    starts: NDArray[np.uint32]
    """(groups + 1,) where the metadata of each group begins in the footer, and where the last one ends."""
    footer: int
    """Where the footer begins in the file."""
    ends: NDArray[np.uint32]
    """(groups,) the file's row after each group's last."""

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def group_of(self, row: int) -> tuple[int, int]:
        """The group that holds a row of the file, and the row's place in it."""
        group = int(np.searchsorted(self.ends, row, side="right"))
        return group, row - (int(self.ends[group - 1]) if group else 0)

    def metadata(self, group: int, descriptor: int) -> Any:
        """The `pyarrow.parquet.FileMetaData` of one group alone, read from the open file."""
        first, last = int(self.starts[group]), int(self.starts[group + 1])
        own = os.pread(descriptor, last - first, self.footer + first)
        return _parse(self.head + ONE_STRUCT + own + self.tail)

    def to_bytes(self) -> bytes:
        """For `from_bytes`."""
        sizes = np.array([len(self.head), len(self.tail), len(self.ends), self.footer], dtype="<u8")
        arrays = (self.starts.astype("<u4"), self.ends.astype("<u4"))
        return b"".join((sizes.tobytes(), self.head, self.tail, *(array.tobytes() for array in arrays)))

    @classmethod
    def from_bytes(cls, data: bytes) -> "FooterIndex":
        """The inverse of `to_bytes`. Raises ValueError if the sizes do not fit."""
        head, tail, groups, footer = (int(size) for size in np.frombuffer(data, dtype="<u8", count=4))
        cut = 32 + head + tail
        numbers = np.frombuffer(data, dtype="<u4", offset=cut)
        if len(numbers) != 2 * groups + 1:
            raise ValueError(f"an index of {groups} groups has {2 * groups + 1} numbers, not {len(numbers)}")
        starts, ends = numbers[: groups + 1].copy(), numbers[groups + 1 :].copy()
        return cls(data[32 : 32 + head], data[32 + head : cut], starts, footer, ends)


def read_footer_index(path: str | os.PathLike[str]) -> FooterIndex:
    """Read a file's footer and index it. Raises DataError if the file is not Parquet, or its footer is damaged."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        file.seek(max(0, size - TRAILER))
        trailer = file.read(TRAILER)
        length = int.from_bytes(trailer[:4], "little")
        begin = size - TRAILER - length
        if trailer[4:] != MAGIC or begin < len(MAGIC):
            raise DataError(f"{path} is not a Parquet file: it does not end with a footer")
        file.seek(begin)
        footer = file.read(length)
    try:
        metadata = _parse(footer)
        first, starts = _row_groups(footer)
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        raise DataError(f"the footer of {path} is damaged: {error}") from error
    if len(starts) != metadata.num_row_groups + 1:
        raise DataError(f"the footer of {path} is damaged: it has {len(starts) - 1} row groups, not as many as it says")
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    ends = np.cumsum(rows, dtype=np.uint32)
    return FooterIndex(footer[:first], footer[starts[-1] :], np.array(starts, dtype=np.uint32), begin, ends)


def _parse(footer: bytes) -> Any:
    return pq.read_metadata(pa.BufferReader(b"".join((MAGIC, footer, len(footer).to_bytes(4, "little"), MAGIC))))


def _row_groups(footer: bytes) -> tuple[int, list[int]]:
    """Where field 4 begins, and where each of its structs begins; the last number is where they end."""
    at = field = 0
    while footer[at]:
        begin, header = at, footer[at]
        at += 1
        if not header >> 4:
            raise ValueError("field numbers in the long form are not expected in a file's metadata")
        field += header >> 4
        if field == ROW_GROUPS:
            if header & 15 not in _LISTS or footer[begin] >> 4 != 1:
                raise ValueError("its row groups are not where they are expected")
            count, _, at = _list(footer, at)
            starts = [at]
            for _ in range(count):
                at = _skip(footer, at, _STRUCT)
                starts.append(at)
            return begin, starts
        at = _skip(footer, at, header & 15)
    raise ValueError("it has no row groups")


def _skip(data: bytes, at: int, kind: int) -> int:
    """Where a value ends that begins at `at`."""
    if kind in _BOOLEANS:
        return at  # the value is in the type
    if kind in _VARINTS:
        while data[at] > 127:
            at += 1
        return at + 1
    if kind == _BINARY:
        size, at = _varint(data, at)
        return at + size
    if kind == _STRUCT:
        while header := data[at]:
            at += 1
            if not header >> 4:  # the field's number follows
                at = _skip(data, at, _VARINTS[0])
            at = _skip(data, at, header & 15)
        return at + 1
    if kind in _LISTS:
        count, element, at = _list(data, at)
        if element in _BOOLEANS:
            return at + count
        for _ in range(count):
            at = _skip(data, at, element)
        return at
    if kind in (_BYTE, _DOUBLE):
        return at + (1 if kind == _BYTE else 8)
    raise ValueError(f"type {kind} is not expected in a file's metadata")


def _list(data: bytes, at: int) -> tuple[int, int, int]:
    """Length of a list, type of its elements, where they begin."""
    header = data[at]
    if header >> 4 < 15:
        return header >> 4, header & 15, at + 1
    size, at = _varint(data, at + 1)
    return size, header & 15, at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


__all__ = ["FooterIndex", "read_footer_index"]
