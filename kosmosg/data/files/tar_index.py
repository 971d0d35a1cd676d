"""What stands where in a tar, from its headers alone: a tar of 10,000 images is listed without reading one of them.

Written for tars that others made: names, sizes and kinds of members are told as they stand, nothing is unpacked and no
link is followed. A tar that breaks off gives its whole members and then says where it broke.
"""

import io
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

BLOCK = 512
_NAME_BYTES = 64 * 1024  # of an extended header; longer is no name, but damage
_FAR_BLOCK = 1 << 20
_END_BYTES = 1024 * 1024  # end mark and padding; GNU tar pads to 10 kB, some writers to more
_REGULAR = b"0\x007"
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL, _FOLDER = b"L", b"K", b"x", b"g", b"5"
_ADLER = 65521


class TarMember(NamedTuple):
    """One member of a tar."""

    name: str
    start: int
    """First byte of its headers."""
    data: int
    """First byte of its content."""
    size: int
    """Bytes of content."""
    is_file: bool
    """False for links, devices and the like."""

    @property
    def end(self) -> int:
        """One past its last block."""
        return padded(self.data + self.size)


class TornTar(Exception):
    """A tar that ends before its end mark, or continues with something else.

    Args:
        at: the first byte that is lost.
        message: how that shows.
        name: of the member that is cut off, where it is known.
    """

    def __init__(self, at: int, message: str, name: str | None = None) -> None:
        super().__init__(message)
        self.at = at
        self.name = name


def for_headers(file: Any, is_near: bool) -> Any:
    """A file of which headers are to be read: far away one large request beats many small ones."""
    return file if is_near else io.BufferedReader(file, _FAR_BLOCK)


def padded(size: int) -> int:
    """A number of bytes, in whole blocks."""
    return -(-size // BLOCK) * BLOCK


def members(file: Any, size: int | None = None) -> Iterator[TarMember]:
    """The members of a tar, folders left out, in their order.

    Args:
        file: open for reading bytes, at its beginning; it only seeks forwards, so a decompressing file will do.
        size: of the file in bytes, where it is known: a member that reaches beyond it is torn.

    Raises TornTar behind the last whole member, OSError and EOFError as `file` does.
    """
    at = start = 0
    name = ""
    told_size: int | None = None
    while True:
        file.seek(at)
        header = file.read(BLOCK)
        if len(header) < BLOCK:
            raise TornTar(start, f"the tar breaks off after {at + len(header):,} bytes, without its end mark")
        kind = header[156:157]
        length = _checked_size(header)
        if length is None:
            if not header.strip(b"\0"):
                _check_end(file, at, size)
                return
            raise TornTar(start, f"there is no header of a member at byte {at:,}, where one should be")
        data = at + BLOCK
        if kind == b"0" and not name and told_size is None and (size is None or data + length <= size):
            yield TarMember(_name(header), start, data, length, True)  # nearly all are as plain as this
            at = start = data + -(-length // BLOCK) * BLOCK
            continue
        if kind in (_LONG_NAME, _PAX):
            # The next header is of the same member, whose name or size did not fit there.
            if length > _NAME_BYTES:
                raise TornTar(start, f"the extended header at byte {at:,} has {length:,} bytes")
            content = file.read(padded(length))
            if len(content) < length:
                raise TornTar(start, f"the tar breaks off after {data + len(content):,} bytes, without its end mark")
            if kind == _LONG_NAME:
                name = _text(content[:length])
            else:
                path, told = _pax(content[:length])
                name, told_size = path or name, told
            at = data + padded(length)
            continue
        if kind in (_LONG_LINK, _PAX_GLOBAL):
            at = data + padded(length)
            start = start if kind == _LONG_LINK else at
            continue
        if told_size is not None:
            length = told_size
        is_file = kind in _REGULAR
        length = length if is_file or kind not in b"123456" else 0
        if size is not None and data + length > size:
            lost = name or _name(header)
            raise TornTar(start, f"the tar breaks off after {size:,} bytes, inside of {lost[:200]!r}", lost)
        if kind != _FOLDER:
            yield TarMember(name or _name(header), start, data, length, is_file)
        at = start = data + padded(length)
        name, told_size = "", None


def _check_end(file: Any, at: int, size: int | None) -> None:
    """Raises TornTar where a block of zeros is not the end mark, but a hole that a broken transfer left."""
    if (size or 0) - at > _END_BYTES or file.read(_END_BYTES).strip(b"\0"):
        raise TornTar(at, f"the tar has an end mark at byte {at:,}, but more behind it")


def _checked_size(header: bytes) -> int | None:
    """Bytes that follow a header; None where the checksum says that this is no header."""
    try:
        field = header[148:156]
        told = int(field.strip(b"\0 ") or b"x", 8)
        # Adler-32 has the sum of all bytes in its lower half, much faster than a loop would.
        total = (zlib.adler32(header) & 0xFFFF) - 1 - sum(field) + 8 * 32
        if (told - total) % _ADLER:
            return None
        if header[124] & 0x80:  # binary, for members of 8 GB and more
            return int.from_bytes(header[125:136], "big")
        size = int(header[124:136].strip(b"\0 ") or b"0", 8)
        return size if size >= 0 else None
    except ValueError:
        return None


def _name(header: bytes) -> str:
    name = _text(header[:100])
    if header[345] and header[257:263] == b"ustar\0":
        return f"{_text(header[345:500])}/{name}"
    return name


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _pax(content: bytes) -> tuple[str, int | None]:
    """Path and size of an extended header, where it tells them; each line is "length key=value"."""
    path, size, at = "", None, 0
    while at < len(content):
        space = content.find(b" ", at, at + 20)
        length = content[at:space]
        if space < 0 or not length.isdigit() or int(length) <= space - at:
            break
        key, _, value = content[space + 1 : at + int(length) - 1].partition(b"=")
        if key == b"path":
            path = _text(value)
        elif key == b"size" and value.isdigit():
            size = int(value)
        at += int(length)
    return path, size
