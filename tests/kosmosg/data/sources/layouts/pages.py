"""Small copies of interleaved pages (OBELICS, MMC4), and of what downloaders leave of their images."""

import hashlib
import io
import json
import random
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.kosmosg.data.sources.layouts.captions import bad_image
from tests.kosmosg.data.sources.layouts.images import encoded


@dataclass
class PageCopy:
    """What was written, and what must come of it: id -> reason, or "" and the parts, T for text and I for an image."""

    folder: Path
    images: Path
    truth: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, str] = field(default_factory=dict)


def joined(shape: str) -> str:
    """Texts that follow each other are one part."""
    while "TT" in shape:
        shape = shape.replace("TT", "T")
    return shape


def image_of(url: str, chance: random.Random, damage: float) -> bytes | None:
    """What a downloader got: nothing, something broken, or an image of its own."""
    if chance.random() < damage:
        return None if chance.random() < 0.5 else bad_image(1, chance)
    return encoded(int(url.rpartition("/")[2].split(".")[0]), (60, 40))


def obelics(
    folder: Path, images: Path, count: int = 40, damage: float = 0.3, seed: int = 0, naming: str = "sha256"
) -> PageCopy:
    """Parallel lists, JSON of the places, and images under a hash of their address or as img2dataset numbers them."""
    copy = PageCopy(folder, images)
    (folder / "data").mkdir(parents=True)
    images.mkdir(parents=True)
    chance = random.Random(seed)
    rows: list[dict[str, Any]] = []
    fetched: list[tuple[str, bytes | None]] = []
    for number in range(count):
        addresses: list[str | None] = []
        texts: list[str | None] = []
        shape = ""
        for place in range(chance.randrange(2, 8)):
            if chance.random() < 0.5:
                url = f"https://example.org/{number * 100 + place}.jpg?x=1"
                data = image_of(url.removesuffix("?x=1"), chance, damage)
                fetched.append((url, data))
                addresses.append(url)
                texts.append(None)
                shape += "I" if data is not None and data == encoded(number * 100 + place, (60, 40)) else ""
            else:
                addresses.append(None)
                texts.append(f"paragraph {place}\n\nof page {number}, é")
                shape += "T"
        about = [None if url is None else {"src": url, "document_url": f"https://page/{number}"} for url in addresses]
        reason = "no-image" if "I" not in shape else "" if "T" in shape else "no-text"
        if chance.random() < damage / 2:
            reason = "malformed"
            texts.append("one too many")
        row = {"images": addresses, "texts": texts, "metadata": json.dumps(about), "general_metadata": "{}"}
        rows.append(row)
        key = f"data/train-00000-of-00002.parquet:{number}"
        copy.truth[key] = reason
        if not reason:
            copy.shapes[key] = joined(shape)
    pq.write_table(pa.Table.from_pylist(rows), folder / "data" / "train-00000-of-00002.parquet", row_group_size=16)
    if naming == "img2dataset":
        downloaded(images / "train-00000-of-00002", fetched)
    else:
        for url, data in fetched:
            if data is not None:
                (images / f"{hashlib.new(naming, url.encode()).hexdigest()}.jpg").write_bytes(data)
    return copy


def downloaded(folder: Path, fetched: list[tuple[str, bytes | None]]) -> None:
    """What img2dataset leaves in its form `files`."""
    (folder / "00000").mkdir(parents=True)
    for number, (_, data) in enumerate(fetched):
        if data is not None:
            (folder / "00000" / f"{number:09d}.jpg").write_bytes(data)
    columns = {
        "url": [url for url, _ in fetched],
        "key": [f"{number:09d}" for number in range(len(fetched))],
        "status": ["failed_to_download" if data is None else "success" for _, data in fetched],
    }
    pq.write_table(pa.table(columns), folder / "00000.parquet")


def mmc4(
    folder: Path, images: Path, count: int = 40, damage: float = 0.3, seed: int = 0, packed: bool = True
) -> PageCopy:
    """Sentences and images that match them, in no order."""
    copy = PageCopy(folder, images)
    folder.mkdir(parents=True)
    place = images / "17"
    place.mkdir(parents=True)
    chance = random.Random(seed)
    name = "docs_no_face_shard_17_v2.jsonl"
    file = f"{name}.zip" if packed else name
    out = io.BytesIO()
    for number in range(count):
        sentences = [f"Sentence {index} of {number}." for index in range(chance.randrange(1, 6))]
        shown: dict[int, int] = {}
        info = []
        for index in range(chance.randrange(4)):
            at = chance.randrange(len(sentences))
            image = f"{number:06d}{index}.jpg"
            data = image_of(f"/{number * 100 + index}.jpg", chance, damage)
            if data is not None:
                (place / image).write_bytes(data)
            if data == encoded(number * 100 + index, (60, 40)):
                shown[at] = shown.get(at, 0) + 1
            entry = {
                "image_name": image,
                "raw_url": f"https://e.org/{image}",
                "matched_sim": 0.3,
                "face_detections": None,
            }
            info.append({**entry, "matched_text_index": at})
        if chance.random() < damage:
            info.append({"image_name": "x.jpg", "raw_url": "https://e.org/x.jpg", "matched_text_index": 99})
        chance.shuffle(info)
        line = json.dumps({"text_list": sentences, "url": f"https://page/{number}", "image_info": info}).encode()
        key = f"{file}@{out.tell()}"
        reason = "" if shown else "no-image"
        if chance.random() < damage / 2:
            line, reason = line[:-7], "malformed"
        copy.truth[key] = reason
        if not reason:
            shape = "".join("I" * shown.get(index, 0) + "T" for index in range(len(sentences)))
            copy.shapes[key] = joined(shape)
        out.write(line + b"\n")
    if packed:
        with zipfile.ZipFile(folder / file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, out.getvalue())
    else:
        (folder / file).write_bytes(out.getvalue())
    return copy
