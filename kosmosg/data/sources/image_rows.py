"""From the bytes of an image and what is known of it to a row: a sample for the annotators, or a caption record.

Every source of images ends here, so that limits, the cut to a square, captions, hints and refusals are the same for
folders, tars and tables.
"""

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from kosmosg.data.annotators.apply import refusal
from kosmosg.data.annotators.base import Sample
from kosmosg.data.composition import provenance, shrink
from kosmosg.data.image_bytes import encode_image
from kosmosg.data.sources.base import Item, ReadyRow, RejectedRow, SourceRow, rejected
from kosmosg.data.sources.stored_image import is_plain
from kosmosg.errors import ConfigError
from kosmosg.prompt import DEFAULT_LIMITS, PromptLimits, read_image

WRITTEN_CAPTIONS = ("told", "noun_chunks", "clipseg")
"""Default steps where people wrote the captions. They name several things, of which `nouns` finds one and `grabcut`
could not tell one from the other; both need what is not always installed, and are refused where it is missing."""
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
MAX_CAPTION_CHARACTERS = 5_000  # longer is no caption, but a page
MAX_METADATA_BYTES = 1_000_000
# What is carried along of an image's origin -> keys under which sources have it, in any case.
_ORIGIN = {
    "url": ("url",),
    "licence": ("license", "licence"),
    "author": ("author", "creator", "artist"),
    "title": ("title",),
}
_ORIENTATION = 0x0112


class BadRow(Exception):
    """A row that cannot be read: a short fixed word, and one sentence."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def guarded(key: str, place: str, make: Callable[[], SourceRow]) -> SourceRow:
    """The row that `make` gives, or why there is none."""
    try:
        return make()
    except BadRow as error:
        return rejected(key, place, error.reason, str(error))
    except FileNotFoundError:
        return rejected(key, place, "missing-file", f"there is no file {place}")
    except Exception as error:  # noqa: BLE001 - told in the quarantine table, with its type
        return rejected(key, place, *refusal(error))


def refused_item(key: str, place: str, reason: str, message: str, stamp: str = "") -> Item:
    """An item that the listing already knows to be no good; `refused` makes the row of it."""
    return Item(key, place, stamp=stamp, extra=json.dumps({"refused": [reason, message]}))


def refused(item: Item) -> RejectedRow | None:
    """The row of an item that the listing turned down, None for any other."""
    if not item.extra.startswith('{"refused"'):
        return None
    reason, message = json.loads(item.extra)["refused"]
    return rejected(item.key, item.place, reason, message, stage="read")


@dataclass(frozen=True)
class ImageSettings:
    """What every source of images takes."""

    square: bool = True
    """Crop the middle square of every image first, as the original did; of compositions only."""
    working_size: int = 1024
    """Longest side in pixels, at least 64; larger images are made smaller once."""

    def __post_init__(self) -> None:
        if self.working_size < 64:
            raise ConfigError(f"working_size is {self.working_size}; it is at least 64")


@dataclass(frozen=True)
class ImageRows:
    """How the images of a source become rows.

    Args:
        kind: "composition" gives samples for the annotators, "caption" records with image and caption.
        square: cut the middle square first, of samples only.
        working_size: longest side in pixels; larger images are made smaller once.
        limits: what an image may cost before it is decoded.
    """

    kind: str = "composition"
    square: bool = True
    working_size: int = 1024
    limits: PromptLimits = DEFAULT_LIMITS

    def settings(self) -> dict[str, Any]:
        """For the manifest."""
        square = {"square": self.square} if self.kind == "composition" else {}
        return {"kind": self.kind, "working_size": self.working_size, **square}

    def check_bytes(self, name: str, size: int) -> None:
        """Raises BadRow when an encoded image is too large to be read."""
        if size > self.limits.encoded_bytes:
            raise BadRow("unreadable", f"{name} has {size:,} bytes, the limit is {self.limits.encoded_bytes:,}")

    def row(self, key: str, place: str, data: bytes, hints: Mapping[str, str], degrees: int = 0) -> SourceRow:
        """One image as a row. `hints` has the caption under `caption`. Raises BadRow, ImageError.

        Args:
            degrees: how far the stored pixels must be turned counterclockwise. Not done where the file's own EXIF
                orientation says it as well: it is applied already.
        """
        self.check_bytes(key, len(data))
        original = read_image(data, self.limits, name=key)
        digest = sha256(data)
        if degrees and orientation(data) == 1:
            original = original.transpose(_TURNS[degrees])
            data = b""  # no longer what is to be kept
        if self.kind == "composition":
            image = shrink(middle_square(original) if self.square else original, self.working_size)
            # The untouched bytes where they will do: no second compression.
            encoded = data if data and image is original else encode_image(image, "jpeg", 95)
            return Sample(id=key, source=place, encoded=encoded, sha256=digest, hints=hints)
        return self._caption_record(key, place, data, original, hints)

    def _caption_record(
        self, key: str, place: str, data: bytes, original: Image.Image, hints: Mapping[str, str]
    ) -> ReadyRow:
        text = hints.get("caption", "")
        if not text:
            raise BadRow("no-caption", f"{key} has no caption")
        image = shrink(original, self.working_size)
        kept = data and image is original and is_plain(data)
        record = {
            "id": key,
            "text": text,
            "image": data if kept else encode_image(image, "jpeg", 95),
            "width": image.width,
            "height": image.height,
            "source": place,
            "provenance": provenance(hints),
        }
        return ReadyRow(record)


_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


def orientation(data: bytes) -> int:
    """The EXIF orientation of an encoded image, 1 (upright) where it has none or one that cannot be read."""
    with Image.open(io.BytesIO(data)) as image:
        value = image.getexif().get(_ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def middle_square(image: Image.Image) -> Image.Image:
    """The largest square in the middle of an image; the image itself when it is square."""
    side = min(image.size)
    if image.width == image.height:
        return image
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def caption_text(name: str, data: bytes | str | None) -> str:
    """A caption on one line, "" where there is none. Raises BadRow when it is not UTF-8 or far too long."""
    if data is None:
        return ""
    if len(data) > 4 * MAX_CAPTION_CHARACTERS:
        raise BadRow("too-long", f"the caption of {name} has {len(data):,} bytes; is it a caption?")
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        text.encode()
    except UnicodeError as error:
        raise BadRow("encoding", f"the caption of {name} is not UTF-8 ({error})") from error
    text = " ".join(text.split())
    if len(text) > MAX_CAPTION_CHARACTERS:
        limit = MAX_CAPTION_CHARACTERS
        raise BadRow("too-long", f"the caption of {name} has {len(text):,} characters, a caption has at most {limit:,}")
    return text


def metadata(name: str, data: bytes) -> dict[str, Any]:
    """What a .json beside an image says. Raises BadRow when it is no JSON object."""
    if len(data) > MAX_METADATA_BYTES:
        raise BadRow("too-long", f"{name} has {len(data):,} bytes, the limit is {MAX_METADATA_BYTES:,}")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadRow("malformed", f"{name} is not JSON ({' '.join(str(error).split())})") from error
    if not isinstance(value, dict):
        raise BadRow("malformed", f"{name} holds a {type(value).__name__}, not an object with keys")
    return value


def origin(meta: Mapping[str, Any]) -> dict[str, str]:
    """Url, licence, author and title, where the metadata of an image has them."""
    lower = {key.lower(): value for key, value in meta.items()}
    found = {}
    for name, keys in _ORIGIN.items():
        value = next((lower[key] for key in keys if isinstance(lower.get(key), str)), "").strip()
        if value and value != "?":  # LAION's word for an unknown licence
            found[name] = value[:2000].encode("utf-8", "replace").decode()
    return found


def sha256(data: bytes) -> str:
    """In hex, as records have it."""
    return hashlib.sha256(data).hexdigest()
