"""Open Images by number: its ids are 16 hex digits, so millions of them are sorted arrays of 8 bytes each, no dicts."""

import hashlib
import re
from array import array
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kosmosg.data.files.source_files import FileEntry, SourceFiles
from kosmosg.data.files.tar_index import TornTar, for_headers, members
from kosmosg.data.sources.image_rows import IMAGE_SUFFIXES

Ids = NDArray[np.uint64]
_NIBBLES = np.full(256, 255, dtype=np.uint8)
_NIBBLES[[ord(digit) for digit in "0123456789abcdef"]] = range(16)
_IMAGE = re.compile(rf"(?:(.*)/)?([0-9a-f]{{16}})\.({'|'.join(IMAGE_SUFFIXES)})", re.IGNORECASE).fullmatch


def parse_ids(column: Any) -> tuple[Ids, NDArray[np.bool_]]:
    """An Arrow array of bytes as numbers, and which of them are ids at all (the others become 0)."""
    column = column.cast(pa.large_binary())
    offsets = np.frombuffer(column.buffers()[1], dtype=np.int64)[column.offset : column.offset + len(column) + 1]
    good = np.diff(offsets) == 16
    ids = np.zeros(len(column), dtype=np.uint64)
    if good.any():
        data = np.frombuffer(column.buffers()[2], dtype=np.uint8)
        places = offsets[:-1][good, None] + np.arange(16)
        digits = _NIBBLES[data[places]]
        good[good] = (digits < 16).all(axis=1)
        digits = digits[(digits < 16).all(axis=1)]
        ids[good] = ((digits[:, ::2] << 4) | digits[:, 1::2]).view(">u8").ravel()
    return ids, good


class SeenIds:
    """The ids of a list so far, as a few sorted arrays that are merged when they have grown alike."""

    def __init__(self) -> None:
        self.runs: list[Ids] = []

    def add(self, ids: Ids) -> NDArray[np.bool_]:
        """Take ids in; true for those that were there before, or earlier among these."""
        _, first = np.unique(ids, return_index=True)
        known = np.ones(len(ids), dtype=bool)
        known[first] = False
        known |= self.has(ids)
        self.runs.append(np.sort(ids[~known]))
        while len(self.runs) > 1 and len(self.runs[-2]) < 2 * len(self.runs[-1]):
            self.runs[-2:] = [np.sort(np.concatenate(self.runs[-2:]))]
        return known

    def take(self, other: "SeenIds") -> None:
        """Take in all ids of another."""
        self.runs += other.runs

    def has(self, ids: Ids) -> NDArray[np.bool_]:
        """Whether ids are there."""
        found = np.zeros(len(ids), dtype=bool)
        for run in self.runs:
            if len(run):
                at = np.minimum(np.searchsorted(run, ids), len(run) - 1)
                found |= run[at] == ids
        return found


class ImagePlace(NamedTuple):
    """Where one image is."""

    path: str
    """Of its file, or of the tar that holds it."""
    start: int
    """First byte in the tar; 0 for a file of its own."""
    length: int
    """Bytes in the tar; 0 for a file of its own."""
    size: int
    stamp: str


class ImageIndex:
    """Where the image of each id is: 36 bytes an image."""

    def __init__(self) -> None:
        self.folders: list[tuple[str, str]] = []  # (what stands before an id, what behind it); a tar has no behind
        self._codes: dict[tuple[str, str], int] = {}
        self._made: tuple[array[int], ...] = (array("Q"), array("q"), array("q"), array("Q"), array("i"))
        self._sorted: list[NDArray[Any]] = []

    def __len__(self) -> int:
        return len(self._sorted[0]) if self._sorted else len(self._made[0])

    def add_file(self, entry: FileEntry) -> bool:
        """Take in a file if it is named after an id."""
        named = _IMAGE(entry.path)
        if named is None or (not named[2].islower() and not named[2].isdigit()):
            return False
        before = f"{named[1]}/" if named[1] is not None else ""
        self._add(named[2], (before, f".{named[3]}"), -1, entry.size, entry.stamp)
        return True

    def add_tar(self, files: SourceFiles, entry: FileEntry) -> str | None:
        """Take in the images of a plain tar; what is wrong with it where it is torn."""
        with files.open(entry.path) as file:
            try:
                for member in members(for_headers(file, files.is_local), entry.size):
                    named = _IMAGE(member.name)
                    if named is not None and member.is_file:
                        self._add(named[2].lower(), (entry.path, ""), member.data, member.size, entry.stamp)
            except TornTar as torn:
                return str(torn)
        return None

    def _add(self, digits: str, folder: tuple[str, str], start: int, size: int, stamp: str) -> None:
        code = self._codes.get(folder)
        if code is None:
            code = self._codes[folder] = len(self.folders)
            self.folders.append(folder)
        short = int.from_bytes(hashlib.blake2b(stamp.encode(), digest_size=8).digest(), "big")
        for column, value in zip(self._made, (int(digits, 16), start, size, short, code), strict=True):
            column.append(value)

    def finish(self) -> None:
        """Sort, after the last image; of two files of one id the first is kept."""
        kinds = (np.uint64, np.int64, np.int64, np.uint64, np.int32)
        columns = [np.frombuffer(made, dtype=kind) for made, kind in zip(self._made, kinds, strict=True)]
        order = np.argsort(columns[0], kind="stable")
        self._sorted = [column[order] for column in columns]
        self._made = ()
        self._codes = {}

    def find(self, ids: Ids) -> NDArray[np.int64]:
        """The position of each id, -1 where there is no image."""
        known = self._sorted[0]
        if not len(known):
            return np.full(len(ids), -1, dtype=np.int64)
        at = np.searchsorted(known, ids)
        found = known[np.minimum(at, len(known) - 1)] == ids
        return np.where(found, at, -1)

    def places(self, positions: NDArray[np.int64]) -> Iterator[ImagePlace]:
        """Where the images at some positions are; all positions are at least 0."""
        columns = [column[positions].tolist() for column in self._sorted]
        for digits, start, size, stamp, code in zip(*columns, strict=True):
            before, behind = self.folders[code]
            if start < 0:
                yield ImagePlace(f"{before}{digits:016x}{behind}", 0, 0, size, f"{stamp:x}")
            else:
                yield ImagePlace(before, start, size, size, f"{stamp:x}")
