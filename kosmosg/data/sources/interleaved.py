"""Web pages with images between their text: OBELICS and OmniCorpus (Parquet), MMC4 (JSON lines, also as .zip)."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from kosmosg.data.files.source_files import SourceFiles
from kosmosg.data.sources.base import Item, Reader, ReadyRow, SourceRow, required
from kosmosg.data.sources.image_rows import BadRow
from kosmosg.data.sources.page_images import PageImages
from kosmosg.data.sources.page_layouts import ShownImage, check_columns, mmc4_page, obelics_page
from kosmosg.data.sources.stored_image import ImageStorage
from kosmosg.data.sources.tables import Fitting, FoundRow, TableHead, Tables
from kosmosg.errors import ConfigError, DataError, ImageError

_LONGEST = 1 << 25  # bytes of a line
_ITEM_ROWS = 256
_IMAGE_BYTES = 100_000  # of an image of the web, about


class InterleavedReader:
    """All pages under a source; see `Interleaved` for what can be chosen."""

    kind = "interleaved"
    annotated = False
    shuffled = True
    shard_rows = 0

    def __init__(self, source: str | SourceFiles, chosen: "Interleaved") -> None:
        self.files = source if isinstance(source, SourceFiles) else SourceFiles(source)
        self.chosen = chosen
        self.storage = ImageStorage(chosen.image_size, chosen.quality)
        self.tables = Tables(self.files, (".parquet", ".jsonl", ".ndjson"), _LONGEST)

    def describe(self) -> dict[str, Any]:
        chosen = self.chosen
        return {
            "layout": "pages of text and images",
            "source": self.files.name,
            "images": SourceFiles(chosen.images).name if chosen.images else None,
            "name": chosen.name,
            "missing": chosen.missing,
            "min_images": chosen.min_images,
            "max_images": chosen.max_images,
            "min_side": chosen.min_side,
            "max_characters": chosen.max_characters,
            "image_size": chosen.image_size,
            "quality": chosen.quality,
        }

    def items(self) -> Iterator[Item]:
        return self.tables.items(self._fit)

    def read(self, items: Sequence[Item]) -> Iterator[SourceRow]:
        for row in self.tables.rows(items):
            if row.values is None:
                yield row.refused()
                continue
            try:
                yield self._document(row, row.values)
            except BadRow as error:
                yield row.refused(error.reason, str(error))

    def _fit(self, head: TableHead) -> Fitting:
        layout, columns = check_columns(head)
        images = self._images  # refuses a folder that is not there, and a pattern that says nothing
        if not images.files.is_file:
            return Fitting(columns, {"layout": layout}, _ITEM_ROWS, row_bytes=3 * _IMAGE_BYTES)
        raise DataError(f"build.source.images: {images.files.root} is a file; give the folder with the images")

    def _document(self, row: FoundRow, values: Mapping[str, Any]) -> SourceRow:
        page = (obelics_page if row.told["layout"] == "obelics" else mmc4_page)(values)
        characters = sum(len(part) for part in page.parts if isinstance(part, str))
        if characters > self.chosen.max_characters:
            raise BadRow("too-long", f"{characters:,} characters, the most is {self.chosen.max_characters:,}")
        dropped: Counter[str] = Counter(page.dropped)
        parts: list[dict[str, Any]] = []
        for part in page.parts:
            if isinstance(part, str):
                # Texts that follow each other, as an image between them is gone, are one.
                if parts and parts[-1]["text"]:
                    part = parts.pop()["text"] + page.joint + part
                if part:
                    parts.append({"text": part, "image": None})
                continue
            try:
                parts.append({"text": None, "image": self._image(row.place, part, parts)})
            except BadRow as error:
                if self.chosen.missing == "reject" and error.reason != "over-limit":
                    raise BadRow(error.reason, f"image {part.number} of the page: {error}") from error
                dropped[error.reason] += 1
        images = sum(part["image"] is not None for part in parts)
        if images < self.chosen.min_images:
            told = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())) or "the page has no more"
            raise BadRow("no-image", f"{images} images are left, the least is {self.chosen.min_images} ({told})")
        if not any(part["text"] for part in parts):
            raise BadRow("no-text", "the page has no text")
        record: dict[str, Any] = {"id": row.id, "parts": parts, "source": row.place}
        known = {"url": page.url, "dropped_images": dict(sorted(dropped.items()))}
        known = {key: value for key, value in known.items() if value}
        record["provenance"] = json.dumps(known) if known else None
        return ReadyRow(record)

    def _image(self, document: str, place: ShownImage, before: Sequence[Mapping[str, Any]]) -> bytes:
        """An image as it is stored. Raises BadRow, StoreError."""
        if sum(part["image"] is not None for part in before) >= self.chosen.max_images:
            raise BadRow("over-limit", f"more than {self.chosen.max_images} images")
        data = self._images.read(document, place.url, place.name, self.storage.limits.encoded_bytes)
        try:
            stored = self.storage.store(data, place.name or place.url[:200])
        except ImageError as error:
            raise BadRow("unreadable", str(error)) from error
        if stored.shorter_side < self.chosen.min_side:
            raise BadRow("wrong-size", f"{stored.shorter_side} pixels, the least is {self.chosen.min_side}")
        return stored.data

    @cached_property
    def _images(self) -> PageImages:
        if self.chosen.images:
            return PageImages(self.files.at(self.chosen.images), self.chosen.name)
        files = self.files.above if self.files.is_file else self.files
        return PageImages(files, self.chosen.name)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_images"}


@dataclass(frozen=True)
class Interleaved:
    """The entry of `SOURCES`: pages with images between their text."""

    steps: ClassVar[tuple[str, ...]] = ()
    hints: ClassVar[tuple[str, ...]] = ()

    images: str | None = None
    """Folder or URL of the downloaded images; null takes the source itself."""
    name: str | None = None
    """How image files are named: a pattern of {name}, {md5}, {sha1}, {sha256} (of the URL), {last} (part of the
    URL), {stem} and {shard} (of the file with the pages), such as "{sha256}.jpg"; `img2dataset` for files and lists
    of that tool; null tries what is usual."""
    missing: Literal["drop", "reject"] = "drop"
    """What an image that cannot be had does: it is left out, or its page is rejected."""
    min_images: int = 1
    """Images that a page must have left, else it is rejected as `no-image`; 0 keeps pages without."""
    max_images: int = 16
    """Images that are kept of a page, the first ones."""
    min_side: int = 32
    """Shorter side in pixels below which an image is left out: icons and spacers."""
    max_characters: int = 200_000
    """Text that a page may have, else it is rejected as `too-long`."""
    image_size: int = 512
    """Longest side in pixels of stored images; smaller ones are never enlarged. Stage 1 looks at 224."""
    quality: int | None = None
    """JPEG quality at which all images are encoded anew; null keeps bytes that can stay as they are."""

    def __post_init__(self) -> None:
        ImageStorage(self.image_size, self.quality)
        if not 0 <= self.min_images <= self.max_images:
            raise ConfigError(
                f"min_images is {self.min_images}, max_images {self.max_images}; the least is 0, and not above the most"
            )

    def open(self, path: str | None) -> dict[str, Reader]:
        """One reader, of pages. Raises DataError without a path."""
        return {"interleaved": InterleavedReader(required(path), self)}
