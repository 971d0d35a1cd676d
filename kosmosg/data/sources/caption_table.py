"""Tables of captions with images: TSV, CSV, Parquet or JSON lines, the image as path, bytes or base64.

Tables that only have URLs are refused: fetching images is the job of img2dataset, whose output `img2dataset` reads.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

from kosmosg.data.composition import provenance
from kosmosg.data.files.source_files import SourceFiles
from kosmosg.data.sources.base import Item, Reader, ReadyRow, SourceRow, required
from kosmosg.data.sources.caption_columns import (
    HEADER,
    caption_columns,
    is_base64,
    is_url,
    wanted_columns,
)
from kosmosg.data.sources.image_rows import (
    WRITTEN_CAPTIONS,
    BadRow,
    ImageRows,
    ImageSettings,
    caption_text,
    guarded,
    origin,
)
from kosmosg.data.sources.scores import ScoreRange, Thresholds, score_hints
from kosmosg.data.sources.tables import Fitting, FoundRow, TableHead, Tables
from kosmosg.errors import ConfigError, DataError

FORMS = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson")
_IMAGE_FILE_BYTES = 100_000  # of an image of the web, about: what an item costs is estimated with it
_LINE_OF_WORDS = 1 << 20


class CaptionTableReader:
    """All tables under a source; see `CaptionTable` for what can be chosen."""

    shuffled = True
    shard_rows = 0

    def __init__(self, source: str | SourceFiles, chosen: "CaptionTable") -> None:
        self.files = source if isinstance(source, SourceFiles) else SourceFiles(source)
        self.kind: str = chosen.kind
        self.annotated = chosen.kind == "composition"
        self.chosen = chosen
        self.thresholds = Thresholds(chosen.thresholds)
        self.rows = ImageRows(chosen.kind, chosen.square, chosen.working_size)
        # Four characters of base64 stand for three bytes.
        longest = _LINE_OF_WORDS + (self.rows.limits.encoded_bytes * 4 // 3 if chosen.with_images else 0)
        forms = FORMS if chosen.with_images else (*FORMS, ".txt")
        self.tables = Tables(self.files, forms, longest, chosen.header, HEADER)

    def describe(self) -> dict[str, Any]:
        settings = {
            "caption": self.chosen.caption,
            "image": self.chosen.image,
            "id": self.chosen.id,
            "header": self.chosen.header,
            "with_images": self.chosen.with_images,
            "thresholds": self.thresholds.describe(),
        }
        images = SourceFiles(self.chosen.images).name if self.chosen.images else None
        return {
            "layout": "table of captions",
            "source": self.files.name,
            "images": images,
            **settings,
            **self.rows.settings(),
        }

    def items(self) -> Iterator[Item]:
        return self.tables.items(self._fit)

    def read(self, items: Sequence[Item]) -> Iterator[SourceRow]:
        for row in self.tables.rows(items):
            yield self._row(row)

    def _fit(self, head: TableHead) -> Fitting:
        chosen = self.chosen
        columns = caption_columns(head, chosen.caption, chosen.image, chosen.with_images)
        if chosen.id is not None and chosen.id not in head.names:
            raise DataError(f"{head.path} has no column {chosen.id}; it has {', '.join(head.names)}")
        told = {"caption": columns.caption, "image": columns.image, "form": columns.form}
        wanted = wanted_columns(
            head, (columns.caption, columns.image, chosen.id), self.thresholds.columns(head.path, head.names)
        )
        if not chosen.with_images:
            return Fitting(wanted, told, rows=16_384)
        return Fitting(wanted, told, row_bytes=_IMAGE_FILE_BYTES if columns.form in ("path", "") else 0)

    def _row(self, row: FoundRow) -> SourceRow:
        values = row.values
        if values is None:
            return row.refused()
        outside = self.thresholds.judge(values)
        if outside is not None:
            return row.refused(outside.reason, outside.message, stage="scores")
        return guarded(row.id, row.place, lambda: self._made(row, values))

    def _made(self, row: FoundRow, values: Mapping[str, Any]) -> SourceRow:
        status = str(values.get("status") or "success")
        if status != "success":
            told = " ".join(str(values.get("error_message") or "no error message").split())[:300]
            raise BadRow("failed-download", f"img2dataset could not fetch the image: {status} ({told})")
        key = self._key(row, values)
        value = values.get(row.told["caption"])
        if value is not None and not isinstance(value, str):
            raise BadRow("no-caption", f"the caption is a {type(value).__name__}, not a text")
        caption = caption_text(row.id, value)
        hints = {"caption": caption, **origin(values), **score_hints(values)}
        if not self.chosen.with_images:
            return _caption_alone(key, row.place, caption, hints)
        data = self._image(row, values)
        return self.rows.row(key, row.place, data, hints)

    def _key(self, row: FoundRow, values: Mapping[str, Any]) -> str:
        if self.chosen.id is None:
            return row.id
        value = values.get(self.chosen.id)
        if value is None or not str(value).strip():
            raise BadRow("malformed", f"the column {self.chosen.id} is empty, but ids are taken from it")
        return str(value).strip()

    def _image(self, row: FoundRow, values: Mapping[str, Any]) -> bytes:
        """The encoded image of a row. Raises BadRow, StoreError."""
        value = values.get(row.told["image"])
        form = row.told["form"]
        if isinstance(value, Mapping):
            path = value.get("path")
            value = value.get("bytes") if value.get("bytes") is not None else path
        if not value:
            raise BadRow("missing-image", f"the column {row.told['image']} is empty")
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str):
            raise BadRow("malformed", f"the image is a {type(value).__name__}, not bytes, base64 or a path")
        if is_url(value):
            raise BadRow("missing-image", "there is the URL of an image, but no image; fetch it with img2dataset")
        if form == "base64" or (form != "path" and is_base64(value)):
            return self._decoded(row, value)
        return self._file(row, value)

    def _decoded(self, row: FoundRow, value: str) -> bytes:
        if value.startswith("data:"):
            value = value.partition(",")[2]
        self.rows.check_bytes(row.id, len(value) * 3 // 4)
        try:
            return base64.b64decode(value.strip(), validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadRow("unreadable", f"the image is no base64 ({error})") from error

    def _file(self, row: FoundRow, value: str) -> bytes:
        path = value.strip()
        folder = "" if self.chosen.images else row.place.rpartition("/")[0]
        try:
            # An absolute path is refused as it stands, not led into the folder.
            entry = self._beside.entry(f"{folder}/{path}" if folder and not path.startswith("/") else path)
        except DataError as error:
            raise BadRow("escapes", str(error)) from error
        if entry is None:
            raise BadRow("missing-file", f"there is no image {path[:200]}")
        self.rows.check_bytes(path, entry.size)
        return self._beside.read(entry.path)

    @cached_property
    def _beside(self) -> SourceFiles:
        """Where images are: of a source that is one file, in its folder."""
        if self.chosen.images or not self.files.is_file:
            return self.files.at(self.chosen.images) if self.chosen.images else self.files
        return self.files.above

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_beside"}


def _caption_alone(key: str, place: str, caption: str, hints: Mapping[str, str]) -> SourceRow:
    if not caption:
        raise BadRow("no-caption", "the caption is empty")
    record: dict[str, Any] = {
        "id": key,
        "text": caption,
        "image": None,
        "width": None,
        "height": None,
        "source": place,
        "provenance": provenance(hints),
    }
    return ReadyRow(record)


@dataclass(frozen=True)
class CaptionTable(ImageSettings):
    """The entry of `SOURCES`: tables with a column of captions and one of images."""

    hints: ClassVar[tuple[str, ...]] = ("caption",)

    kind: Literal["composition", "caption"] = "composition"
    """What is made of a row: a sample that annotators turn into a composition record, or a caption record."""
    caption: str | None = None
    """Column of the captions (in a file without a header its number, from 0); null finds it."""
    image: str | None = None
    """Column of the images, which are bytes, base64 or paths; null finds it."""
    id: str | None = None
    """Column whose values become the records' ids; they must be unique. Null counts rows: `part-0.parquet:17`."""
    header: bool | None = None
    """Whether CSV and TSV files name their columns in the first line; null finds out."""
    images: str | None = None
    """Folder or URL that paths of images start from; null takes the folder of the table."""
    with_images: bool = True
    """False makes caption records without images, which are enough for `align`."""
    thresholds: dict[str, ScoreRange] = field(default_factory=dict)
    """Rows whose score lies outside are rejected, by column: {pwatermark: {max: 0.5}, NSFW: {one_of: [UNLIKELY]}}."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "composition" and not self.with_images:
            raise ConfigError("with_images is false, but compositions need images; choose kind: caption")

    @property
    def steps(self) -> tuple[str, ...]:
        """Annotators of compositions; captions are ready."""
        return WRITTEN_CAPTIONS if self.kind == "composition" else ()

    def open(self, path: str | None) -> dict[str, Reader]:
        """One reader, of records of `kind`. Raises DataError without a path."""
        return {self.kind: CaptionTableReader(required(path), self)}
