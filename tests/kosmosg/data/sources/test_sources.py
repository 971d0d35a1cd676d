"""Readers: every source row comes out once, as a sample, a record or a named refusal; only the source decides how it is
split."""

from pathlib import Path

import pytest
from PIL import Image

from kosmosg.data.annotators.base import Sample
from kosmosg.data.records import table
from kosmosg.data.sources.base import ReadyRow, RejectedRow, SourceRow, limited
from kosmosg.data.sources.image_folder import ImageFolderReader
from kosmosg.errors import DataError
from kosmosg.prompt import PromptLimits
from kosmosg.toyworld.scene import Scene
from kosmosg.toyworld.source import EditReader, SceneReader


def rows(reader: ImageFolderReader | SceneReader | EditReader, limit: int | None = None) -> list[SourceRow]:
    return list(reader.read(list(limited(reader.items(), limit))))


def photo(path: Path, size: tuple[int, int] = (60, 40), color: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def test_photos_good_bad_and_told(tmp_path: Path) -> None:
    photo(tmp_path / "cat" / "1.jpg")
    (tmp_path / "cat" / "1.txt").write_text("my cat\n")
    photo(tmp_path / "dog" / "2.png", (30, 30))
    (tmp_path / "dog" / "3.jpg").write_bytes(photo(tmp_path / "x.jpg").read_bytes()[:200])
    (tmp_path / "x.jpg").unlink()
    (tmp_path / "dog" / "4.jpg").write_bytes(b"")
    (tmp_path / "dog" / "5.jpg").write_text("not an image")
    (tmp_path / "dog" / "6.png").write_bytes((tmp_path / "dog" / "2.png").read_bytes())
    (tmp_path / "dog" / "6.txt").write_bytes(b"\xff\xfe\xfa")
    (tmp_path / "readme.md").write_text("no photo")
    found = {row.id if isinstance(row, Sample) else row.refusal["id"]: row for row in rows(ImageFolderReader(tmp_path))}
    assert sorted(found) == ["cat/1.jpg", "dog/2.png", "dog/3.jpg", "dog/4.jpg", "dog/5.jpg", "dog/6.png"]
    cat, dog = found["cat/1.jpg"], found["dog/2.png"]
    assert isinstance(cat, Sample)
    assert isinstance(dog, Sample)
    assert cat.image.size == (40, 40)  # the middle square
    assert cat.hints["sidecar"] == "my cat"
    assert dog.encoded == (tmp_path / "dog" / "2.png").read_bytes()  # square and small: untouched
    assert len(cat.sha256) == 64
    reasons = {name: row.refusal["reason"] for name, row in found.items() if isinstance(row, RejectedRow)}
    assert reasons == {
        "dog/3.jpg": "unreadable",
        "dog/4.jpg": "unreadable",
        "dog/5.jpg": "unreadable",
        "dog/6.png": "data",
    }


def test_a_photo_beyond_the_limits_is_never_decoded(tmp_path: Path) -> None:
    photo(tmp_path / "cat" / "1.png", (300, 300))
    (row,) = rows(ImageFolderReader(tmp_path, limits=PromptLimits(pixels=10_000)))
    assert isinstance(row, RejectedRow)
    assert "300x300" in row.refusal["message"]
    (row,) = rows(ImageFolderReader(tmp_path, limits=PromptLimits(encoded_bytes=100)))
    assert isinstance(row, RejectedRow)
    assert "limit is 100" in row.refusal["message"]


def test_limit_takes_the_first_photos(tmp_path: Path) -> None:
    for name in "abcd":
        photo(tmp_path / name / "1.png", (8, 8))
    found = rows(ImageFolderReader(tmp_path), limit=2)
    assert sorted(row.id for row in found if isinstance(row, Sample)) == ["a/1.png", "b/1.png"]


def test_a_missing_or_empty_source_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file or folder"):
        next(ImageFolderReader(tmp_path / "absent").items())
    with pytest.raises(DataError, match="no photos under"):
        next(ImageFolderReader(tmp_path).items())


def test_scenes_are_numbered_and_never_held_out() -> None:
    few, many = rows(SceneReader(20, seed=1, shard_rows=6)), rows(SceneReader(600, seed=1, shard_rows=500))
    assert [row.id for row in few if isinstance(row, Sample)] == [f"world-1-{i:06d}" for i in range(20)]
    for one, other in zip(few, many, strict=False):
        assert isinstance(one, Sample)
        assert isinstance(other, Sample)
        assert (one.hints, one.encoded) == (other.hints, other.encoded)
    scenes = [Scene.from_json(row.hints["scene"]) for row in many if isinstance(row, Sample)]
    assert not any(entity.held_out for scene in scenes for entity in scene.entities)
    assert {len(scene.entities) for scene in scenes} == {1, 2, 3}


def test_edits_are_records() -> None:
    found = rows(EditReader(12, seed=1, shard_rows=5))
    records = [row.record for row in found if isinstance(row, ReadyRow)]
    assert table("edit", records).num_rows == 12
    assert all(record["before"] != record["after"] for record in records)
    assert len(rows(EditReader(12), limit=3)) == 3
    assert EditReader(12, kinds=("time",)).describe() != EditReader(12).describe(), "another dataset, built anew"
