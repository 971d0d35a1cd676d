"""What img2dataset leaves, in its three forms: WebDataset tars, folders of files, Parquet with the images in it.

Fetching is img2dataset's job; its books are read along with the images. What it could not fetch becomes a refused row
with its own words, a shard that it did not finish is refused by name, and its checksums are compared where they can be.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kosmosg.data.files.source_files import FileEntry, SourceFiles
from kosmosg.data.sources.base import Item, Reader, SourceRow, required
from kosmosg.data.sources.captioned_files import CaptionedFiles, CaptionedSource
from kosmosg.data.sources.download_folders import DownloadFolders
from kosmosg.data.sources.download_tables import DownloadTables, image_column
from kosmosg.data.sources.image_rows import IMAGE_SUFFIXES, guarded, refused
from kosmosg.data.sources.webdataset import WebDatasetReader
from kosmosg.errors import DataError

_EXPECTED = "expected what img2dataset leaves: 00000.tar, a folder 00000 of images, or 00000.parquet with images in it"


class Img2DatasetReader:
    """An output folder of img2dataset.

    Args:
        source: the folder.
        captioned: how images become rows.
    """

    annotated: bool
    shuffled = True
    shard_rows = 0

    def __init__(self, source: str | Path | SourceFiles, captioned: CaptionedFiles | None = None) -> None:
        self.files = source if isinstance(source, SourceFiles) else SourceFiles(source)
        self.captioned = captioned or CaptionedFiles()
        self.kind = self.captioned.rows.kind
        self.annotated = self.kind == "composition"
        self.tars = WebDatasetReader(self.files, self.captioned)
        self.folders = DownloadFolders(self.files, self.captioned)
        self.tables = DownloadTables(self.files, self.captioned)

    def describe(self) -> dict[str, Any]:
        return {"layout": "img2dataset", "source": self.files.name, **self.captioned.settings()}

    def items(self) -> Iterator[Item]:
        """Every image, and every row that img2dataset says it could not fetch."""
        form = self.form()
        if form == "webdataset":
            return self.tars.items()
        return self.folders.items() if form == "files" else self.tables.items()

    def form(self) -> str:
        """Which of the forms it is, by the first file that tells. Raises DataError when none does."""
        seen: list[str] = []
        for entry in self.files.walk():
            path = entry.path.lower()
            if path.endswith((".tar", ".tar.gz", ".tgz")):
                return "webdataset"
            if path.endswith(".tfrecord"):
                raise DataError(
                    f"source: {self.files.root} is of img2dataset's form tfrecord, which is not read; "
                    "run it with --output_format webdataset"
                )
            if path.endswith(tuple(f".{suffix}" for suffix in IMAGE_SUFFIXES)) and "/" in path:
                return "files"
            if path.endswith(".parquet") and self._has_images(entry):
                return "parquet"
            seen.append(entry.path)
            if len(seen) > 100_000:
                break
        found = ", ".join(seen[:5]) + (", …" if len(seen) > 5 else "") if seen else "no files"
        raise DataError(f"source: {_EXPECTED}; found {found} in {self.files.root}")

    def _has_images(self, table: FileEntry) -> bool:
        try:
            with self.files.open(table.path) as file:
                return image_column(pq.ParquetFile(file, pre_buffer=False)) is not None
        except (pa.ArrowException, OSError):
            return False  # one broken file says nothing of the others

    def read(self, items: Sequence[Item]) -> Iterator[SourceRow]:
        for item in items:
            bad = refused(item)
            if bad is not None:
                yield bad
            elif item.place.endswith(".parquet"):
                yield from self.tables.read(item)
            elif item.place.lower().endswith((".tar", ".tar.gz", ".tgz")):
                yield from self.tars.read([item])
            else:
                yield guarded(item.key, item.place, partial(self.folders.sample, item))


@dataclass(frozen=True)
class Img2Dataset(CaptionedSource):
    """The entry of `SOURCES`: an output folder of img2dataset, of any of its forms but tfrecord."""

    def open(self, path: str | None) -> dict[str, Reader]:
        """One reader, of records of `kind`. Raises DataError without a path."""
        return {self.kind: Img2DatasetReader(required(path), self.captioned_files())}
