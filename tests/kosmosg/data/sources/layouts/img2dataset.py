"""Small copies of what img2dataset leaves, in its three forms, with what must become of every row."""

import hashlib
import io
import json
import random
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.kosmosg.data.sources.layouts.images import bad_images, encoded, good_images

SCHEMA = [
    ("url", pa.string()),
    ("caption", pa.string()),
    ("LICENSE", pa.string()),
    ("key", pa.string()),
    ("status", pa.string()),
    ("error_message", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("original_width", pa.int32()),
    ("original_height", pa.int32()),
    ("exif", pa.string()),
    ("sha256", pa.string()),
]


@dataclass
class Download:
    """One row as img2dataset has it in memory before it is written."""

    meta: dict[str, Any]
    image: bytes | None
    caption: str | None
    reason: str = ""
    """What must become of it."""


@dataclass
class Copy:
    """What was written, and what must come of it: id without the place of its shard -> reason, "" for good ones."""

    folder: Path
    truth: dict[str, str] = field(default_factory=dict)


def downloads(shard: int, count: int, damage: float, seed: int, reencoded: bool = False) -> list[Download]:
    """Rows in the order in which threads finished them."""
    chance = random.Random(f"{seed}:{shard}")
    rows = []
    for index in range(count):
        number = shard * 10_000 + index
        meta = dict.fromkeys(name for name, _ in SCHEMA)
        meta |= {"url": f"https://example.org/{number}.jpg", "LICENSE": "?", "key": f"{number:09d}", "exif": "{}"}
        meta |= {"caption": f"a photo number {number} of a dog", "status": "success", "width": 40, "height": 30}
        meta |= {"original_width": 40, "original_height": 30}
        image: bytes | None = encoded(number)
        reason, caption = "", meta["caption"]
        if chance.random() < 0.1:
            image = chance.choice(sorted(good_images(number).items()))[1]
        downloaded = image
        if chance.random() < damage:
            kind = chance.choice(["failed", "failed", "resize", "bytes", "bytes", "flipped", "caption", "long"])
            if kind == "failed":
                meta |= {"status": "failed_to_download", "error_message": "HTTP Error 404: Not Found"}
            elif kind == "resize":
                meta |= {"status": "failed_to_resize", "error_message": "Image decoding error"}
            elif kind == "bytes":
                image = chance.choice(sorted(bad_images(number).items()))[1]
                downloaded, reason = image, "unreadable"
                meta |= {"width": None, "height": None, "original_width": None, "original_height": None}
            elif kind == "flipped":
                image, reason = encoded(number + 1_000_000), "" if reencoded else "wrong-checksum"
            elif kind == "caption":
                meta["caption"], caption, reason = None, "", "no-caption"
            else:
                caption = "word " * 2000
                meta["caption"], reason = caption, "too-long"
            if kind in ("failed", "resize"):
                image, reason = None, "failed-download"
                meta |= {"width": None, "height": None, "original_width": None, "original_height": None}
        if image is not None and downloaded is not None:
            stored = downloaded + b"another encoding" if reencoded else downloaded
            meta["sha256"] = hashlib.sha256(stored).hexdigest()
        rows.append(Download(meta, image, caption, reason))
    chance.shuffle(rows)
    return rows


def write_books(folder: Path, shard: int, rows: list[Download], finished: bool = True) -> None:
    """The Parquet of all rows, and the statistics, which are written last."""
    table = pa.table({name: pa.array([row.meta[name] for row in rows], kind) for name, kind in SCHEMA})
    pq.write_table(table, folder / f"{shard:05d}.parquet", row_group_size=100)
    if finished:
        write_stats(folder, shard, rows)


def write_stats(folder: Path, shard: int, rows: list[Download]) -> None:
    good = sum(row.image is not None for row in rows)
    told = {"count": len(rows), "successes": good, "failed_to_download": len(rows) - good, "failed_to_resize": 0}
    (folder / f"{shard:05d}_stats.json").write_text(json.dumps(told))


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_tar(path: Path, rows: list[Download]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row in rows:
            if row.image is not None:
                key = row.meta["key"]
                add(tar, f"{key}.jpg", row.image)
                add(tar, f"{key}.txt", (row.caption or "").encode())
                add(tar, f"{key}.json", json.dumps(row.meta, indent=4).encode())


def write_files(place: Path, rows: list[Download]) -> None:
    place.mkdir(parents=True)
    for row in rows:
        if row.image is not None:
            key = row.meta["key"]
            (place / f"{key}.jpg").write_bytes(row.image)
            (place / f"{key}.txt").write_text(row.caption or "")
            (place / f"{key}.json").write_text(json.dumps(row.meta, indent=4))


def write_table(folder: Path, shard: int, rows: list[Download]) -> None:
    columns = {name: pa.array([row.meta[name] for row in rows], kind) for name, kind in SCHEMA}
    columns["jpg"] = pa.array([row.image for row in rows], pa.binary())
    pq.write_table(pa.table(columns), folder / f"{shard:05d}.parquet", row_group_size=100)
    write_stats(folder, shard, rows)


def webdataset(
    folder: Path, shards: int = 2, count: int = 60, damage: float = 0.2, seed: int = 0, reencoded: bool = False
) -> Copy:
    """The form `webdataset`: tar, Parquet and statistics."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = Copy(folder)
    for shard in range(shards):
        rows = downloads(shard, count, damage, seed, reencoded)
        write_tar(folder / f"{shard:05d}.tar", rows)
        write_books(folder, shard, rows)
        copy.truth |= {f"{shard:05d}.tar/{row.meta['key']}": row.reason for row in rows}
    return copy


def files(folder: Path, shards: int = 2, count: int = 60, damage: float = 0.2, seed: int = 0) -> Copy:
    """The form `files`: a folder of files, with Parquet and statistics beside it."""
    copy = Copy(folder)
    for shard in range(shards):
        rows = downloads(shard, count, damage, seed)
        write_files(folder / f"{shard:05d}", rows)
        write_books(folder, shard, rows)
        copy.truth |= {f"{shard:05d}/{row.meta['key']}": row.reason for row in rows}
    return copy


def parquet(folder: Path, shards: int = 2, count: int = 230, damage: float = 0.2, seed: int = 0) -> Copy:
    """The form `parquet`: one file with a column of bytes, and statistics."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = Copy(folder)
    for shard in range(shards):
        rows = downloads(shard, count, damage, seed)
        write_table(folder, shard, rows)
        copy.truth |= {f"{shard:05d}.parquet/{row.meta['key']}": row.reason for row in rows}
    return copy
