"""A folder of photos: `source/dog/03.jpg`, with or without a caption in `source/dog/03.txt`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from kosmosg.data.files.source_files import SourceFiles
from kosmosg.data.sources.base import Item, Reader, SourceRow, required
from kosmosg.data.sources.image_rows import IMAGE_SUFFIXES, BadRow, ImageRows, ImageSettings, guarded
from kosmosg.errors import DataError
from kosmosg.prompt import DEFAULT_LIMITS, PromptLimits

SUFFIXES = tuple(f".{suffix}" for suffix in IMAGE_SUFFIXES)
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
        self.rows = ImageRows(self.kind, square, working_size, limits)

    def describe(self) -> dict[str, Any]:
        return {
            "layout": "folder of photos",
            "source": self.files.name,
            "square": self.rows.square,
            "working_size": self.rows.working_size,
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
            yield guarded(item.key, item.place, partial(self._row, item.place))

    def _row(self, photo: str) -> SourceRow:
        """One photo, decoded once to be sure that it can be. Raises BadRow, ImageError, DataError."""
        entry = self.files.entry(photo)
        if entry is None:
            raise BadRow("missing-file", f"{photo} is not there any more")
        self.rows.check_bytes(photo, entry.size)
        path = PurePosixPath(photo)
        sidecar = path.with_suffix(".txt")
        hints = {
            "sidecar": self._text(sidecar.as_posix()) if self.files.exists(sidecar.as_posix()) else "",
            "folder": path.parent.name,
            "stem": path.stem,
            "root": self.files.name,
        }
        return self.rows.row(photo, photo, self.files.read(photo), hints)

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


@dataclass(frozen=True)
class ImageFolder(ImageSettings):
    """The entry of `SOURCES`: all photos under a folder."""

    steps: ClassVar[tuple[str, ...]] = ("sidecar", "nouns", "grabcut")
    hints: ClassVar[tuple[str, ...]] = ("sidecar", "folder", "stem", "root")

    def open(self, path: str | None) -> dict[str, Reader]:
        """One reader, of compositions. Raises DataError without a path."""
        return {"composition": ImageFolderReader(required(path), self.square, self.working_size)}
