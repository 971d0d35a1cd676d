"""Folders of photos: near or far away, with names that nobody foresaw."""

import os
import pickle
from pathlib import Path

import pytest

from kosmosg.data.annotators.base import Sample
from kosmosg.data.files.source_files import SourceFiles, safe
from kosmosg.data.sources.image_folder import ImageFolderReader
from kosmosg.errors import DataError
from tests.kosmosg.data.sources.layouts.images import (
    as_remote,
    bad_images,
    encoded,
    good_images,
    listed,
    outcome,
    read_all,
)


def fill(folder: Path) -> dict[str, str]:
    """Photos of every kind in folders of every depth; what must become of each."""
    truth = {}
    for depth in ("", "cat/", "dog/old dogs/"):
        (folder / depth).mkdir(parents=True, exist_ok=True)
        for reason, files in (("", good_images(1)), ("unreadable", bad_images(1))):
            for name, data in files.items():
                (folder / f"{depth}{name}.JPG").write_bytes(data)
                truth[f"{depth}{name}.JPG"] = reason
        (folder / depth / "told.webp").write_bytes(encoded(2, form="WEBP"))
        (folder / depth / "told.txt").write_text("two\n dogs")
        truth[f"{depth}told.webp"] = ""
    return truth


def far(folder: Path) -> ImageFolderReader:
    reader = ImageFolderReader("s3://bucket")
    reader.files = as_remote(folder)
    return reader


def test_a_bucket_is_listed_and_read_like_a_folder(tmp_path: Path) -> None:
    truth = fill(tmp_path / "photos")
    near, remote = ImageFolderReader(tmp_path / "photos"), far(tmp_path / "photos")
    items = listed(remote)
    assert [item.key for item in items] == [item.key for item in listed(near)]
    assert [item.size for item in items] == [item.size for item in listed(near)]
    assert outcome(remote.read(items)) == read_all(near) == truth
    told = {row.id: row.hints for row in remote.read(items) if isinstance(row, Sample)}
    assert told["cat/told.webp"] == {"sidecar": "two dogs", "folder": "cat", "stem": "told", "root": "bucket"}


def test_a_changed_photo_has_another_stamp_near_and_far(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    fill(folder)
    for reader in (ImageFolderReader(folder), far(folder)):
        before = {item.key: item.stamp for item in reader.items()}
        (folder / "cat" / "told.txt").write_text(f"three dogs and {len(before)} {reader.files.is_local}")
        after = {item.key: item.stamp for item in reader.items()}
        assert {key for key in before if before[key] != after[key]} == {"cat/told.webp"}


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    for path in (".hidden.jpg", ".cache/1.jpg", "a/._1.jpg", "a/.git/2.jpg", "a/1.jpg", "a..b/2.jpg", "...jpg"):
        (tmp_path / "set" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / path).write_bytes(encoded(1))
    for reader in (ImageFolderReader(tmp_path / "set"), far(tmp_path / "set")):
        assert read_all(reader) == {"a/1.jpg": "", "a..b/2.jpg": ""}


@pytest.mark.parametrize(
    "name", ["with space.jpg", "ü.jpg", "#1?x=%20.jpg", "c:d.jpg", "-rf.jpg", "'quoted\".jpg", "~.jpg"]
)
def test_odd_names_are_names(tmp_path: Path, name: str) -> None:
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a" / name).write_bytes(encoded(1))
    assert read_all(ImageFolderReader(tmp_path / "set")) == {f"a/{name}": ""}
    assert read_all(far(tmp_path / "set")) == {f"a/{name}": ""}


@pytest.mark.parametrize("name", ["~.jpg", "c:d.jpg", "\\x.jpg"])
def test_names_that_are_refused_cost_themselves_only(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(encoded(1))
    (tmp_path / "good.jpg").write_bytes(encoded(2))
    assert read_all(ImageFolderReader(tmp_path)) == {"good.jpg": "", name: "data"}


def test_a_link_back_ends_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(encoded(1))
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")  # elsewhere, not back
    assert read_all(ImageFolderReader(tmp_path)) == {"a/1.jpg": "", "b/1.jpg": ""}


def test_a_name_that_is_not_utf8_costs_itself_only(tmp_path: Path) -> None:
    (tmp_path / "good.jpg").write_bytes(encoded(2))
    with open(os.fsencode(tmp_path) + b"/\xff\xfe.jpg", "wb") as file:
        file.write(encoded(1))
    found = read_all(ImageFolderReader(tmp_path))
    assert found.pop("good.jpg") == ""
    assert [reason for reason in found.values() if not reason] == []
    assert all(key.isprintable() for key in found)


@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "/etc/passwd", "\\x", "~/x", "a\\..\\..\\x", "c:\\x", "a/\0b", ".."]
)
def test_no_path_of_a_file_leads_out(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError, match="leads out of the source"):
        safe(path)
    with pytest.raises(DataError, match="leads out of the source"):
        SourceFiles(tmp_path).read(path)


def test_a_photo_that_is_gone_is_missing(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(encoded(1))
    (tmp_path / "2.jpg").write_bytes(encoded(2))
    reader = ImageFolderReader(tmp_path)
    items = listed(reader)
    (tmp_path / "1.jpg").unlink()
    assert outcome(reader.read(items)) == {"1.jpg": "missing-file", "2.jpg": ""}


def test_a_reader_travels_without_its_connection(tmp_path: Path) -> None:
    fill(tmp_path / "photos")
    assert b"SubTree" not in pickle.dumps(far(tmp_path / "photos"))
    reader = pickle.loads(pickle.dumps(ImageFolderReader(tmp_path / "photos")))  # noqa: S301 - our own
    assert read_all(reader) == read_all(ImageFolderReader(tmp_path / "photos"))
