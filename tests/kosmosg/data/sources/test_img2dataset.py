"""img2dataset's output in its three forms: every row of its books comes out once, with its own reason."""

import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kosmosg.data.annotators.base import Sample
from kosmosg.data.records import table
from kosmosg.data.sources.base import ReadyRow, RejectedRow
from kosmosg.data.sources.captioned_files import CaptionedFiles
from kosmosg.data.sources.image_rows import ImageRows
from kosmosg.data.sources.img2dataset import Img2Dataset, Img2DatasetReader
from kosmosg.errors import DataError
from kosmosg.prompt import read_image
from tests.kosmosg.data.sources.layouts import img2dataset
from tests.kosmosg.data.sources.layouts.images import as_remote, encoded, listed, outcome, read_all

CAPTIONS = CaptionedFiles(ImageRows("caption"))
FORMS = {"webdataset": img2dataset.webdataset, "files": img2dataset.files, "parquet": img2dataset.parquet}
Write = Callable[..., img2dataset.Copy]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("far", [False, True])
def test_every_form_adds_up(tmp_path: Path, form: str, far: bool) -> None:
    copy = FORMS[form](tmp_path / "set", seed=4)
    reader = Img2DatasetReader(as_remote(copy.folder) if far else copy.folder, CAPTIONS)
    assert reader.form() == form
    items = listed(reader)
    assert sum(item.rows for item in items) == len(copy.truth)
    random.Random(1).shuffle(items)
    assert outcome(reader.read(items)) == copy.truth
    assert len(set(copy.truth.values())) > 4


@pytest.mark.parametrize("form", FORMS)
def test_samples_carry_caption_and_origin(tmp_path: Path, form: str) -> None:
    copy = FORMS[form](tmp_path, shards=1, damage=0)
    reader = Img2DatasetReader(copy.folder)
    rows = [row for row in reader.read(listed(reader)) if isinstance(row, Sample)]
    for row in rows:
        number = int(row.id.rpartition("/")[2])
        assert row.hints == {
            "caption": f"a photo number {number} of a dog",
            "url": f"https://example.org/{number}.jpg",
        }
    assert len(rows) == len(copy.truth)


@pytest.mark.parametrize("form", FORMS)
def test_another_column_may_hold_the_caption(tmp_path: Path, form: str) -> None:
    copy = FORMS[form](tmp_path, shards=1, damage=0)
    reader = Img2DatasetReader(copy.folder, CaptionedFiles(ImageRows("caption"), caption="url"))
    records = [row.record for row in reader.read(listed(reader)) if isinstance(row, ReadyRow)]
    assert {record["text"] for record in records} == {
        f"https://example.org/{int(key.rpartition('/')[2])}.jpg" for key in copy.truth
    }
    assert json.loads(records[0]["provenance"])["url"] == records[0]["text"]
    table("caption", records)


@pytest.mark.parametrize("form", FORMS)
def test_an_unfinished_shard_is_refused_by_name(tmp_path: Path, form: str) -> None:
    copy = FORMS[form](tmp_path)
    (tmp_path / "00001_stats.json").write_text("")  # the disk was full
    found = read_all(Img2DatasetReader(copy.folder, CAPTIONS))
    (unfinished,) = [key for key, reason in found.items() if reason == "unfinished"]
    assert unfinished.startswith("00001")
    assert {key: reason for key, reason in found.items() if key != unfinished} == {
        key: reason for key, reason in copy.truth.items() if key.startswith("00000")
    }


def test_a_folder_without_a_success_still_counts(tmp_path: Path) -> None:
    rows = img2dataset.downloads(0, 20, 0, 0)
    for row in rows:
        row.meta |= {"status": "failed_to_download", "error_message": "<urlopen error timed out>"}
        row.image = None
    (tmp_path / "00000").mkdir()
    img2dataset.write_books(tmp_path, 0, rows)
    copy = img2dataset.files(tmp_path / "more", shards=1)
    found = read_all(Img2DatasetReader(tmp_path, CAPTIONS))
    assert found == {f"00000/{row.meta['key']}": "failed-download" for row in rows} | {
        f"more/{key}": reason for key, reason in copy.truth.items()
    }


def test_files_that_are_gone_are_told(tmp_path: Path) -> None:
    copy = img2dataset.files(tmp_path, shards=1, damage=0)
    (before, after, alone) = sorted(copy.truth)[:3]
    (tmp_path / f"{before}.jpg").unlink()
    (tmp_path / f"{before}.txt").unlink()
    (tmp_path / f"{before}.json").unlink()
    (tmp_path / f"{alone}.jpg").unlink()
    reader = Img2DatasetReader(copy.folder, CAPTIONS)
    items = listed(reader)
    (tmp_path / f"{after}.jpg").unlink()
    gone = dict.fromkeys((before, after, alone), "missing-file")
    assert outcome(reader.read(items)) == copy.truth | gone


def test_bad_tables_cost_a_row_or_a_file(tmp_path: Path) -> None:
    copy = img2dataset.parquet(tmp_path, shards=3, count=120, damage=0)
    one = pq.read_table(tmp_path / "00000.parquet").to_pylist()
    one[1] |= {"key": one[0]["key"]}
    one[2] |= {"key": None}
    captions = pa.array([b"\xff\xfe" if index == 5 else b"a dog" for index in range(120)], pa.binary())
    form = pq.read_schema(tmp_path / "00000.parquet")
    changed = pa.Table.from_pylist(one, schema=form)
    changed = changed.set_column(1, "caption", captions.view(pa.string()))
    pq.write_table(changed, tmp_path / "00000.parquet", row_group_size=50)
    data = (tmp_path / "00001.parquet").read_bytes()
    (tmp_path / "00001.parquet").write_bytes(data[: len(data) // 2])
    pq.write_table(pq.read_table(tmp_path / "00002.parquet").drop_columns(["jpg"]), tmp_path / "00002.parquet")
    found = read_all(Img2DatasetReader(copy.folder, CAPTIONS))
    first = f"00000.parquet/{one[0]['key']}"
    bad = {key: reason for key, reason in found.items() if reason}
    assert bad == {
        "00001.parquet": "unreadable",
        "00002.parquet": "malformed",
        f"{first}@1": "duplicate",
        "00000.parquet@2": "malformed",
        f"00000.parquet/{one[5]['key']}": "encoding",
    }
    assert len(found) == 122


def test_a_page_that_rots_costs_its_rows(tmp_path: Path) -> None:
    copy = img2dataset.parquet(tmp_path, shards=1, count=300, damage=0)
    path = tmp_path / "00000.parquet"
    group = pq.ParquetFile(path).metadata.row_group(1)
    column = next(group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == "jpg")
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + 40] = bytes(40)
    path.write_bytes(data)
    found = read_all(Img2DatasetReader(copy.folder, CAPTIONS))
    assert len(found) == 300
    assert sum(reason == "unreadable" for reason in found.values()) == 100


@pytest.mark.parametrize("name", ["1.csv", "a.tfrecord", "00000.parquet", "photo.jpg"])
def test_another_layout_is_refused(tmp_path: Path, name: str) -> None:
    if name.endswith("parquet"):
        pq.write_table(pa.table({"url": ["x"]}), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(encoded(1))
    with pytest.raises(DataError, match=r"expected what img2dataset leaves|tfrecord") as told:
        list(Img2DatasetReader(tmp_path).items())
    assert name in str(told.value) or "tfrecord" in str(told.value)


def test_messages_tell_the_row(tmp_path: Path) -> None:
    copy = img2dataset.parquet(tmp_path, shards=1, damage=0.5)
    reader = Img2DatasetReader(copy.folder, CAPTIONS)
    for row in reader.read(listed(reader)):
        if isinstance(row, RejectedRow) and row.refusal["reason"] == "failed-download":
            assert row.refusal["message"].startswith("img2dataset: failed_to_")


def test_the_settings_choose_records_or_samples() -> None:
    assert list(Img2Dataset().open("x")) == ["composition"]
    assert list(Img2Dataset(kind="caption").open("x")) == ["caption"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("value", "told"), [(6, "Rotated 90 CW"), (3, "Rotated 180"), (8, "Rotated 90 CCW"), (1, "")])
def test_an_image_that_was_laid_on_its_side_is_put_upright(tmp_path: Path, form: str, value: int, told: str) -> None:
    """img2dataset encodes anew without the EXIF orientation; its `exif` still tells."""
    picture = Image.new("L", (40, 30))
    picture.paste(255, (0, 0, 20, 15))
    out = io.BytesIO()
    picture.save(out, "JPEG")
    plain = out.getvalue()
    exif = Image.Exif()
    exif[0x0112] = value
    out = io.BytesIO()
    picture.save(out, "JPEG", exif=exif)
    original = out.getvalue()
    rows = img2dataset.downloads(0, 2, 0, 0)
    for row, data in zip(rows, (plain, original), strict=True):
        row.image = data
        row.meta |= {"exif": json.dumps({"Image Orientation": told, "EXIF ExifImageWidth": "40"}), "sha256": None}
    if form == "webdataset":
        img2dataset.write_tar(tmp_path / "00000.tar", rows)
        img2dataset.write_books(tmp_path, 0, rows)
    elif form == "files":
        img2dataset.write_files(tmp_path / "00000", rows)
        img2dataset.write_books(tmp_path, 0, rows)
    else:
        img2dataset.write_table(tmp_path, 0, rows)
    reader = Img2DatasetReader(tmp_path, CaptionedFiles(ImageRows(square=False)))
    upright = read_image(original)
    found = [row for row in reader.read(listed(reader)) if isinstance(row, Sample)]
    assert len(found) == 2
    for row in found:
        difference = np.asarray(row.image, dtype=int) - np.asarray(upright, dtype=int)
        assert np.abs(difference).max() < 12
