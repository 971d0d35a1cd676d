"""Open Images V7: a list of images (CSV) beside their files, or beside tars of them.

Of the nine million images that the full list names the public mirror has the 1.7 million with boxes; a row without a
file is refused as `missing-file`, or left out with `only_present`. Listing takes one pass over the file names and one
over the list, with arrays of numbers in memory and nothing else that grows.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from kosmosg.data.files.csv_blocks import CsvBlock, csv_blocks
from kosmosg.data.files.source_files import SourceFiles
from kosmosg.data.sources.base import Item, Reader, SourceRow, rejected, required
from kosmosg.data.sources.image_rows import BadRow, ImageRows, ImageSettings, guarded, refused, refused_item
from kosmosg.data.sources.open_images_files import ImageList, OpenImagesFiles, find_files
from kosmosg.data.sources.open_images_index import ImageIndex, ImagePlace, SeenIds, parse_ids
from kosmosg.data.sources.open_images_labels import ClassNames, LabelIndex
from kosmosg.errors import DataError

_MISSING = '{"missing": true}'
_HINTS = {
    "url": "OriginalURL",
    "page": "OriginalLandingURL",
    "licence": "License",
    "author": "Author",
    "title": "Title",
}
_WORD = re.compile(rb"[A-Za-z0-9_-]{1,40}").fullmatch


class OpenImagesReader:
    """A folder with an image list and images.

    Args:
        source: the folder.
        rows: how images become rows.
        settings: what is selected.
    """

    kind = "composition"
    annotated = True
    shuffled = True
    shard_rows = 0

    def __init__(self, source: str | Path | SourceFiles, settings: "OpenImages | None" = None) -> None:
        self.files = source if isinstance(source, SourceFiles) else SourceFiles(source)
        self.settings = settings or OpenImages()
        self.rows = ImageRows(self.kind, self.settings.square, self.settings.working_size)

    def describe(self) -> dict[str, Any]:
        told = self.settings
        return {
            "layout": "Open Images",
            "source": self.files.name,
            "split": told.split,
            "licences": list(told.licences),
            "labels": told.labels,
            "image_list": told.image_list,
            "only_present": told.only_present,
            **self.rows.settings(),
        }

    def items(self) -> Iterator[Item]:
        """The images of the lists that are selected, in the order of the lists."""
        found, images, torn = find_files(self.files, self.settings.image_list)
        labels = self._labels(found, images)
        yield from torn
        before = SeenIds()  # of other lists: two lists of one image are two views of it
        for image_list in found.lists:
            seen = SeenIds()
            with self.files.open(image_list.path) as file:
                header = int(image_list.has_header)
                blocks = csv_blocks(file, image_list.names, image_list.wanted, header, image_list.delimiter)
                for block in blocks:
                    yield from self._rows(image_list, block, images, labels, before, seen)
            before.take(seen)

    def _labels(self, found: OpenImagesFiles, images: ImageIndex) -> LabelIndex | None:
        if self.settings.labels == "none" or not found.labels:
            return None
        if not found.classes:
            raise DataError(
                f"source: {found.labels[0]} names classes by codes, and {self.files.root} has no "
                "class-descriptions-boxable.csv to tell their names; add it, or set build.source.labels=none"
            )
        paths = [path for path in found.labels if self.settings.labels == "all" or path in found.boxes]
        return LabelIndex.read(self.files, paths, ClassNames.read(self.files, found.classes), images)

    def _rows(
        self,
        image_list: ImageList,
        block: CsvBlock,
        images: ImageIndex,
        labels: LabelIndex | None,
        before: SeenIds,
        seen: SeenIds,
    ) -> Iterator[Item]:
        path = image_list.path
        for line, why in block.broken:
            yield refused_item(f"{path}:{line}", path, "malformed", f"line {line} of {path}: {why}")
        ids, good = parse_ids(block.columns["ImageID"])
        splits, split_of = _words(block, "Subset", image_list.split)
        good &= np.array([_WORD(split) is not None for split in splits], dtype=bool)[split_of]
        for index in np.flatnonzero(~good).tolist():
            line = block.lines[index]
            text = block.columns["ImageID"][index].as_py()[:80].decode("utf-8", "replace")
            message = f"line {line} of {path} begins with {text!r}, not with an id of 16 hex digits, or has no subset"
            yield refused_item(f"{path}:{line}", path, "malformed", message)
        chosen = good & self._selected(block, splits, split_of) & ~before.has(ids)
        rows = np.flatnonzero(chosen)
        again = seen.add(ids[rows])
        for index in rows[again].tolist():
            line = block.lines[index]
            message = f"line {line} of {path} lists {ids[index]:016x} a second time"
            yield refused_item(f"{path}:{line}", path, "duplicate", message)
        rows = rows[~again]
        at = images.find(ids[rows])
        names = [split.decode("latin-1") for split in splits]
        if not self.settings.only_present:
            absent = rows[at < 0]
            for digits, split in zip(ids[absent].tolist(), split_of[absent].tolist(), strict=True):
                key = f"{names[split]}/{digits:016x}"
                yield Item(key, f"{key}.jpg", extra=_MISSING)
        rows, at = rows[at >= 0], at[at >= 0]
        keys = [
            f"{names[split]}/{digits:016x}"
            for split, digits in zip(split_of[rows].tolist(), ids[rows].tolist(), strict=True)
        ]
        shown = labels.names(ids[rows]) if labels is not None else None
        yield from self._present(block, rows, keys, images.places(at), shown)

    def _present(
        self,
        block: CsvBlock,
        rows: NDArray[np.int64],
        keys: Sequence[str],
        places: Iterator[ImagePlace],
        labels: Iterator[str] | None,
    ) -> Iterator[Item]:
        told = {hint: name for hint, name in _HINTS.items() if name in block.columns}
        columns = [block.columns[name].take(rows).to_pylist() for name in told.values()]
        turned = block.columns["Rotation"].take(rows).to_pylist() if "Rotation" in block.columns else [b""] * len(rows)
        values = zip(*columns, strict=True) if columns else iter([()] * len(rows))
        for key, place, rotation, texts in zip(keys, places, turned, values, strict=True):
            hints = {hint: text.decode("utf-8", "replace") for hint, text in zip(told, texts, strict=True) if text}
            if labels is not None:
                hints["labels"] = next(labels)
            extra = json.dumps({"rotation": rotation.decode("latin-1"), "hints": hints}, separators=(",", ":"))
            yield Item(key, place.path, place.start, place.length, 1, place.size, place.stamp, extra)

    def _selected(self, block: CsvBlock, splits: Sequence[bytes], split_of: NDArray[np.int64]) -> NDArray[np.bool_]:
        wanted = self.settings.split
        chosen = np.array([wanted in ("all", split.decode("latin-1")) for split in splits], dtype=bool)[split_of]
        if self.settings.licences:
            if "License" not in block.columns:
                raise DataError("build.source.licences: the image list has no column License to select by")
            licences, licence_of = _words(block, "License", "")
            fits = [any(word.encode() in licence for word in self.settings.licences) for licence in licences]
            chosen &= np.array(fits, dtype=bool)[licence_of]
        return chosen

    def read(self, items: Sequence[Item]) -> Iterator[SourceRow]:
        for item in items:
            bad = refused(item)
            if bad is not None:
                yield bad
            elif item.extra == _MISSING:
                message = f"{item.place} is listed, but it is in no folder and in no tar of the source"
                yield rejected(item.key, item.place, "missing-file", message, stage="read")
            else:
                yield guarded(item.key, item.place, partial(self._row, item))

    def _row(self, item: Item) -> SourceRow:
        told = json.loads(item.extra)
        degrees = quarter_turns(told["rotation"])
        if degrees is None:
            raise BadRow("malformed", f"the rotation of {item.key} is {told['rotation']!r}, not 0, 90, 180 or 270")
        self.rows.check_bytes(item.place, item.size)
        data = self.files.read(item.place, item.start, item.length)
        if item.length and len(data) < item.length:
            raise BadRow("unreadable", f"{item.place} has changed since it was listed: {item.key} is cut off")
        return self.rows.row(item.key, item.place, data, told["hints"], degrees)


def quarter_turns(text: str) -> int | None:
    """The column Rotation in degrees counterclockwise, None where it is none.

    It is empty for images that had left Flickr when it was made: nothing is known of them, and they stay as they are.
    """
    try:
        degrees = float(text or "nan")
    except ValueError:
        return None
    if degrees != degrees:
        return 0
    return int(degrees) if degrees in (0, 90, 180, 270) else None


def _words(block: CsvBlock, name: str, otherwise: str) -> tuple[list[bytes], NDArray[np.int64]]:
    """The different words of a column, and which of them each row has."""
    if name not in block.columns:
        return [otherwise.encode()], np.zeros(len(block.columns["ImageID"]), dtype=np.int64)
    coded = block.columns[name].dictionary_encode()
    return coded.dictionary.to_pylist(), coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


@dataclass(frozen=True)
class OpenImages(ImageSettings):
    """The entry of `SOURCES`: Open Images V7, from an image list with or without boxes, and the images."""

    steps: ClassVar[tuple[str, ...]] = ("blip2", "language_model", "clipseg")
    hints: ClassVar[tuple[str, ...]] = ("labels", "url", "page", "licence", "author", "title")

    split: Literal["all", "train", "validation", "test"] = "all"
    """The part of the list that is taken."""
    licences: tuple[str, ...] = ()
    """Words of which one must stand in the licence's address, such as by/2.0; empty takes all."""
    labels: Literal["all", "boxes", "none"] = "all"
    """Whose classes become the hint `labels`: of boxes and image-level labels, of boxes alone, or none."""
    image_list: str | None = None
    """The image list, relative to the source; null takes all that are found."""
    only_present: bool = False
    """Leave out rows without a file instead of refusing them: the mirror has a fifth of the full list."""

    def open(self, path: str | None) -> dict[str, Reader]:
        """One reader, of compositions. Raises DataError without a path."""
        return {"composition": OpenImagesReader(required(path), self)}
