"""Open Images: every line of the list comes out once, upright, with its labels and its origin."""

import io
import json
import random
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from kosmosg.data.annotators.base import Sample
from kosmosg.data.composition import provenance
from kosmosg.data.files.csv_blocks import csv_blocks
from kosmosg.data.sources.open_images import OpenImages, OpenImagesReader, quarter_turns
from kosmosg.data.sources.open_images_index import SeenIds, parse_ids
from kosmosg.errors import DataError
from tests.kosmosg.data.sources.layouts import open_images
from tests.kosmosg.data.sources.layouts.images import as_remote, encoded, listed, outcome, read_all, with_orientation
from tests.kosmosg.data.sources.layouts.open_images import BY, HEADER, cells, image_id, quoted


def samples(reader: OpenImagesReader) -> dict[str, Sample]:
    return {row.id: row for row in reader.read(listed(reader)) if isinstance(row, Sample)}


@pytest.mark.parametrize("form", ["split", "flat", "tar"])
@pytest.mark.parametrize("far", [False, True])
def test_every_line_adds_up(tmp_path: Path, form: str, far: bool) -> None:
    copy = open_images.write(tmp_path / "set", header=not far, form=form)
    reader = OpenImagesReader(as_remote(copy.folder) if far else copy.folder)
    items = listed(reader)
    random.Random(0).shuffle(items)
    assert outcome(reader.read(items)) == copy.truth
    assert set(copy.truth.values()) == {"", "missing-file", "unreadable", "malformed", "duplicate"}


def test_labels_and_origin_are_hints(tmp_path: Path) -> None:
    copy = open_images.write(tmp_path)
    for key, sample in samples(OpenImagesReader(tmp_path)).items():
        number = next(number for number in range(120) if key.endswith(image_id(number)))
        assert sample.hints["labels"] == copy.labels[key]
        assert sample.hints.get("title", "") == copy.titles[key]
        assert sample.hints["author"] == f"Author {number}"
        assert json.loads(provenance(sample.hints) or "{}").keys() == {"url", "licence", "author"}
    none = samples(OpenImagesReader(tmp_path, OpenImages(labels="none")))
    assert not any("labels" in sample.hints for sample in none.values())


def test_image_level_labels_join_in(tmp_path: Path) -> None:
    copy = open_images.write(tmp_path, count=3, damage=0)
    key = sorted(copy.truth)[0]
    name = key.partition("/")[2]
    lines = ["ImageID,Source,LabelName,Confidence", f"{name},machine,/m/0cat,0.9", f"{name},machine,/m/0cup,0.1"]
    (tmp_path / "train-annotations-human-imagelabels.csv").write_text("\n".join(lines))
    (tmp_path / "oidv7-class-descriptions.csv").write_text("LabelName,DisplayName\n/m/0cat,Cat\n/m/0cup,Cup\n")
    both = samples(OpenImagesReader(tmp_path))[key].hints["labels"]
    assert set(both.split(", ")) == {"Cat", *copy.labels[key].split(", ")} - {""}
    assert samples(OpenImagesReader(tmp_path, OpenImages(labels="boxes")))[key].hints["labels"] == copy.labels[key]


def corner(image: Image.Image) -> tuple[bool, bool, bool, bool]:
    """Which corner is white: upper left, upper right, lower right, lower left."""
    pixels = np.asarray(image.convert("L"))
    places = [(2, 2), (2, -3), (-3, -3), (-3, 2)]
    return tuple(bool(pixels[place] > 128) for place in places)  # type: ignore[return-value]


@pytest.mark.parametrize(("degrees", "where"), [(0, 0), (90, 3), (180, 2), (270, 1)])
def test_the_rotation_is_counterclockwise_and_done_once(tmp_path: Path, degrees: int, where: int) -> None:
    picture = Image.new("L", (40, 40))
    picture.paste(255, (0, 0, 20, 20))  # the upper left is white
    exif = Image.Exif()
    exif[0x0112] = {0: 1, 90: 8, 180: 3, 270: 6}[degrees]
    (tmp_path / "train").mkdir()
    picture.save(tmp_path / "train" / f"{image_id(1)}.jpg")  # of the mirror
    picture.save(tmp_path / "train" / f"{image_id(2)}.jpg", exif=exif)  # an original
    rows = [cells(number, "train", f"{degrees}.0") for number in (1, 2)]
    (tmp_path / "list.csv").write_text(HEADER + "\n" + "".join(map(quoted, rows)), encoding="utf-8")
    for sample in samples(OpenImagesReader(tmp_path)).values():
        assert corner(sample.image).index(True) == where
        assert sum(corner(sample.image)) == 1


@pytest.mark.parametrize("text", ["", "nan", "0.0", "0", "90.0", "360", "-90.0", "x", "inf", "1e400", "90.5"])
def test_what_is_no_rotation(text: str) -> None:
    good = {"": 0, "nan": 0, "0.0": 0, "0": 0, "90.0": 90}
    assert quarter_turns(text) == good.get(text)


def test_what_is_selected(tmp_path: Path) -> None:
    copy = open_images.write(tmp_path, damage=0)
    for split in ("train", "validation", "test"):
        found = read_all(OpenImagesReader(tmp_path, OpenImages(split=split)))
        assert found == {key: "" for key in copy.truth if key.startswith(split)}
    by = samples(OpenImagesReader(tmp_path, OpenImages(licences=("by/2.0",))))
    assert {sample.hints["licence"] for sample in by.values()} == {BY}
    assert 0 < len(by) < len(copy.truth)
    damaged = open_images.write(tmp_path / "damaged", damage=0.5)
    found = read_all(OpenImagesReader(damaged.folder, OpenImages(only_present=True)))
    assert found == {key: reason for key, reason in damaged.truth.items() if reason != "missing-file"}


def test_two_lists_of_one_image_are_one(tmp_path: Path) -> None:
    copy = open_images.write(tmp_path, damage=0)
    (tmp_path / "train-images-boxable.csv").write_bytes((tmp_path / "list.csv").read_bytes())
    assert read_all(OpenImagesReader(tmp_path)) == copy.truth
    one = OpenImagesReader(tmp_path, OpenImages(image_list="train-images-boxable.csv"))
    assert read_all(one) == copy.truth
    with pytest.raises(DataError, match=r"image_list: other\.csv"):
        next(OpenImagesReader(tmp_path, OpenImages(image_list="other.csv")).items())


@pytest.mark.parametrize("form", ["ids", "downloader", "no rotation"])
def test_other_lists(tmp_path: Path, form: str) -> None:
    copy = open_images.write(tmp_path, count=20, damage=0)
    rows = [line.split(",")[:2] for line in (tmp_path / "list.csv").read_text().splitlines()[1:]]
    (tmp_path / "list.csv").unlink()
    if form == "ids":
        (tmp_path / "train.txt").write_text("\n".join(name for name, _ in rows))
    elif form == "downloader":
        (tmp_path / "list.txt").write_text("\n".join(f"{split}/{name}" for name, split in rows) + "\n")
    else:
        text = "ImageID,Subset,OriginalURL\n" + "".join(f"{name},{split},x\n" for name, split in rows)
        (tmp_path / "train-images-boxable.csv").write_text(text)
    found = read_all(OpenImagesReader(tmp_path))
    expected = {f"train/{name}": "" for name, _ in rows} if form == "ids" else copy.truth
    assert found == expected


def test_damage_in_a_list_costs_its_line(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    lines = [HEADER]
    for number in range(40):
        (tmp_path / "train" / f"{image_id(number)}.jpg").write_bytes(encoded(number))
        lines.append(quoted(cells(number, "train", "0.0")).rstrip("\n"))
    lines[3] = lines[3].replace("Author 2", '"Author 2')  # line 4: a quote that is not closed
    lines[5] = "no id" + lines[5][16:]
    lines[7] = lines[7].replace("Author 6", "Author\xff 6")
    lines[9] = lines[9].replace(",train,", ",../train,")
    lines[11] = ""
    data = "\r\n".join(lines).encode("latin-1", "replace")
    (tmp_path / "list.csv").write_bytes(data[: data.rfind(b",")])
    found = read_all(OpenImagesReader(tmp_path))
    bad = {key: reason for key, reason in found.items() if reason}
    assert bad == dict.fromkeys(("list.csv:4", "list.csv:6", "list.csv:10", "list.csv:41"), "malformed")
    assert len(found) == 39


def test_a_torn_tar_is_told_and_its_images_are_missing(tmp_path: Path) -> None:
    copy = open_images.write(tmp_path, damage=0, form="tar")
    path = tmp_path / "train_4.tar"
    with tarfile.open(path) as tar:
        inside = [info for info in tar if info.isfile()]
    path.write_bytes(path.read_bytes()[: inside[-1].offset_data + 10])
    lost = inside[-1].name.partition("/")[2].removesuffix(".jpg")
    found = read_all(OpenImagesReader(tmp_path))
    bad = {key: reason for key, reason in found.items() if reason}
    key = next(key for key in copy.truth if key.endswith(lost))
    assert bad == {"train_4.tar": "torn", key: "missing-file"}


def test_another_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / f"{image_id(1)}.jpg").write_bytes(encoded(1))
    (tmp_path / "captions.csv").write_text("caption,url\na dog,x\n")
    with pytest.raises(DataError, match=r"expected an image list .* found captions\.csv and 1 images"):
        next(OpenImagesReader(tmp_path).items())
    (tmp_path / "train" / f"{image_id(1)}.jpg").rename(tmp_path / "train" / "dog.jpg")
    (tmp_path / "list.csv").write_text(HEADER + "\n" + quoted(cells(1, "train", "")), encoding="utf-8")
    (tmp_path / "train_0.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"has none whose name is an id.*gunzip train_0\.tar\.gz"):
        next(OpenImagesReader(tmp_path).items())
    boxes = open_images.write(tmp_path / "boxes", count=2, damage=0)
    (boxes.folder / "annotations" / "class-descriptions-boxable.csv").unlink()
    with pytest.raises(DataError, match=r"class-descriptions-boxable\.csv.*labels=none"):
        next(OpenImagesReader(boxes.folder).items())


def test_ids_are_numbers() -> None:
    texts = [b"4fa8054781a4c382", b"b37f763ae67d0888", b"short", b"4fa8054781a4c38g", b"0" * 16, b""]
    ids, good = parse_ids(pa.array(texts, pa.binary()))
    assert good.tolist() == [True, True, False, False, True, False]
    assert [f"{one:016x}".encode() for one in ids[good].tolist()] == [texts[0], texts[1], texts[4]]
    ids, good = parse_ids(pa.array(texts, pa.binary())[1:4])
    assert good.tolist() == [True, False, False]
    assert f"{ids[0]:016x}" == "b37f763ae67d0888"


def test_seen_ids_are_a_set() -> None:
    chance = np.random.default_rng(0)
    seen, known = SeenIds(), set()
    for _ in range(50):
        batch = chance.integers(0, 2000, 60).astype(np.uint64)
        expected = []
        for one in batch.tolist():
            expected.append(one in known)
            known.add(one)
        assert seen.add(batch).tolist() == expected
    assert len(seen.runs) < 12


@pytest.mark.parametrize("block", [30, 64, 500, 1 << 20])
def test_blocks_do_not_matter(block: int) -> None:
    chance = random.Random(block)
    rows = [[str(number), chance.choice(["a", "b,c", 'd "e"', "ü" * 9]), "x"] for number in range(200)]
    data = ("i,t,x\n" + "".join(map(quoted, rows))).encode()
    found = []
    for part in csv_blocks(io.BytesIO(data), ("i", "t", "x"), ("t", "i"), 1, block_bytes=block):
        assert not part.broken
        assert [line - 2 for line in part.lines] == [int(one) for one in part.columns["i"].to_pylist()]
        found += [one.decode() for one in part.columns["t"].to_pylist()]
    assert found == [row[1] for row in rows]


def test_an_original_with_exif_is_not_turned_twice(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / f"{image_id(1)}.jpg").write_bytes(with_orientation(1, 6))
    (tmp_path / "list.csv").write_text(HEADER + "\n" + quoted(cells(1, "train", "270.0")), encoding="utf-8")
    (sample,) = samples(OpenImagesReader(tmp_path, OpenImages(square=False))).values()
    assert sample.image.size == (30, 40)
