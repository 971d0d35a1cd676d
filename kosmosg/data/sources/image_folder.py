"""A folder of photos: `source/dog/03.jpg`, with or without a caption in `source/dog/03.txt`."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from PIL import Image

from kosmosg.data.annotators.apply import refusal
from kosmosg.data.annotators.base import Sample
from kosmosg.data.composition import shrink
from kosmosg.data.image_bytes import encode_image
from kosmosg.data.sources.base import Item, Reader, SourceRow, rejected, required
from kosmosg.data.sources.files import SourceFiles
from kosmosg.errors import ConfigError, DataError, ImageError
from kosmosg.prompt import DEFAULT_LIMITS, PromptLimits, read_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
SIDECAR_CHARACTERS = 10_000


class ImageFolderReader:
    """All photos under a folder, at any depth.

    Args:
        source: the folder, or its URL in an object store.
        square: cut the middle square first, as the original did: training targets are square anyway.
        working_size: longest side in pixels that annotators see; larger photos are made smaller once.
        limits: what a photo may cost before it is decoded.
    """

    kind = "composition"
    annotated = True
    shuffled = True
    shard_rows = 0

    def __init__(
        self,
        source: str | Path,
        square: bool = True,
        working_size: int = 1024,
        limits: PromptLimits = DEFAULT_LIMITS,
    ) -> None:
        self.files = SourceFiles(source)
        self.square = square
        self.working_size = working_size
        self.limits = limits

    def describe(self) -> dict[str, Any]:
        return {
            "layout": "folder of photos",
            "source": self.files.name,
            "square": self.square,
            "working_size": self.working_size,
        }

    def items(self) -> Iterator[Item]:
        if self.files.is_file:
            raise DataError(f"source: {self.files.root} is a file; give a folder with photos in it")
        empty = True
        entries = self.files.walk((*SUFFIXES, ".txt"))
        # Size and time stand for the content: hashing every photo would read the whole source to list it.
        for _, same in groupby(entries, key=lambda entry: entry.path.rpartition(".")[0]):
            alike = list(same)
            told = next((entry.stamp for entry in alike if entry.path.endswith(".txt")), "")
            for entry in alike:
                if not entry.path.endswith(".txt"):
                    empty = False
                    yield Item(entry.path, entry.path, size=entry.size, stamp=f"{entry.stamp}:{told}")
        if empty:
            raise DataError(f"source: no photos under {self.files.root}; looked for {', '.join(SUFFIXES)}")

    def read(self, items: Sequence[Item]) -> Iterator[SourceRow]:
        for item in items:
            try:
                yield self.sample(item.place)
            except Exception as error:  # noqa: BLE001 - told in the quarantine table, with its type
                yield rejected(item.key, item.place, *refusal(error))

    def sample(self, photo: str) -> Sample:
        """One photo, decoded once to be sure that it can be. Raises ImageError, DataError."""
        data = self._bytes(photo)
        original = read_image(data, self.limits, name=photo)
        image = shrink(middle_square(original) if self.square else original, self.working_size)
        path = PurePosixPath(photo)
        sidecar = path.with_suffix(".txt")
        hints = {
            "sidecar": self._text(sidecar.as_posix()) if self.files.exists(sidecar.as_posix()) else "",
            "folder": path.parent.name,
            "stem": path.stem,
            "root": self.files.name,
        }
        return Sample(
            id=photo,
            source=photo,
            # The untouched bytes where they will do: no second compression.
            encoded=data if image is original else encode_image(image, "jpeg", 95),
            sha256=hashlib.sha256(data).hexdigest(),
            hints=hints,
        )

    def _bytes(self, photo: str) -> bytes:
        entry = self.files.entry(photo)
        if entry is None:
            raise DataError(f"{photo} is not there any more")
        if entry.size > self.limits.encoded_bytes:
            raise ImageError(f"{photo} has {entry.size:,} bytes, the limit is {self.limits.encoded_bytes:,}")
        return self.files.read(photo)

    def _text(self, path: str) -> str:
        """What stands in the text file beside a photo. Raises DataError when it is not UTF-8 or no caption."""
        data = self.files.read(path, 0, 4 * SIDECAR_CHARACTERS + 1)
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{path} beside the photo is not UTF-8 text ({error.reason}); save it as UTF-8") from error
        if len(text) > SIDECAR_CHARACTERS:
            raise DataError(f"{path} beside the photo is longer than {SIDECAR_CHARACTERS} characters; is it a caption?")
        return " ".join(text.split())


def middle_square(image: Image.Image) -> Image.Image:
    """The largest square in the middle of an image; the image itself when it is square."""
    side = min(image.size)
    if image.width == image.height:
        return image
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


@dataclass(frozen=True)
class ImageFolder:
    """The entry of `SOURCES`: all photos under a folder."""

    steps: ClassVar[tuple[str, ...]] = ("sidecar", "nouns", "grabcut")
    hints: ClassVar[tuple[str, ...]] = ("sidecar", "folder", "stem", "root")

    square: bool = True
    """Crop the middle square of every photo first, as the original did."""
    working_size: int = 1024
    """Longest side in pixels at which photos are annotated, at least 64."""

    def __post_init__(self) -> None:
        if self.working_size < 64:
            raise ConfigError(f"working_size is {self.working_size}; it is at least 64")

    def open(self, path: str | None) -> dict[str, Reader]:
        """One reader, of compositions. Raises DataError without a path."""
        return {"composition": ImageFolderReader(required(path), self.square, self.working_size)}
