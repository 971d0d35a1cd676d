"""Pages: every page comes out once, its images where they were, and images that are missing are counted."""

import json
import pickle
import random
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kosmosg.data.image_bytes import decode_image
from kosmosg.data.records import table
from kosmosg.data.sources.base import ReadyRow, SourceRow
from kosmosg.data.sources.interleaved import Interleaved, InterleavedReader
from kosmosg.errors import ConfigError, DataError
from tests.kosmosg.data.sources.layouts import pages
from tests.kosmosg.data.sources.layouts.images import as_remote, encoded, listed, outcome, read_all
from tests.kosmosg.data.sources.layouts.pages import PageCopy


def reader_of(source: Any, **chosen: Any) -> InterleavedReader:
    return InterleavedReader(source, Interleaved(**chosen))


def shapes(rows: Iterable[SourceRow]) -> dict[str, str]:
    records = [row.record for row in rows if isinstance(row, ReadyRow)]
    return {
        record["id"]: "".join("I" if part["image"] is not None else "T" for part in record["parts"])
        for record in records
    }


LAYOUTS: dict[str, tuple[Callable[..., PageCopy], dict[str, Any], dict[str, Any]]] = {
    "obelics": (pages.obelics, {}, {}),
    "md5": (pages.obelics, {"naming": "md5"}, {"name": "{md5}.jpg"}),
    "img2dataset": (pages.obelics, {"naming": "img2dataset"}, {"name": "img2dataset"}),
    "mmc4": (pages.mmc4, {}, {}),
    "mmc4-core": (pages.mmc4, {"packed": False}, {"name": "{shard}/{name}"}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(3))
def test_every_layout_adds_up(tmp_path: Path, layout: str, seed: int) -> None:
    make, how, chosen = LAYOUTS[layout]
    copy = make(tmp_path / "set", tmp_path / "images", seed=seed, **how)
    reader = reader_of(str(copy.folder), images=str(copy.images), **chosen)
    items = listed(reader)
    found = list(reader.read(items))
    assert outcome(found) == copy.truth
    assert shapes(found) == copy.shapes
    records = [row.record for row in found if isinstance(row, ReadyRow)]
    assert table("interleaved", records).num_rows == len(copy.shapes)
    for record in records:
        assert all(decode_image(part["image"]).size == (60, 40) for part in record["parts"] if part["image"])
    random.Random(seed).shuffle(items)
    assert outcome(pickle.loads(pickle.dumps(reader)).read(items)) == copy.truth  # noqa: S301 - our own
    assert read_all(reader_of(as_remote(copy.folder), images=str(copy.images), **chosen)) == copy.truth


def test_missing_images_are_counted_or_end_the_page(tmp_path: Path) -> None:
    copy = pages.mmc4(tmp_path / "set", tmp_path / "images", damage=0.4)
    reader = reader_of(str(copy.folder), images=str(copy.images))
    records = [row.record for row in reader.read(listed(reader)) if isinstance(row, ReadyRow)]
    told = [json.loads(record["provenance"]) for record in records]
    assert all(entry["url"].startswith("https://page/") for entry in told)
    dropped = [entry["dropped_images"] for entry in told if "dropped_images" in entry]
    assert {reason for entry in dropped for reason in entry} == {"missing-file", "unreadable", "malformed"}
    strict = read_all(reader_of(str(copy.folder), images=str(copy.images), missing="reject"))
    for record, entry in zip(records, told, strict=True):
        gone = set(entry.get("dropped_images", {})) - {"malformed"}
        assert strict[record["id"]] in (gone or {""})


def test_limits_of_images_and_text(tmp_path: Path) -> None:
    row = {"images": [f"{index}.jpg" for index in range(6)] + [None], "texts": [None] * 6 + ["word " * 100]}
    (tmp_path / "images").mkdir()
    for index in range(6):
        (tmp_path / "images" / f"{index}.jpg").write_bytes(encoded(index, (200, 100) if index else (8, 8)))
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    base = {"images": str(tmp_path / "images"), "name": "{last}"}
    reader = reader_of(str(tmp_path / "a.parquet"), **base, max_images=3, image_size=50)
    (found,) = reader.read(listed(reader))
    assert isinstance(found, ReadyRow)
    assert shapes([found]) == {"a.parquet:0": "IIIT"}
    assert json.loads(found.record["provenance"])["dropped_images"] == {"over-limit": 2, "wrong-size": 1}
    assert [decode_image(part["image"]).size for part in found.record["parts"][:3]] == [(50, 25)] * 3
    few = reader_of(str(tmp_path / "a.parquet"), **base, min_images=6)
    assert read_all(few) == {"a.parquet:0": "no-image"}
    assert read_all(reader_of(str(tmp_path / "a.parquet"), **base, max_characters=99)) == {"a.parquet:0": "too-long"}


def test_names_that_lead_out_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "secret.jpg").write_bytes(encoded(1))
    names = ["../secret.jpg", str(tmp_path / "secret.jpg"), "~/secret.jpg"]
    info = [{"image_name": name, "raw_url": "", "matched_text_index": 0} for name in names]
    lines = [json.dumps({"text_list": ["a"], "image_info": [entry]}) for entry in info]
    (tmp_path / "set" / "a_shard_1_v3.jsonl").write_text("\n".join(lines))
    assert set(read_all(reader_of(str(tmp_path / "set"), name="{name}", missing="reject")).values()) == {"escapes"}
    usual = read_all(reader_of(str(tmp_path / "set"), missing="reject"))
    assert set(usual.values()) <= {"escapes", "missing-file"}


def test_omnicorpus_tells_places_as_structs(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x.jpg").write_bytes(encoded(1, (60, 40)))
    about = [{"filename": "x.jpg", "document_url": "https://page"}, None]
    row = {"images": ["https://e.org/1", None], "texts": [None, "words"], "metadata": about}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    reader = reader_of(str(tmp_path / "a.parquet"), images=str(tmp_path / "images"))
    (found,) = reader.read(listed(reader))
    assert isinstance(found, ReadyRow)
    assert shapes([found]) == {"a.parquet:0": "IT"}
    assert json.loads(found.record["provenance"]) == {"url": "https://page"}


def test_a_damaged_archive_is_one_row(tmp_path: Path) -> None:
    copy = pages.mmc4(tmp_path / "set", tmp_path / "images", damage=0)
    pages.mmc4(tmp_path / "other", tmp_path / "others", damage=0)
    (other,) = (tmp_path / "other").iterdir()
    (copy.folder / "a_shard_3_v2.jsonl.zip").write_bytes(other.read_bytes()[:500])
    with zipfile.ZipFile(copy.folder / "b_shard_4_v2.jsonl.zip", "w") as archive:
        archive.writestr("x.jsonl", "{}")
        archive.writestr("y.jsonl", "{}")
    found = read_all(reader_of(str(copy.folder), images=str(copy.images)))
    bad = {"a_shard_3_v2.jsonl.zip": "malformed", "b_shard_4_v2.jsonl.zip": "malformed"}
    assert found == {**copy.truth, **bad}


def test_what_holds_no_pages_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"images": [["x"]], "text": ["y"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"OBELICS has columns images and texts, MMC4 .*, this file has images, text"):
        listed(reader_of(str(tmp_path)))
    copy = pages.mmc4(tmp_path / "set", tmp_path / "images", count=2)
    with pytest.raises(DataError, match="there is no file or folder"):
        listed(reader_of(str(copy.folder), images=str(tmp_path / "absent")))
    with pytest.raises(ConfigError, match="places in it are name, md5"):
        listed(reader_of(str(copy.folder), name="{hash}.jpg"))
    with pytest.raises(ConfigError, match="all images are one file"):
        listed(reader_of(str(copy.folder), name="a.jpg"))
    with pytest.raises(ConfigError, match="min_images is 3, max_images 2"):
        Interleaved(min_images=3, max_images=2)
