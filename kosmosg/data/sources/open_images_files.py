"""Which file of an Open Images folder is what: told by what stands in its first line, not by where it lies."""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from kosmosg.data.files.csv_blocks import first_row
from kosmosg.data.files.source_files import FileEntry, SourceFiles
from kosmosg.data.sources.base import Item
from kosmosg.data.sources.image_rows import IMAGE_SUFFIXES, refused_item
from kosmosg.data.sources.open_images_index import ImageIndex
from kosmosg.errors import DataError

COLUMNS = [
    "ImageID",
    "Subset",
    "OriginalURL",
    "OriginalLandingURL",
    "License",
    "AuthorProfileURL",
    "Author",
    "Title",
    "OriginalSize",
    "OriginalMD5",
    "Thumbnail300KURL",
    "Rotation",
]
"""Of an image list, in their order; lists without a header have them by position, older ones lack the last."""
_WANTED = ("ImageID", "Subset", "OriginalURL", "OriginalLandingURL", "License", "Author", "Title", "Rotation")
_SUFFIXES = (*(f".{suffix}" for suffix in IMAGE_SUFFIXES), ".csv", ".txt", ".tar", ".tar.gz", ".tgz")
_ID = re.compile(r"[0-9a-f]{16}", re.IGNORECASE).fullmatch
_SPLIT_ID = re.compile(r"(train|validation|test)/[0-9a-f]{16}", re.IGNORECASE).fullmatch
_SPLIT = re.compile(r"(?:^|[/_-])(train|validation|test)(?:[/_.-]|$)")


class ImageList(NamedTuple):
    """A CSV that lists images."""

    path: str
    names: tuple[str, ...]
    """Of its columns."""
    has_header: bool
    split: str
    """Of its images, where no column tells."""
    delimiter: str = ","

    @property
    def wanted(self) -> list[str]:
        """The columns that are read."""
        return [name for name in _WANTED if name in self.names]


@dataclass
class OpenImagesFiles:
    """The tables of a source, by what they are."""

    lists: list[ImageList] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    boxes: set[str] = field(default_factory=set)
    """Those of `labels` that have boxes or masks."""
    classes: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)


def find_files(files: SourceFiles, image_list: str | None) -> tuple[OpenImagesFiles, ImageIndex, list[Item]]:
    """The tables, where every image is, and the refusals of tars that are torn.

    Raises DataError when there is no image list or no image.
    """
    if files.is_file:
        raise DataError(f"source: {files.root} is a file; give the folder of Open Images, with list and images in it")
    found, images = OpenImagesFiles(), ImageIndex()
    torn: list[Item] = []
    packed = ""
    for entry in files.walk(_SUFFIXES):
        path = entry.path.lower()
        if path.endswith((".csv", ".txt")):
            _sort_table(files, entry, found)
        elif path.endswith((".gz", ".tgz")):
            packed = entry.path
        elif path.endswith(".tar"):
            why = images.add_tar(files, entry)
            if why is not None:
                message = f"{entry.path}: {why}; its other images are lost"
                torn.append(refused_item(entry.path, entry.path, "torn", message, entry.stamp))
        else:
            images.add_file(entry)
    images.finish()
    if image_list is not None:
        found.lists = [one for one in found.lists if one.path == image_list]
        if not found.lists:
            raise DataError(f"build.source.image_list: {image_list} is no image list in {files.root}")
    if not found.lists:
        what = ", ".join([*found.other, *found.labels, *found.classes][:5]) or "no .csv"
        raise DataError(
            "source: expected an image list of Open Images, such as train-images-boxable-with-rotation.csv, whose "
            f"first columns are ImageID,Subset,OriginalURL; found {what} and {len(images):,} images in {files.root}"
        )
    if not len(images):
        remedy = f"; {packed} must be decompressed first (gunzip {packed})" if packed else ""
        raise DataError(
            f"source: {found.lists[0].path} lists images, but {files.root} has none whose name is an id, such as "
            f"train/000002b66c9c498e.jpg{remedy}"
        )
    return found, images, torn


def _sort_table(files: SourceFiles, entry: FileEntry, found: OpenImagesFiles) -> None:
    start = files.read(entry.path, 0, 1 << 16)
    cells = first_row(start)
    if cells and _ID(cells[0]):  # no header: any one line may be damaged, most are not
        cells = _usual_row(start) or cells
    first = cells[0].strip() if cells else ""
    told = _SPLIT.search(entry.path)
    split = told[1] if told else "train"
    if "ImageID" in cells and "LabelName" in cells:
        found.labels.append(entry.path)
        if {"XMin", "MaskPath"} & set(cells):
            found.boxes.add(entry.path)
    elif "ImageID" in cells and ({"Subset", "OriginalURL", "Rotation"} & set(cells) or len(cells) == 1):
        found.lists.append(ImageList(entry.path, tuple(cells), True, split))
    elif cells[:2] == ["LabelName", "DisplayName"] or (len(cells) == 2 and first.startswith(("/m/", "/g/", "/t/"))):
        found.classes.append(entry.path)
    elif _ID(first) and 2 < len(cells) <= len(COLUMNS) and "/" not in cells[1]:
        found.lists.append(ImageList(entry.path, tuple(COLUMNS[: len(cells)]), False, split))
    elif len(cells) == 1 and _SPLIT_ID(first):  # what the official downloader takes
        found.lists.append(ImageList(entry.path, ("Subset", "ImageID"), False, split, "/"))
    elif len(cells) == 1 and _ID(first):
        found.lists.append(ImageList(entry.path, ("ImageID",), False, split))
    else:
        found.other.append(entry.path)


def _usual_row(start: bytes) -> list[str]:
    """A line with as many cells as most lines have."""
    rows = [row for row in map(first_row, start.splitlines()[:200]) if row and _ID(row[0])]
    widths = Counter(map(len, rows))
    usual = max(widths, key=lambda width: (widths[width], width), default=0)
    return next((row for row in rows if len(row) == usual), [])
