"""img2dataset's form `files`: a folder `00000` of images, texts and JSON, its table and its statistics beside it."""

import json
from collections.abc import Iterable, Iterator
from itertools import chain, groupby, islice

from kosmosg.data.files.source_files import FileEntry, SourceFiles
from kosmosg.data.sources import download_shards
from kosmosg.data.sources.base import Item, SourceRow
from kosmosg.data.sources.captioned_files import CaptionedFiles, checksum_agrees, image_part, kept_as_downloaded
from kosmosg.data.sources.download_shards import STATS, DownloadShard, TableRow
from kosmosg.data.sources.image_rows import IMAGE_SUFFIXES, BadRow, metadata, refused_item

SUFFIXES = (*(f".{suffix}" for suffix in IMAGE_SUFFIXES), ".txt", ".json", ".parquet")
_LOOKED_AT = 32  # samples of a shard by which it is known whether images were encoded anew


class DownloadFolders:
    """Folders of files: what is in them, and how a sample is read.

    Args:
        files: of the source.
        captioned: how samples become rows.
    """

    def __init__(self, files: SourceFiles, captioned: CaptionedFiles) -> None:
        self.files = files
        self.captioned = captioned

    def items(self) -> Iterator[Item]:
        """Every sample, and every row that could not be fetched, shard by shard in one pass over the names."""
        walked: set[str] = set()
        any_stats: bool | None = None
        entries = (entry for entry in self.files.walk(SUFFIXES) if not entry.path.endswith(STATS))
        for name, found in groupby(entries, key=_shard_name):
            table = self.files.entry(f"{name}.parquet")
            if name in walked or not (table or name):
                continue  # the table of a folder that was listed already
            walked.add(name)
            stats = self.files.entry(name + STATS)
            has_stats = stats is not None and stats.size > 0
            if not has_stats and any_stats is None:
                any_stats = next(self.files.walk((STATS,)), None) is not None
            shard = DownloadShard(name, None, table, has_stats or not any_stats, has_stats)
            samples = (entry for entry in found if not entry.path.endswith(".parquet"))
            if shard.finished:
                yield from self._shard_items(shard, samples)
            else:
                yield download_shards.unfinished(shard, table or next(samples))

    def _shard_items(self, shard: DownloadShard, entries: Iterable[FileEntry]) -> Iterator[Item]:
        table: list[TableRow] = []
        if shard.table is not None:
            try:
                table = list(download_shards.table_rows(self.files, shard.table))
            except BadRow as error:
                yield refused_item(shard.table.path, shard.table.path, error.reason, str(error), shard.table.stamp)
        seen: set[str] = set()
        yield from self._samples(entries, bool(table), seen)
        yield from download_shards.lost(table, seen, shard.name, torn=False)
        yield from download_shards.failures(table, shard.name)

    def _samples(self, entries: Iterable[FileEntry], has_table: bool, seen: set[str]) -> Iterator[Item]:
        found = (list(group) for _, group in groupby(entries, key=lambda entry: _stem(entry.path)))
        first: list[list[FileEntry]] = []
        compare = self.captioned.checksums == "compare"
        if self.captioned.checksums == "auto" and has_table:
            first = list(islice(found, _LOOKED_AT))
            compare = kept_as_downloaded([self._agrees(group) for group in first])
        for group in chain(first, found):
            key = _stem(group[0].path)
            seen.add(key.rpartition("/")[2])
            parts = [_suffix(entry.path) for entry in group]
            place = next((e.path for e in group if _suffix(e.path).lower() in IMAGE_SUFFIXES), group[0].path)
            stamp, size = ",".join(entry.stamp for entry in group), sum(entry.size for entry in group)
            extra = json.dumps({"parts": parts, "compare": compare})
            yield Item(key, place, size=size, stamp=stamp, extra=extra)

    def _agrees(self, group: Iterable[FileEntry]) -> bool | None:
        key, parts = "", {}
        try:
            for entry in group:
                key = _stem(entry.path)
                parts[_suffix(entry.path).lower()] = self._bytes(entry.path)
            return checksum_agrees(image_part(key, parts)[1], metadata(key, parts.get("json", b"{}")))
        except (BadRow, OSError):
            return None

    def sample(self, item: Item) -> SourceRow:
        """The row of one sample. Raises BadRow, ImageError, OSError."""
        told = json.loads(item.extra)
        parts = {part.lower(): self._bytes(f"{item.key}.{part}") for part in told["parts"]}
        return self.captioned.row(item.key, item.place, parts, told["compare"])

    def _bytes(self, path: str) -> bytes:
        entry = self.files.entry(path)
        if entry is None:
            raise BadRow("missing-file", f"{path} is not there any more")
        self.captioned.rows.check_bytes(path, entry.size)
        return self.files.read(path)


def _shard_name(entry: FileEntry) -> str:
    if entry.path.endswith(".parquet"):
        return entry.path.removesuffix(".parquet")
    return entry.path.rpartition("/")[0]


def _stem(path: str) -> str:
    return path.rpartition(".")[0]


def _suffix(path: str) -> str:
    return path.rpartition(".")[2]
