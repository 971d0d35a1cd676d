"""What Open Images says is to be seen: boxes and image-level labels become a few class names for each image.

14.6 million boxes are some 6 million pairs of image and class: sorted arrays of 10 bytes each.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kosmosg.data.files.csv_blocks import csv_blocks, first_row
from kosmosg.data.files.source_files import SourceFiles
from kosmosg.data.sources.open_images_index import Ids, ImageIndex, parse_ids

CONFIDENCE = 0.5
"""What machines are less sure of, and what people denied (0), is left out."""


class ClassNames:
    """The display names of classes, in alphabetical order; a class's number is its place."""

    def __init__(self, names: dict[bytes, str]) -> None:
        ordered = sorted(names, key=lambda label: (names[label], label))
        self.names = [names[label] for label in ordered]
        self.codes = {label: code for code, label in enumerate(ordered)}

    @classmethod
    def read(cls, files: SourceFiles, paths: Iterable[str]) -> "ClassNames":
        """From files of `LabelName,DisplayName`, with or without a header."""
        names: dict[bytes, str] = {}
        for path in paths:
            with files.open(path) as file:
                for block in csv_blocks(file, ("LabelName", "DisplayName"), ("LabelName", "DisplayName"), 0):
                    labels, told = (block.columns[name].to_pylist() for name in ("LabelName", "DisplayName"))
                    for label, name in zip(labels, told, strict=True):
                        if b"/" in label:  # the header has none
                            names[label] = name.decode("utf-8", "replace")
        return cls(names)


class LabelIndex:
    """The classes of each image, without repetition and in alphabetical order."""

    def __init__(self, classes: ClassNames, ids: Ids, codes: NDArray[np.uint16]) -> None:
        self.classes = classes
        self.ids = ids
        self.codes = codes

    @classmethod
    def read(cls, files: SourceFiles, paths: Sequence[str], classes: ClassNames, images: ImageIndex) -> "LabelIndex":
        """From files of boxes, masks or image-level labels; only what is said of images that are there is kept."""
        parts: list[tuple[Ids, NDArray[np.uint16]]] = []
        for path in paths:
            header = first_row(files.read(path, 0, 1 << 16))
            wanted = [name for name in ("ImageID", "LabelName", "Confidence") if name in header]
            with files.open(path) as file:
                for block in csv_blocks(file, header, wanted, 1):
                    ids, good = parse_ids(block.columns["ImageID"])
                    codes = _codes(block.columns["LabelName"], classes)
                    good &= (codes >= 0) & (images.find(ids) >= 0)
                    if "Confidence" in wanted:
                        good &= _numbers(block.columns["Confidence"]) >= CONFIDENCE
                    parts.append(_unique(ids[good], codes[good]))
        ids = np.concatenate([part[0] for part in parts] or [np.zeros(0, dtype=np.uint64)])
        codes = np.concatenate([part[1] for part in parts] or [np.zeros(0, dtype=np.uint16)])
        parts.clear()
        return cls(classes, *_unique(ids, codes))

    def names(self, ids: Ids) -> Iterator[str]:
        """The names of each image's classes, joined by commas; "" where there are none."""
        starts = np.searchsorted(self.ids, ids, "left").tolist()
        ends = np.searchsorted(self.ids, ids, "right").tolist()
        for start, end in zip(starts, ends, strict=True):
            yield (
                ", ".join([self.classes.names[code] for code in self.codes[start:end].tolist()]) if end > start else ""
            )


def _unique(ids: Ids, codes: NDArray[Any]) -> tuple[Ids, NDArray[np.uint16]]:
    order = np.lexsort((codes, ids))
    ids, codes = ids[order], codes[order].astype(np.uint16)
    new = np.ones(len(ids), dtype=bool)
    new[1:] = (ids[1:] != ids[:-1]) | (codes[1:] != codes[:-1])
    return ids[new], codes[new]


def _codes(column: pa.Array, classes: ClassNames) -> NDArray[np.int64]:
    coded = column.dictionary_encode()
    numbers = np.array([classes.codes.get(label, -1) for label in coded.dictionary.to_pylist()], dtype=np.int64)
    return numbers[coded.indices.to_numpy(zero_copy_only=False)] if len(numbers) else np.zeros(0, dtype=np.int64)


def _numbers(column: pa.Array) -> NDArray[np.float64]:
    coded = column.dictionary_encode()
    values = []
    for text in coded.dictionary.to_pylist():
        try:
            values.append(float(text))
        except ValueError:
            values.append(0.0)
    numbers = np.array(values, dtype=np.float64)
    return numbers[coded.indices.to_numpy(zero_copy_only=False)] if len(numbers) else np.zeros(0)
