"""A folder appears whole, and replaces nothing but a folder of its own kind."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kosmosg.checkpoint.publish import FolderLayout, check_replaceable, publish_folder
from kosmosg.errors import CheckpointError

LAYOUT = FolderLayout("a box", ("box.json", "part-[0-9]*.bin", "inner/*.bin"), ("box.json", "kind", "box"), ("guests",))


def fill(draft: Path) -> None:
    (draft / "box.json").write_text(json.dumps({"kind": "box"}))
    (draft / "part-1.bin").write_text("new")


def tree(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """An earlier box with more parts than the next one."""
    folder = tmp_path / "box"
    (folder / "inner").mkdir(parents=True)
    for name in ("part-1.bin", "part-2.bin", "inner/a.bin"):
        (folder / name).write_text("old")
    (folder / "box.json").write_text(json.dumps({"kind": "box", "size": 3}))
    return folder


@pytest.mark.parametrize(
    "prepare", [lambda folder: None, Path.mkdir, lambda folder: publish_folder(folder, LAYOUT, fill)]
)
def test_a_new_an_empty_and_an_own_folder_are_written(tmp_path: Path, prepare: Callable[[Path], Any]) -> None:
    folder = tmp_path / "box"
    prepare(folder)
    assert publish_folder(folder, LAYOUT, fill) == folder
    assert tree(tmp_path) == {"box/box.json": '{"kind": "box"}', "box/part-1.bin": "new"}
    assert folder.stat().st_mode & 0o777 == 0o755


def test_an_own_folder_is_replaced_whole_and_its_guests_stay(box: Path) -> None:
    (box / "guests" / "deep").mkdir(parents=True)
    (box / "guests" / "deep" / "notes.txt").write_text("of somebody else")
    publish_folder(box, LAYOUT, fill)
    assert set(tree(box)) == {"box.json", "part-1.bin", "guests/deep/notes.txt"}
    assert [path.name for path in box.parent.iterdir()] == ["box"]


@pytest.mark.parametrize(
    "name", ["notes.txt", ".gitignore", "part-x.bin", "inner/notes.txt", "inner/deep/a.bin", "b/c"]
)
def test_a_folder_with_one_more_file_is_refused_and_stays(box: Path, name: str) -> None:
    (box / name).parent.mkdir(exist_ok=True, parents=True)
    (box / name).write_text("mine")
    before = tree(box.parent)
    with pytest.raises(CheckpointError, match="is no part of a box; move it away, or name a folder"):
        publish_folder(box, LAYOUT, fill)
    assert tree(box.parent) == before


def test_an_empty_folder_of_the_users_counts_as_well(box: Path) -> None:
    (box / "plans").mkdir()
    with pytest.raises(CheckpointError, match="holds plans, which"):
        publish_folder(box, LAYOUT, fill)
    assert (box / "plans").is_dir()


@pytest.mark.parametrize("content", [None, "{", "[]", '{"kind": "bag"}', "{}"])
def test_a_folder_that_does_not_say_what_it_is_is_refused(box: Path, content: str | None) -> None:
    (box / "box.json").unlink()
    if content is not None:
        (box / "box.json").write_text(content)
    before = tree(box.parent)
    with pytest.raises(CheckpointError, match=r"box is not a box: its box\.json is missing or of something else"):
        publish_folder(box, LAYOUT, fill)
    assert tree(box.parent) == before


def test_a_file_and_a_link_are_refused(box: Path) -> None:
    file, link, lost = (box.parent / name for name in ("file", "link", "lost"))
    file.write_text("mine")
    link.symlink_to(box)
    lost.symlink_to(box.parent / "nowhere")
    for path, message in ((file, "file is a file"), (link, "link is a link to"), (lost, "lost is a link to")):
        with pytest.raises(CheckpointError, match=message):
            check_replaceable(path, LAYOUT)
        with pytest.raises(CheckpointError, match=message):
            publish_folder(path, LAYOUT, fill)
    assert (file.read_text(), len(tree(box))) == ("mine", 4)


def test_a_crash_while_filling_leaves_what_was_there(box: Path) -> None:
    before = tree(box.parent)

    def crash(draft: Path) -> None:
        fill(draft)
        raise KeyboardInterrupt

    for folder in (box, box.parent / "another"):
        with pytest.raises(KeyboardInterrupt):
            publish_folder(folder, LAYOUT, crash)
    assert tree(box.parent) == before
    assert [path.name for path in box.parent.iterdir()] == ["box"]


def test_a_crash_of_the_last_step_puts_the_earlier_folder_back(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, replace = tree(box.parent), os.replace

    def failing(source: Path, target: Path) -> None:
        if (Path(source) / "part-2.bin").exists():  # the earlier folder may move away and back; the draft may not come
            return replace(source, target)
        raise OSError("the disk is gone")

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="the disk is gone"):
        publish_folder(box, LAYOUT, fill)
    assert tree(box.parent) == before
    assert [path.name for path in box.parent.iterdir()] == ["box"]


def test_a_file_that_comes_while_filling_survives(box: Path) -> None:
    def slow(draft: Path) -> None:
        fill(draft)
        (box / "notes.txt").write_text("mine")

    with pytest.raises(CheckpointError, match=r"holds notes\.txt"):
        publish_folder(box, LAYOUT, slow)
    assert (box / "notes.txt").read_text() == "mine"


def test_the_folder_may_be_named_from_within(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(box / "inner")
    publish_folder(Path(".."), LAYOUT, fill)
    assert set(tree(box)) == {"box.json", "part-1.bin"}
