"""WebDataset tars: every sample and every failed row comes out once, and what is damaged costs itself only."""

import gzip
import hashlib
import io
import json
import pickle
import random
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kosmosg.data.annotators.base import Sample
from kosmosg.data.files.tar_index import TornTar, members
from kosmosg.data.image_bytes import decode_image
from kosmosg.data.records import table
from kosmosg.data.sources.base import ReadyRow, RejectedRow
from kosmosg.data.sources.captioned_files import CaptionedFiles
from kosmosg.data.sources.image_rows import ImageRows
from kosmosg.data.sources.webdataset import WebDataset, WebDatasetReader
from kosmosg.errors import DataError
from kosmosg.prompt import PromptLimits
from tests.kosmosg.data.sources.layouts import img2dataset
from tests.kosmosg.data.sources.layouts.images import as_remote, bomb, encoded, listed, outcome, read_all
from tests.kosmosg.data.sources.layouts.img2dataset import add

CAPTIONS = CaptionedFiles(ImageRows("caption"))


def tar_of(path: Path, *files: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            add(tar, name, data)
    return path


def three(key: str, seed: int = 0, caption: str = "a dog") -> tuple[tuple[str, bytes], ...]:
    meta = json.dumps({"url": f"https://example.org/{key}", "LICENSE": "CC BY 2.0"})
    return (f"{key}.jpg", encoded(seed)), (f"{key}.txt", caption.encode()), (f"{key}.json", meta.encode())


@pytest.mark.parametrize("seed", range(3))
def test_what_img2dataset_leaves_adds_up(tmp_path: Path, seed: int) -> None:
    copy = img2dataset.webdataset(tmp_path / "set", seed=seed)
    reader = WebDatasetReader(copy.folder, CAPTIONS)
    items = listed(reader)
    assert len(items) == len(copy.truth) == 120
    assert read_all(reader, items) == copy.truth
    random.Random(seed).shuffle(items)
    assert outcome(pickle.loads(pickle.dumps(reader)).read(items)) == copy.truth  # noqa: S301 - our own
    # An annotator may know a caption where the source does not.
    silent = {key: reason for key, reason in copy.truth.items() if reason != "no-caption"}
    found = read_all(WebDatasetReader(copy.folder))
    assert found == {key: silent.get(key, "") for key in copy.truth}


def test_a_bucket_gives_the_same_rows_as_a_folder(tmp_path: Path) -> None:
    copy = img2dataset.webdataset(tmp_path / "set", shards=1)
    (near, far) = (WebDatasetReader(source, CAPTIONS) for source in (copy.folder, as_remote(copy.folder)))
    assert [item._replace(stamp="") for item in near.items()] == [item._replace(stamp="") for item in far.items()]
    assert read_all(far) == copy.truth


def test_checksums_are_compared_only_where_images_were_kept(tmp_path: Path) -> None:
    copy = img2dataset.webdataset(tmp_path / "set", shards=1, count=200, damage=0.3, reencoded=True)
    assert "wrong-checksum" not in read_all(WebDatasetReader(copy.folder, CAPTIONS)).values()
    assert read_all(WebDatasetReader(copy.folder, CAPTIONS)) == copy.truth
    strict = CaptionedFiles(ImageRows("caption"), checksums="compare")
    good = [key for key, reason in read_all(WebDatasetReader(copy.folder, strict)).items() if not reason]
    assert good == []
    kept = img2dataset.webdataset(tmp_path / "kept", shards=1, count=200, damage=0.3)
    lax = CaptionedFiles(ImageRows("caption"), checksums="ignore")
    assert "wrong-checksum" in kept.truth.values()
    assert read_all(WebDatasetReader(kept.folder, lax)) == {
        key: reason.replace("wrong-checksum", "") for key, reason in kept.truth.items()
    }


def test_failed_rows_tell_img2datasets_own_words(tmp_path: Path) -> None:
    copy = img2dataset.webdataset(tmp_path, shards=1, damage=0.5)
    reader = WebDatasetReader(copy.folder)
    failed = [row.refusal for row in reader.read(listed(reader)) if isinstance(row, RejectedRow)]
    told = {row["message"] for row in failed if row["reason"] == "failed-download"}
    assert told == {
        "img2dataset: failed_to_download: HTTP Error 404: Not Found",
        "img2dataset: failed_to_resize: Image decoding error",
    }


def test_an_unfinished_shard_is_refused_by_name(tmp_path: Path) -> None:
    copy = img2dataset.webdataset(tmp_path)
    (tmp_path / "00001_stats.json").unlink()
    found = read_all(WebDatasetReader(copy.folder, CAPTIONS))
    assert found.pop("00001.tar") == "unfinished"
    assert found == {key: reason for key, reason in copy.truth.items() if key.startswith("00000")}
    (tmp_path / "00000_stats.json").unlink()  # nobody kept books here
    assert read_all(WebDatasetReader(copy.folder, CAPTIONS)) == copy.truth


@pytest.mark.parametrize("share", [0.0, 0.1, 0.37, 0.5, 0.93])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_torn_tar_loses_only_what_is_behind_the_tear(tmp_path: Path, share: float, compressed: bool) -> None:
    copy = img2dataset.webdataset(tmp_path, shards=1)
    path = tmp_path / "00000.tar"
    data = path.read_bytes()
    whole = {member.name for member in members(io.BytesIO(data), len(data)) if member.end <= share * len(data)}
    data = data[: int(share * len(data))]
    name = "00000.tar"
    if compressed:
        path.unlink()
        name, data = "00000.tar.gz", gzip.compress(data)
    (tmp_path / name).write_bytes(data)
    found = read_all(WebDatasetReader(copy.folder, CAPTIONS))
    tears = [key for key, reason in found.items() if reason == "torn" and "@" in key]
    assert len(tears) == 1, "the tear itself is told"
    del found[tears[0]]
    # Of every other row the table knows, so that all are accounted for.
    expected = {}
    for key, reason in copy.truth.items():
        short = key.removeprefix("00000.tar/")
        complete = all(f"{short}.{suffix}" in whole for suffix in ("jpg", "txt", "json"))
        expected[f"{name}/{short}"] = reason if complete or reason == "failed-download" else "torn"
    if compressed:  # nothing is known of checksums before it is read
        expected = {key: reason.replace("wrong-checksum", "") for key, reason in expected.items()}
    assert found == expected


def test_a_hole_in_a_tar_is_told(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", *(part for i in range(9) for part in three(f"{i}", i)))
    data = bytearray(path.read_bytes())
    start = next(member.start for member in members(io.BytesIO(data), len(data)) if member.name == "4.jpg")
    path.write_bytes(data[:start] + bytes(2048) + data[start + 2048 :])
    assert read_all(WebDatasetReader(path)) == {**{f"a.tar/{i}": "" for i in range(4)}, f"a.tar@{start}": "torn"}
    path.write_bytes(data[:start] + b"\xff" * 2048 + data[start + 2048 :])
    assert read_all(WebDatasetReader(path)) == {**{f"a.tar/{i}": "" for i in range(4)}, f"a.tar@{start}": "torn"}


def test_no_member_escapes_and_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(encoded(1))
    (tmp_path / "set").mkdir()
    with tarfile.open(tmp_path / "set" / "a.tar", "w") as tar:
        for key in ("../secret", "/absolute", "a/../../b", "fine", "x/y.z", "./dot", ".hidden", "._fine"):
            for name, data in three(key):
                add(tar, name, data)
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "../secret.jpg"
        tar.addfile(link)
        add(tar, "README", b"no sample")
        add(tar, "alone.txt", b"a caption without image")
        add(tar, "evil.pkl", pickle.dumps(3))
        add(tar, b"\xff\xfe.jpg".decode("utf-8", "surrogateescape"), encoded(2))
    found = read_all(WebDatasetReader(tmp_path / "set"))
    named = {key: reason for key, reason in found.items() if "@" not in key}
    assert named == {
        "a.tar/fine": "",
        "a.tar/x/y": "",  # y.z.jpg, where the dot was meant to be part of the name
        "a.tar/dot": "",
        "a.tar/alone": "missing-file",
        "a.tar/evil": "missing-file",
    }
    reasons = sorted(reason for key, reason in found.items() if "@" in key)
    assert reasons == ["encoding", "escapes", "escapes", "escapes", "malformed"]


def test_a_key_counts_once(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar", *three("1"), *three("1", 1), *three("2", 2), *three("3", 3), *three("2", 4))
    tar_of(tmp_path / "b.tar", *three("1"))
    found = read_all(WebDatasetReader(tmp_path))
    assert {key: reason for key, reason in found.items() if not reason} == {
        "a.tar/1": "",
        "a.tar/2": "",
        "a.tar/3": "",
        "b.tar/1": "",
    }
    assert [reason for reason in found.values() if reason] == ["duplicate", "duplicate"]


def test_hints_and_captions(tmp_path: Path) -> None:
    meta = {
        "caption": "from json",
        "top_caption": "the best",
        "url": "https://e.org/1",
        "LICENSE": "CC BY",
        "author": "Ann",
    }
    tar_of(
        tmp_path / "a.tar",
        ("1.jpg", encoded(1)),
        ("1.txt", b" from\n the text "),
        ("1.json", json.dumps(meta).encode()),
        ("2.PNG", encoded(2, form="PNG")),
        ("2.json", json.dumps(meta).encode()),
        ("3.jpg", encoded(3)),
        ("3.txt", b"\xff\xfe"),
        ("4.jpg", encoded(4)),
        ("4.json", b"{broken"),
        ("5.webp", encoded(5, form="WEBP")),
    )
    reader = WebDatasetReader(tmp_path)
    rows = {row.id: row for row in reader.read(listed(reader)) if isinstance(row, Sample)}
    hints = rows["a.tar/1"].hints
    assert hints == {"caption": "from the text", "url": "https://e.org/1", "licence": "CC BY", "author": "Ann"}
    assert rows["a.tar/1"].sha256 == hashlib.sha256(encoded(1)).hexdigest()
    assert rows["a.tar/1"].image.size == (30, 30)
    assert rows["a.tar/2"].hints["caption"] == "from json"
    assert rows["a.tar/5"].hints["caption"] == ""
    assert read_all(reader) == {
        "a.tar/1": "",
        "a.tar/2": "",
        "a.tar/3": "encoding",
        "a.tar/4": "malformed",
        "a.tar/5": "",
    }
    best = WebDatasetReader(tmp_path, CaptionedFiles(ImageRows("caption"), caption="top_caption"))
    texts = [row.record["text"] for row in best.read(listed(best)) if isinstance(row, ReadyRow)]
    assert texts == ["the best", "the best"]


def test_caption_records_need_no_second_look(tmp_path: Path) -> None:
    """What is kept as it is opens the same in a reader that knows neither EXIF nor transparency."""
    copy = img2dataset.webdataset(tmp_path, shards=1, damage=0)
    reader = WebDatasetReader(copy.folder, CAPTIONS)
    records = [row.record for row in reader.read(listed(reader)) if isinstance(row, ReadyRow)]
    assert table("caption", records).num_rows == 60
    assert all(decode_image(row["image"]).size == (row["width"], row["height"]) for row in records)


def test_a_bomb_and_a_large_file_are_never_decoded(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar", ("1.png", bomb()), ("2.jpg", bytes(300_000)), *three("3"))
    limits = PromptLimits(encoded_bytes=200_000)
    found = read_all(WebDatasetReader(tmp_path, CaptionedFiles(ImageRows(limits=limits))))
    assert found == {"a.tar/1": "unreadable", "a.tar/2": "unreadable", "a.tar/3": ""}
    (tmp_path / "a.tar").unlink()
    header = tarfile.TarInfo("1.jpg")
    header.size = 1 << 40  # so says the header; behind it zeros without end
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(header.tobuf() + bytes(20_000_000), 1))
    assert read_all(WebDatasetReader(tmp_path)) == {"b.tar.gz@0": "torn"}


def test_a_table_that_cannot_be_read_costs_one_row(tmp_path: Path) -> None:
    copy = img2dataset.webdataset(tmp_path, shards=2, damage=0)
    (tmp_path / "00000.parquet").write_bytes(b"PAR1 nothing")
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "00001.parquet")
    found = read_all(WebDatasetReader(copy.folder, CAPTIONS))
    assert found.pop("00000.parquet") == "unreadable"
    assert found.pop("00001.parquet") == "malformed"
    assert found == copy.truth


def test_another_layout_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(encoded(1))
    with pytest.raises(DataError, match=r"expected WebDataset tars .* found none"):
        next(WebDatasetReader(tmp_path).items())
    img2dataset.parquet(tmp_path, shards=1, count=3)
    with pytest.raises(DataError, match=r"found 1 Parquet files, the first 00000\.parquet"):
        next(WebDatasetReader(tmp_path).items())


def test_the_headers_of_every_kind_of_tar(tmp_path: Path) -> None:
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        names = ["a.jpg", f"{'d' * 90}/{'e' * 60}.jpg", "ü.txt"]
        names += [] if form == tarfile.USTAR_FORMAT else [f"{'f' * 300}.json"]
        with tarfile.open(fileobj=out, mode="w", format=form) as tar:
            for index, name in enumerate(names):
                add(tar, name, bytes(700 * index))
        data = out.getvalue()
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            expected = [(info.name, info.offset_data, info.size) for info in tar]
        assert [(one.name, one.data, one.size) for one in members(io.BytesIO(data), len(data))] == expected
        for cut in range(0, expected[-1][1] + expected[-1][2], 101):
            whole = []
            with pytest.raises(TornTar):
                whole.extend(members(io.BytesIO(data[:cut]), cut))


def test_the_settings_choose_records_or_samples() -> None:
    assert list(WebDataset().open("x")) == ["composition"]
    assert list(WebDataset(kind="caption").open("x")) == ["caption"]
    assert WebDataset().steps[0] == "told"
    assert WebDataset(kind="caption").steps == ()
