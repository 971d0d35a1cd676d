"""Members of a WebDataset tar, grouped by key as they stand.

The key is the path up to the first dot of the file name, the suffix what follows it: `a/001.seg.png` is the part
`seg.png` of the sample `a/001`. Hidden files, files without a suffix and folders are no samples.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kosmosg.data.files.source_files import safe
from kosmosg.data.files.tar_index import BLOCK, TarMember, TornTar, members
from kosmosg.errors import DataError


@dataclass
class TarSample:
    """The members of one key that stand together, or a place where something is wrong with the tar."""

    key: str
    start: int
    """First byte of its first header."""
    end: int
    """One past its last block."""
    bad: tuple[str, str] | None = None
    """Reason and sentence of what cannot be a sample; `key` is "" for a tear, which belongs to no sample."""
    suffixes: list[str] = field(default_factory=list)
    content: dict[str, bytes] = field(default_factory=dict)
    """By suffix, in small letters, where it was asked for."""


def samples(file: Any, size: int, content: int = 0, bound: int | None = None) -> Iterator[TarSample]:
    """The samples of a tar, in order; the last one tells where it is torn, if it is.

    Args:
        file: open for reading bytes; it only seeks forwards.
        size: of the file; for a compressed one `bound` is given instead and `size` is 0.
        content: bytes up to which images, texts and JSON are read along; 0 reads none. What is larger is refused.
        bound: bytes of a decompressed tar above which it is taken for a bomb.
    """
    current: TarSample | None = None
    before: list[str] = []  # what the sample before this one is made of
    try:
        for member in members(file, size or None):
            if bound is not None and member.data + member.size > bound:
                raise TornTar(member.start, f"the tar becomes more than {bound:,} bytes when it is decompressed")
            plain = _PLAIN(member.name)
            key, suffix, bad = (plain[1], plain[2], None) if plain and member.is_file else _named(member)
            if not suffix and bad is None:
                continue
            if current is None:
                current = TarSample(key, member.start, 0)
            elif key != current.key or suffix in current.suffixes:
                yield current
                before = current.suffixes
                current = TarSample(key, member.start, 0)
            current.end = member.data + -(-member.size // BLOCK) * BLOCK
            current.suffixes.append(suffix)
            if bad is not None and current.bad is None:
                current.bad = bad
            if content and current.bad is None and suffix.rpartition(".")[2] in READ_SUFFIXES:
                if member.size > content:
                    current.bad = ("unreadable", f"{member.name} has {member.size:,} bytes, the limit is {content:,}")
                else:
                    current.content[suffix] = data = file.read(member.size)
                    if len(data) < member.size:
                        raise TornTar(member.start, f"the tar breaks off inside of {member.name[:200]!r}", member.name)
    except TornTar as torn:
        if current is not None:
            lost = torn.name is not None and _key(torn.name)[0] == current.key
            if lost or not set(before) <= set(current.suffixes):
                current.bad = ("torn", f"{current.key!r} is cut off: {torn}")
            yield current
        yield TarSample("", torn.at, torn.at, ("torn", f"{torn}; what stood behind byte {torn.at:,} is lost"))
        return
    if current is not None:
        yield current


READ_SUFFIXES = frozenset(("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "txt", "json"))
"""Last part of the suffixes whose content is read; anything else (weights, pickles) is never looked at."""


_PLAIN = re.compile(r"([A-Za-z0-9_-][A-Za-z0-9_ -]*)\.([a-z0-9]+)").fullmatch
"""The names that nearly all members have, in a fraction of the time that looking at everything takes."""


def _key(name: str) -> tuple[str, str]:
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def _named(member: TarMember) -> tuple[str, str, tuple[str, str] | None]:
    """Key and suffix of a member, suffix "" where it is left out, and what is wrong with it."""
    name = member.name
    while name.startswith("./"):
        name = name[2:]
    key, suffix = _key(name)
    shown = repr(name[:200])
    if not name.isprintable():
        return key, suffix, ("encoding", f"the name {shown} of a member is not readable UTF-8 text")
    try:
        safe(name)
    except DataError:
        return key, suffix, ("escapes", f"the member {shown} leads out of the tar; it is never written nor read")
    if any(part.startswith(".") for part in name.split("/")):
        return key, "", None
    if not member.is_file:
        return key, suffix, ("malformed", f"the member {shown} is a link or a device, not a file")
    return key, suffix, None
