"""A folder of photos: `source/dog/03.jpg`, with or without a caption in `source/dog/03.txt`."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from kosmosg.data.annotators.apply import refusal
from kosmosg.data.annotators.base import Sample
from kosmosg.data.composition import shrink
from kosmosg.data.image_bytes import encode_image
from kosmosg.data.sources.base import Reader, RejectedRow, SourceRow, WorkUnit, digest, required
from kosmosg.errors import ConfigError, DataError, ImageError
from kosmosg.prompt import DEFAULT_LIMITS, PromptLimits, read_image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
SIDECAR_CHARACTERS = 10_000


class ImageFolderReader:
    """All photos under a folder, at any depth.

    Photos are assigned to shards by a hash of their path, so that a photo that is added or changed affects only one
    shard (until their number passes the next power of two).

    Args:
        source: the folder.
        shard_rows: approximate number of photos per shard.
        square: crop the middle square first, as the original did; training targets are square anyway.
        working_size: longest side in pixels that annotators see; larger photos are downscaled once.
        limits: limits that are checked before a photo is decoded.
    """

    kind = "composition"
    annotated = True

    def __init__(
        self,
        source: str | Path,
        shard_rows: int = 8,
        square: bool = True,
        working_size: int = 1024,
        limits: PromptLimits = DEFAULT_LIMITS,
    ) -> None:
        self.source = Path(source).absolute()
        self.shard_rows = shard_rows
        self.square = square
        self.working_size = working_size
        self.limits = limits

    def describe(self) -> dict[str, Any]:
        return {
            "layout": "folder of photos",
            "source": self.source.name,
            "square": self.square,
            "working_size": self.working_size,
        }

    def plan(self, limit: int | None) -> list[WorkUnit]:
        if not self.source.is_dir():
            raise DataError(f"source: there is no folder {self.source}; give source=FOLDER with photos in it")
        photos = sorted(
            path.relative_to(self.source).as_posix()
            for path in self.source.rglob("*")
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
        )[:limit]
        if not photos:
            raise DataError(f"source: no photos under {self.source}; looked for {', '.join(sorted(SUFFIXES))}")
        buckets = 1
        while buckets * self.shard_rows < len(photos):
            buckets *= 2
        dealt: dict[int, list[tuple[str | int, ...]]] = {}
        for photo in photos:
            # Size and time represent the content: hashing every photo would read the whole source just for planning.
            stat = (self.source / photo).stat()
            sidecar = (self.source / photo).with_suffix(".txt")
            told = sidecar.stat().st_mtime_ns if sidecar.is_file() else 0
            item = (photo, stat.st_size, stat.st_mtime_ns, told)
            dealt.setdefault(int(digest(photo)[:8], 16) % buckets, []).append(item)
        return [WorkUnit(index, tuple(dealt[index])) for index in sorted(dealt)]

    def read(self, work: WorkUnit) -> Iterator[SourceRow]:
        for photo, *_ in work.items:
            name = str(photo)
            try:
                yield self.sample(name)
            except Exception as error:  # noqa: BLE001 - told in the quarantine table, with its type
                reason, message = refusal(error)
                yield RejectedRow({"id": name, "source": name, "stage": "decode", "reason": reason, "message": message})

    def sample(self, photo: str) -> Sample:
        """One photo, decoded once to verify it. Raises ImageError, DataError."""
        path = self.source / photo
        size = path.stat().st_size
        if size > self.limits.encoded_bytes:
            raise ImageError(f"{photo} has {size:,} bytes, the limit is {self.limits.encoded_bytes:,}")
        data = path.read_bytes()
        original = read_image(data, self.limits, name=photo)
        picture = shrink(middle_square(original) if self.square else original, self.working_size)
        parent = Path(photo).parent
        hints = {
            "sidecar": sidecar_text(path.with_suffix(".txt")),
            "folder": "" if parent == Path(".") else parent.name,
            "stem": path.stem,
            "root": self.source.name,
        }
        return Sample(
            id=photo,
            source=photo,
            # The original bytes where possible, to avoid recompression.
            encoded=data if picture is original else encode_image(picture, "jpeg", 95),
            sha256=hashlib.sha256(data).hexdigest(),
            hints=hints,
        )


def middle_square(picture: Image.Image) -> Image.Image:
    """The largest square in the middle of an image; the image itself when it is square."""
    side = min(picture.size)
    if picture.width == picture.height:
        return picture
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def sidecar_text(path: Path) -> str:
    """The contents of the text file beside a photo, "" if there is none. Raises DataError if it is not UTF-8."""
    if not path.is_file():
        return ""
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(SIDECAR_CHARACTERS + 1)
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} beside the photo is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    if len(text) > SIDECAR_CHARACTERS:
        raise DataError(
            f"{path.name} beside the photo is longer than {SIDECAR_CHARACTERS} characters; is it a caption?"
        )
    return " ".join(text.split())


@dataclass(frozen=True)
class ImageFolder:
    """The entry of `SOURCES`: all photos under a folder."""

    steps: ClassVar[tuple[str, ...]] = ("sidecar", "nouns", "grabcut")
    hints: ClassVar[tuple[str, ...]] = ("sidecar", "folder", "stem", "root")

    shard_rows: int = 8
    """Approximate number of photos per shard."""
    square: bool = True
    """Crop the middle square of every photo first, as the original did."""
    working_size: int = 1024
    """Longest side in pixels at which photos are annotated, at least 64."""

    def __post_init__(self) -> None:
        if self.shard_rows < 1 or self.working_size < 64:
            raise ConfigError(
                f"shard_rows is {self.shard_rows} and working_size {self.working_size}; they are at least 1 and 64"
            )

    def open(self, path: Path | None) -> dict[str, Reader]:
        """One reader, of compositions. Raises DataError without a path."""
        return {"composition": ImageFolderReader(required(path), self.shard_rows, self.square, self.working_size)}
