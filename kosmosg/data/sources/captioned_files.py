"""An image, a `.txt` and a `.json` that belong together, as img2dataset writes them into tars and folders."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from kosmosg.data.sources.base import SourceRow
from kosmosg.data.sources.image_rows import (
    IMAGE_SUFFIXES,
    MAX_METADATA_BYTES,
    WRITTEN_CAPTIONS,
    BadRow,
    ImageRows,
    ImageSettings,
    caption_text,
    metadata,
    origin,
)

Checksums = Literal["auto", "compare", "ignore"]
HASHES = ("sha256", "sha512", "md5")
"""What img2dataset may have been told to write down of a downloaded image."""
_COMPARE_SHARE = 0.9
_TURNED = {"Rotated 90 CW": 270, "Rotated 180": 180, "Rotated 90 CCW": 90}
_LETTERS = {"sha256": 64, "sha512": 128, "md5": 32}


@dataclass(frozen=True)
class CaptionedFiles:
    """How such files become rows.

    Args:
        rows: how images become rows.
        caption: key of the .json that holds the caption; None takes the .txt, else the key `caption`.
        checksums: "compare" refuses images whose checksum is not the one in their .json, "ignore" does not look,
            "auto" compares where a shard keeps the images as they were downloaded.
    """

    rows: ImageRows = field(default_factory=ImageRows)
    caption: str | None = None
    checksums: Checksums = "auto"

    def settings(self) -> dict[str, Any]:
        """For the manifest."""
        return {"caption": self.caption, "checksums": self.checksums, **self.rows.settings()}

    def row(self, key: str, place: str, parts: Mapping[str, bytes], compare: bool) -> SourceRow:
        """One sample as a row; `parts` has its files by suffix. Raises BadRow, ImageError."""
        name, data = image_part(key, parts)
        meta = metadata(f"{key}.json", parts["json"]) if "json" in parts else {}
        caption: bytes | str | None = parts.get("txt")
        if self.caption is not None or caption is None:
            told = meta.get(self.caption or "caption")
            caption = told if isinstance(told, str) else None
        return self.told_row(key, place, name, data, caption, meta, compare)

    def told_row(
        self,
        key: str,
        place: str,
        name: str,
        data: bytes,
        caption: bytes | str | None,
        meta: Mapping[str, Any],
        compare: bool,
    ) -> SourceRow:
        """One image and what is known of it as a row. Raises BadRow, ImageError."""
        self.rows.check_bytes(name, len(data))
        if compare and checksum_agrees(data, meta) is False:
            raise BadRow(
                "wrong-checksum",
                f"{name} is not what was downloaded: its checksum is another than the recorded one; "
                "checksums=ignore takes it all the same",
            )
        hints = {"caption": caption_text(name, caption), **origin(meta)}
        return self.rows.row(key, place, data, hints, turned(meta.get("exif")))


def turned(exif: Any) -> int:
    """How far an image must be turned, in degrees counterclockwise, by the `exif` that img2dataset writes down.

    Where it encodes an image anew it drops the EXIF orientation without applying it: the image lies on its side, and
    this text alone still tells. Mirrored ones, which no camera makes, stay as they are.
    """
    if not isinstance(exif, str) or "Orientation" not in exif or len(exif) > MAX_METADATA_BYTES:
        return 0
    try:
        told = json.loads(exif)
    except (ValueError, RecursionError):
        return 0
    return _TURNED.get(str(told.get("Image Orientation")), 0) if isinstance(told, dict) else 0


def image_part(key: str, parts: Mapping[str, bytes]) -> tuple[str, bytes]:
    """The image among the files of a sample. Raises BadRow when there is none, or more than one that could be it."""
    for suffix in IMAGE_SUFFIXES:
        if suffix in parts:
            return f"{key}.{suffix}", parts[suffix]
    # `001.v2.jpg`, where the dot was meant to be part of the name.
    others = [suffix for suffix in parts if suffix.rpartition(".")[2] in IMAGE_SUFFIXES]
    if len(others) == 1:
        return f"{key}.{others[0]}", parts[others[0]]
    found = ", ".join(f".{suffix}" for suffix in parts) or "nothing that is read"
    raise BadRow("missing-file", f"{key} has no image beside it, only {found}")


def checksum_agrees(data: bytes, meta: Mapping[str, Any]) -> bool | None:
    """Whether an image has the checksum that its metadata gives, None where they give none."""
    for name in HASHES:
        told = meta.get(name)
        if isinstance(told, str) and len(told) == _LETTERS[name]:
            return hashlib.new(name, data, usedforsecurity=False).hexdigest() == told.lower()
    return None


def kept_as_downloaded(agree: list[bool | None]) -> bool:
    """Whether a shard keeps images as they came, by whether checksums agree in some of its rows.

    img2dataset writes down the checksum of what it downloaded. Most of its settings encode images anew, and then no
    stored image has that checksum; only where nearly all do is one that does not a damaged one.
    """
    known = [one for one in agree if one is not None]
    return bool(known) and sum(known) >= _COMPARE_SHARE * len(known)


@dataclass(frozen=True)
class CaptionedSource(ImageSettings):
    """Settings of a source of images with captions that came from the web."""

    hints: ClassVar[tuple[str, ...]] = ("caption", "url", "licence", "author", "title")

    kind: Literal["composition", "caption"] = "composition"
    """What becomes of the images: compositions, which annotators make, or captioned images as they are."""
    caption: str | None = None
    """Key of the .json, or column, that holds the caption; null takes the .txt, else the key `caption`."""
    checksums: Checksums = "auto"
    """What img2dataset's checksums are worth: compare refuses images that have another, ignore does not look, auto
    compares where a shard keeps images as they were downloaded."""

    @property
    def steps(self) -> tuple[str, ...]:
        """The annotators of compositions; captioned images are ready."""
        return WRITTEN_CAPTIONS if self.kind == "composition" else ()

    def captioned_files(self) -> CaptionedFiles:
        """How samples become rows."""
        return CaptionedFiles(ImageRows(self.kind, self.square, self.working_size), self.caption, self.checksums)
