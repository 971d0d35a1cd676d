"""Records of a CSV file. Quoted cells may hold line breaks, so where a record begins is known only by reading from the
beginning: the listing does that once and cuts ranges at records, the reading then goes straight to its range.

A quote that is never closed would swallow the rest of the file. A record that grows too long is given up instead: its
first line is told as a bad row, and reading goes on behind it.
"""

import csv
from collections.abc import Iterator
from typing import NamedTuple

from kosmosg.data.files.line_ranges import BrokenOffError, Line, LineRange, read_lines
from kosmosg.data.files.source_files import SourceFiles

_RECORD_BYTES = 1 << 20  # of the lines over which a record runs on


class CsvRecord(NamedTuple):
    """One record."""

    start: int
    """Offset of its first byte in the (unpacked) file."""
    cells: list[str] | None
    """None when it cannot be parsed."""
    message: str = ""
    """Why not."""


def read_records(
    files: SourceFiles, path: str, start: int = 0, stop: int = 0, longest: int = _RECORD_BYTES
) -> Iterator[CsvRecord]:
    """The records that begin in [start, stop); a record begins at `start`. Cells are bytes as Latin-1: see `text`.

    Raises BrokenOffError where the file cannot be read further.
    """
    # Process-wide, and never lowered: a base64 image is longer than the 128 kB that csv takes by default.
    csv.field_size_limit(max(csv.field_size_limit(), longest))
    lines = _Lines(read_lines(files, path, start, longest=longest))
    while (first := lines.peek()) is not None:
        if stop and first.start >= stop:
            return
        yield lines.record(first)


def text(cell: str) -> str:
    """What stands in a cell. Raises UnicodeDecodeError."""
    return cell.encode("latin-1").decode("utf-8")


def record_ranges(
    files: SourceFiles, path: str, sizes: Iterator[int], size: int, longest: int = _RECORD_BYTES
) -> Iterator[LineRange]:
    """Ranges of as many records as `sizes` says, or of `size` bytes where those are fewer. Reads the file once.

    A file that breaks off is listed up to there; the last range is open-ended, so its reading tells of the damage.
    """
    start, count, at, rows = 0, 0, 0, next(sizes)
    for record in _until_broken(read_records(files, path, longest=longest)):
        at = record.start
        if count and (count == rows or at - start >= size):
            yield LineRange(start, at, count)
            start, count, rows = at, 0, next(sizes)
        count += 1
    yield LineRange(start, 0, max(count, 1))


def _until_broken(records: Iterator[CsvRecord]) -> Iterator[CsvRecord]:
    try:
        yield from records
    except BrokenOffError:
        return


class _Lines:
    """Lines as csv takes them, which can be put back when a record turns out not to be one."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self._back: list[Line] = []
        self._taken: list[Line] = []

    def peek(self) -> Line | None:
        """The next line that is not empty."""
        while True:
            line = self._back.pop() if self._back else next(self._lines, None)
            if line is None or line.data is None or line.data.strip():
                break
        if line is not None:
            self._back.append(line)
        return line

    def record(self, first: Line) -> CsvRecord:
        self._taken = []
        try:
            cells = next(csv.reader(self._given(), strict=False))
        except (csv.Error, _TooLongError) as error:
            told = "it is too long, or a quote in it is never closed" if isinstance(error, _TooLongError) else error
            self._back += reversed(self._taken[1:])
            return CsvRecord(first.start, None, f"no record of a CSV: {told}")
        return CsvRecord(first.start, cells)

    def _given(self) -> Iterator[str]:
        size = 0
        while True:
            line = self._back.pop() if self._back else next(self._lines, None)
            if line is None:
                if self._taken:
                    raise _TooLongError
                return
            size += len(line.data or b"") if self._taken else 0
            self._taken.append(line)
            if line.data is None or size > _RECORD_BYTES:
                raise _TooLongError
            data = line.data.removeprefix(b"\xef\xbb\xbf") if line.start == 0 else line.data
            # csv ends a record at a line break of its own.
            yield data.decode("latin-1").removesuffix("\r") + "\n"


class _TooLongError(Exception):
    pass
