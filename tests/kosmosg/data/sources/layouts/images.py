"""Small images, good and damaged, for synthetic copies of real layouts, and how their rows are counted."""

import io
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from kosmosg.data.annotators.base import Sample
from kosmosg.data.files.source_files import SourceFiles
from kosmosg.data.sources.base import Item, Reader, ReadyRow, SourceRow


def encoded(seed: int, size: tuple[int, int] = (40, 30), form: str = "JPEG", **options: object) -> bytes:
    """A noisy image that no other seed gives."""
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, form, **options)
    return out.getvalue()


def animated() -> bytes:
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "green", "blue")]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


def with_orientation(seed: int, value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return encoded(seed, exif=exif)


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 pixels that is a few hundred kilobytes."""
    out = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(out, "PNG")
    return out.getvalue()


def bad_images(seed: int) -> dict[str, bytes]:
    """What stands under .jpg in downloads and cannot be used, by name; the reason is `unreadable` for all."""
    whole = encoded(seed)
    return {
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "html": b"<!DOCTYPE html><html><body>This photo is no longer available</body></html>",
        "animated": animated(),
        "sliver": encoded(seed, (500, 2)),
    }


def good_images(seed: int) -> dict[str, bytes]:
    """What looks odd and is fine."""
    grey = Image.fromarray(np.random.default_rng(seed).integers(0, 65536, (30, 40), dtype=np.uint16))
    layered = Image.new("LA", (30, 30), (200, 0))
    ink = Image.effect_noise((30, 30), 80).convert("CMYK")
    files = {}
    for name, image, form in (("grey16", grey, "PNG"), ("layered", layered, "PNG"), ("ink", ink, "JPEG")):
        out = io.BytesIO()
        image.save(out, form)
        files[name] = out.getvalue()
    return files | {
        "webp": encoded(seed, form="WEBP"),
        "pixel": encoded(seed, (1, 1), "PNG"),
        "turned": with_orientation(seed, 6),
        "gif": encoded(seed, form="GIF"),
    }


def listed(reader: Reader) -> list[Item]:
    """The items of a reader; their keys are unique."""
    items = list(reader.items())
    keys = Counter(item.key for item in items)
    assert [key for key, count in keys.items() if count > 1] == []
    return items


def outcome(rows: Iterable[SourceRow]) -> dict[str, str]:
    """id -> "" for a row that is good, else the reason; every id once."""
    found: dict[str, str] = {}
    for row in rows:
        if isinstance(row, Sample):
            key, reason = row.id, ""
        elif isinstance(row, ReadyRow):
            key, reason = row.record["id"], ""
        else:
            key, reason = row.refusal["id"], row.refusal["reason"]
            assert row.refusal["message"]
            assert "unexpected" not in reason, row.refusal
        assert key not in found, f"{key} came twice"
        found[key] = reason
    return found


def read_all(reader: Reader, order: Sequence[Item] | None = None) -> dict[str, str]:
    return outcome(reader.read(listed(reader) if order is None else order))


def as_remote(folder: Path) -> SourceFiles:
    """A folder as it would lie in a bucket: through pyarrow's file system, by requests."""
    files = SourceFiles("s3://bucket")
    files.__dict__["_remote"] = (SubTreeFileSystem(str(folder.parent), LocalFileSystem()), folder.name)
    return files
