"""Lines of text files in ranges of bytes, so that a large file can be read in parts; .gz, .zst, .bz2 and .zip as well.

A line belongs to the range in which it begins. Ranges of a compressed file count unpacked bytes; to get to one, all
before it is unpacked and thrown away, block by block. Nothing here ever holds more than a block and one line.
"""

import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa

from kosmosg.data.files.source_files import FileEntry, SourceFiles

BLOCK = 1 << 18
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
PACKED = (*COMPRESSIONS, ".zip")
# Enough of a compressed file to estimate how long it is unpacked, and what is unpacked for that at most.
_PROBE, _PROBE_UNPACKED = 1 << 20, 1 << 26
_SAMPLE_LINES, _SAMPLE_BYTES = 20, 1 << 20


class Line(NamedTuple):
    """One line, without its line break."""

    start: int
    """Offset of its first byte in the (unpacked) file."""
    data: bytes | None
    """None when it is longer than what the caller takes."""


class LineRange(NamedTuple):
    """A part of a file."""

    start: int
    stop: int
    """First byte behind it; 0: to the end of the file, however long that is."""
    rows: int
    """Lines in it, about."""


class BrokenOffError(Exception):
    """A file that cannot be read further: torn, or not what its name says."""

    def __init__(self, start: int, message: str) -> None:
        super().__init__(message)
        self.start = start
        """Where the line begins that cannot be read."""


def form_of(path: str) -> str:
    """The suffix that says what the lines are, whatever the file is compressed with: `a.jsonl.gz` -> `.jsonl`."""
    pure = PurePosixPath(path.lower())
    return pure.with_suffix("").suffix if pure.suffix in PACKED else pure.suffix


def read_lines(files: SourceFiles, path: str, start: int = 0, stop: int = 0, longest: int = BLOCK) -> Iterator[Line]:
    """The lines that begin in [start, stop). Raises BrokenOffError, if the line that is torn begins there."""
    if files.entry(path) is None:
        raise BrokenOffError(start, "it is not there any more")
    # From the byte before: only if that one ends a line, a line begins at `start`.
    begin = max(start - 1, 0)
    try:
        for line in split_lines(_blocks(files, path, begin), begin, longest):
            if stop and line.start >= stop:
                return
            if line.start >= start:
                yield line
    except BrokenOffError as error:
        if not path.lower().endswith(PACKED):
            raise BrokenOffError(max(error.start, start), str(error)) from error
        # All later ranges of a compressed file meet the same damage; the one in which the torn line begins tells it.
        if error.start >= start and not (stop and error.start >= stop):
            raise


def split_lines(blocks: Iterator[bytes], offset: int, longest: int) -> Iterator[Line]:
    """The lines of a stream whose first byte has this offset. Raises BrokenOffError."""
    held: list[bytes] = []
    size = 0
    try:
        for block in blocks:
            *pieces, rest = block.split(b"\n")
            for piece in pieces:
                size += len(piece)
                yield Line(offset, (b"".join((*held, piece)) if held else piece) if size <= longest else None)
                offset += size + 1
                held, size = [], 0
            size += len(rest)
            if size > longest:
                held = []
            elif rest:
                held.append(rest)
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise BrokenOffError(offset, f"it breaks off at byte {offset + size:,}: {told}") from error
    if size:
        yield Line(offset, b"".join(held) if size <= longest else None)


def sample_lines(files: SourceFiles, path: str, longest: int) -> list[Line]:
    """Some lines from the beginning; empty ones are left out. Raises BrokenOffError if there is not one."""
    found: list[Line] = []
    size = 0
    try:
        for line in read_lines(files, path, longest=longest):
            if line.data is not None and line.data.strip():
                found.append(line)
                size += len(line.data)
            if len(found) == _SAMPLE_LINES or size > _SAMPLE_BYTES:
                break
    except BrokenOffError:
        if not found:
            raise
    return found


def growing(first: int, most: int) -> Iterator[int]:
    """Rows of one range after the other: `first`, twice as many, and so on up to `most`.

    A build with a `limit` takes whole ranges: small ones to begin with let it try a few rows.
    """
    rows = min(first, most)
    while True:
        yield rows
        rows = min(2 * rows, most)


def line_ranges(
    files: SourceFiles, entry: FileEntry, sample: list[Line], sizes: Iterator[int], size: int
) -> Iterator[LineRange]:
    """Ranges of about as many lines as `sizes` says, of at most `size` bytes. They depend on the file alone."""
    average = sum(len(line.data or b"") + 1 for line in sample) / max(len(sample), 1) or 1.0
    total = unpacked_size(files, entry)
    start, stop = 0, -1
    while stop:
        step = max(int(min(size, next(sizes) * average)), 1)
        stop = start + step if start + step < total else 0
        yield LineRange(start, stop, max(round(min(step, total - start) / average), 1))
        start = stop


def unpacked_size(files: SourceFiles, entry: FileEntry) -> int:
    """How many bytes a file has once it is unpacked; of .gz, .zst and .bz2 estimated from its beginning."""
    suffix = PurePosixPath(entry.path.lower()).suffix
    if suffix not in PACKED:
        return entry.size
    if suffix == ".zip":
        try:
            with files.open(entry.path) as file, zipfile.ZipFile(file) as archive:
                return _member(archive).file_size
        except (OSError, ValueError, zipfile.BadZipFile):
            return entry.size
    unpacked = 0
    try:
        probe = files.read(entry.path, 0, _PROBE)
        stream = pa.CompressedInputStream(io.BytesIO(probe), COMPRESSIONS[suffix])
        while unpacked < _PROBE_UNPACKED and (block := stream.read(BLOCK)):
            unpacked += len(block)
    except (OSError, ValueError):
        pass  # cut by the probe, or damaged: the reading tells
    return int(max(unpacked, 1) * max(entry.size / _PROBE, 1.0))


def common_width(rows: list[list[str]]) -> int:
    """The number of cells that most rows have."""
    return Counter(map(len, rows)).most_common(1)[0][0] if rows else 0


def _blocks(files: SourceFiles, path: str, begin: int) -> Iterator[bytes]:
    suffix = PurePosixPath(path.lower()).suffix
    with files.open(path) as file:
        if suffix == ".zip":
            with zipfile.ZipFile(file) as archive, archive.open(_member(archive)) as member:
                yield from _skipped(member, begin)
        elif suffix in COMPRESSIONS:
            yield from _skipped(pa.CompressedInputStream(file, COMPRESSIONS[suffix]), begin)
        else:
            file.seek(begin)
            yield from _skipped(file, 0)


def _skipped(stream: Any, begin: int) -> Iterator[bytes]:
    """Blocks of a stream without its first bytes. Read in equal steps from 0, so that damage is met in one place."""
    while block := stream.read(BLOCK):
        if begin < len(block):
            yield block[begin:]
            begin = 0
        else:
            begin -= len(block)


def _member(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """The file in a .zip. Its name is not used, so it can lead nowhere. Raises ValueError unless there is one."""
    members = [info for info in archive.infolist() if not info.is_dir() and "__MACOSX" not in info.filename]
    if len(members) != 1:
        raise ValueError(f"the .zip holds {len(members)} files; one with lines is expected")
    return members[0]
