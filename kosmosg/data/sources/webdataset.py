"""WebDataset tars: `000.jpg`, `000.txt` and `000.json` side by side, one sample a key, as img2dataset writes them too.

A plain tar is listed by its headers and read sample by sample, wherever it lies; a compressed one can only be read from
beginning to end, so it is one item.
"""

import gzip
import io
import json
import zlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from kosmosg.data.files.source_files import FileEntry, SourceFiles
from kosmosg.data.files.tar_index import for_headers
from kosmosg.data.files.tar_samples import TarSample, samples
from kosmosg.data.sources import download_shards
from kosmosg.data.sources.base import Item, Reader, SourceRow, rejected, required
from kosmosg.data.sources.captioned_files import (
    CaptionedFiles,
    CaptionedSource,
    checksum_agrees,
    image_part,
    kept_as_downloaded,
)
from kosmosg.data.sources.download_shards import SHARD_SUFFIXES, DownloadShard, TableRow
from kosmosg.data.sources.image_rows import BadRow, guarded, metadata, refused, refused_item
from kosmosg.errors import DataError

COMPARE = '{"compare": true}'
"""`Item.extra` of samples whose checksum is compared."""
_LOOKED_AT = 32  # samples of a shard by which it is known whether images were encoded anew
_MAX_INFLATION = 200  # bytes out of one byte of a .tar.gz; photos hardly shrink at all


class WebDatasetReader:
    """All tars of a folder, or one tar.

    Args:
        source: folder or tar.
        captioned: how samples become rows.
    """

    annotated: bool
    shuffled = True
    shard_rows = 0

    def __init__(self, source: str | Path | SourceFiles, captioned: CaptionedFiles | None = None) -> None:
        self.files = source if isinstance(source, SourceFiles) else SourceFiles(source)
        self.captioned = captioned or CaptionedFiles()
        self.kind = self.captioned.rows.kind
        self.annotated = self.kind == "composition"

    def describe(self) -> dict[str, Any]:
        return {"layout": "WebDataset tars", "source": self.files.name, **self.captioned.settings()}

    def items(self) -> Iterator[Item]:
        """Every sample with its place in the tar, and every row that img2dataset says it could not fetch."""
        found = download_shards.shards(self.files.walk(SHARD_SUFFIXES))
        if not any(shard.tar for shard in found):
            other = f"{len(found)} Parquet files, the first {found[0].name}.parquet" if found else "none"
            raise DataError(f"source: expected WebDataset tars (.tar, .tar.gz) under {self.files.root}, found {other}")
        for shard in found:
            yield from self.shard_items(shard)

    def shard_items(self, shard: DownloadShard) -> Iterator[Item]:
        """The items of one shard."""
        if shard.tar is None:
            if shard.table is not None and shard.has_stats:
                message = f"{shard.table.path} is there, but {shard.name}.tar is not"
                yield refused_item(shard.table.path, shard.table.path, "missing-file", message, shard.table.stamp)
            return
        if not shard.finished:
            yield download_shards.unfinished(shard, shard.tar)
            return
        place = shard.tar.path
        table: list[TableRow] = []
        if shard.table is not None:
            try:
                table = list(download_shards.table_rows(self.files, shard.table))
            except BadRow as error:
                yield refused_item(shard.table.path, shard.table.path, error.reason, str(error), shard.table.stamp)
        if place.lower().endswith(".tar"):
            seen: set[str] = set()
            torn = yield from self._tar_items(shard.tar, bool(table), seen)
            yield from download_shards.lost(table, seen, place, torn)
        else:
            rows = sum(row.status == "success" for row in table) or 1
            extra = json.dumps({"table": shard.table.path if shard.table and table else None})
            yield Item(place, place, 0, 0, rows, shard.tar.size, shard.tar.stamp, extra)
        yield from download_shards.failures(table, place)

    def _tar_items(self, tar: FileEntry, has_table: bool, seen: set[str]) -> Generator[Item, None, bool]:
        """The samples of a plain tar; returns whether it is torn."""
        place, stamp, torn = tar.path, tar.stamp, False
        with self.files.open(place) as opened:
            found = samples(for_headers(opened, self.files.is_local), tar.size)
            first: list[TarSample] = []
            compare = self.captioned.checksums == "compare"
            if self.captioned.checksums == "auto" and has_table:
                first = list(islice(found, _LOOKED_AT))
                compare = kept_as_downloaded([self._agrees(place, sample) for sample in first])
            extra = COMPARE if compare else ""
            for sample in chain(first, found):
                bad = sample.bad or _again(sample, place, seen)
                if bad is None:
                    length = sample.end - sample.start
                    yield Item(f"{place}/{sample.key}", place, sample.start, length, 1, length, stamp, extra)
                else:
                    torn = torn or bad[0] == "torn"
                    yield refused_item(_bad_key(place, sample, bad[0], seen), place, *bad, stamp)
                seen.add(sample.key)
        return torn

    def _agrees(self, place: str, sample: TarSample) -> bool | None:
        length = sample.end - sample.start
        if sample.bad is not None or length > self.captioned.rows.limits.encoded_bytes:
            return None
        data = self.files.read(place, sample.start, length)
        parts = next(samples(io.BytesIO(data), length, content=length)).content
        try:
            return checksum_agrees(image_part(sample.key, parts)[1], metadata(sample.key, parts.get("json", b"{}")))
        except BadRow:
            return None

    def read(self, items: Sequence[Item]) -> Iterator[SourceRow]:
        for item in items:
            bad = refused(item)
            if bad is not None:
                yield bad
            elif item.length:
                yield guarded(item.key, item.place, partial(self._sample, item))
            else:
                yield from self._compressed(item)

    def _sample(self, item: Item) -> SourceRow:
        limit = self.captioned.rows.limits.encoded_bytes
        if item.length > 2 * limit:
            raise BadRow(
                "unreadable", f"the files of {item.key} have {item.length:,} bytes; {2 * limit:,} are too many"
            )
        data = self.files.read(item.place, item.start, item.length)
        sample = next(samples(io.BytesIO(data), len(data), content=limit), None)
        if sample is None or f"{item.place}/{sample.key}" != item.key:
            raise BadRow("unreadable", f"{item.place} has changed since it was listed: {item.key} is no longer there")
        if sample.bad is not None:
            raise BadRow(*sample.bad)
        return self.captioned.row(item.key, item.place, sample.content, item.extra == COMPARE)

    def _compressed(self, item: Item) -> Iterator[SourceRow]:
        """All rows of a compressed tar, and what its table says that it should have held."""
        place, seen, torn = item.place, set[str](), False
        compare = self.captioned.checksums == "compare"
        bound = _MAX_INFLATION * item.size + (64 << 20)
        limit = self.captioned.rows.limits.encoded_bytes
        at = 0
        try:
            with self.files.open(place) as opened, gzip.GzipFile(fileobj=opened) as file:
                for sample in samples(file, 0, limit, bound):
                    at, key = sample.end, f"{place}/{sample.key}"
                    bad = sample.bad or _again(sample, place, seen)
                    if bad is None:
                        yield guarded(key, place, partial(self.captioned.row, key, place, sample.content, compare))
                    else:
                        torn = torn or bad[0] == "torn"
                        yield rejected(_bad_key(place, sample, bad[0], seen), place, *bad, stage="read")
                    seen.add(sample.key)
        except (OSError, EOFError, zlib.error) as error:
            torn = True
            message = f"{place} breaks off ({' '.join(str(error).split())}); what stood behind byte {at:,} is lost"
            yield rejected(f"{place}@{at}", place, "torn", message, stage="read")
        table = json.loads(item.extra)["table"]
        entry = self.files.entry(table) if table else None
        rows = download_shards.table_rows(self.files, entry) if entry else ()
        for lost in download_shards.lost(rows, seen, place, torn):
            row = refused(lost)
            if row is not None:
                yield row


def _again(sample: TarSample, place: str, seen: set[str]) -> tuple[str, str] | None:
    if sample.key not in seen:
        return None
    return "duplicate", f"the key {sample.key!r} stands in {place} a second time, at byte {sample.start:,}"


def _bad_key(place: str, sample: TarSample, reason: str, seen: set[str]) -> str:
    """Its own key where that is to be trusted and not taken, else its place in the tar, of which there is but one."""
    named = sample.key and reason in ("torn", "unreadable") and sample.key not in seen
    return f"{place}/{sample.key}" if named else f"{place}@{sample.start}"


@dataclass(frozen=True)
class WebDataset(CaptionedSource):
    """The entry of `SOURCES`: tars with an image, a .txt and a .json for each key."""

    def open(self, path: str | None) -> dict[str, Reader]:
        """One reader, of records of `kind`. Raises DataError without a path."""
        return {self.kind: WebDatasetReader(required(path), self.captioned_files())}
