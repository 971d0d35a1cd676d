"""Folders that are kept the same on nodes and in a store."""

import time
from pathlib import Path

import pytest

from kosmosg.data.files.store_file import StoreError, store_patience
from kosmosg_platform.stores.folder_sync import FolderSync, kept_in_step
from kosmosg_platform.stores.link import follow_link, make_link
from kosmosg_platform.stores.location import local_copy
from tests.object_store import BUCKET, ObjectStore


@pytest.fixture
def nodes(object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The copies of one folder on two nodes."""
    copies = []
    for name in ("one", "two"):
        monkeypatch.setenv("KOSMOSG_CACHE", str(tmp_path / name))
        copies.append(local_copy(f"s3://{BUCKET}/{tmp_path.name}/run"))
    return copies[0], copies[1]


def claimed(folder: Path) -> FolderSync:
    sync = FolderSync.claim(folder, skip=("checkpoints",))
    assert sync is not None
    sync.once(store_is_right=True)
    return sync


def content(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".sync"))
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def test_what_one_node_writes_changes_and_removes_the_other_sees(nodes: tuple[Path, Path]) -> None:
    one, two = claimed(nodes[0]), claimed(nodes[1])
    (one.folder / "metrics.jsonl").write_text("1\n")
    (one.folder / "samples").mkdir()
    (one.folder / "samples/a.png").write_text("image")
    (one.folder / "checkpoints").mkdir()
    (one.folder / "checkpoints/x").write_text("large")
    (two.folder / "ended.json").write_text("{}")
    for sync in (one, two, one):
        sync.once()
    assert content(two.folder) == {"metrics.jsonl": "1\n", "samples/a.png": "image", "ended.json": "{}"}
    assert content(one.folder) == {**content(two.folder), "checkpoints/x": "large"}
    (one.folder / "metrics.jsonl").write_text("1\n2\n")
    (two.folder / "ended.json").unlink()
    for sync in (one, two, one):
        sync.once()
    assert content(two.folder) == {"metrics.jsonl": "1\n2\n", "samples/a.png": "image"}
    assert "ended.json" not in content(one.folder)


def test_a_node_that_begins_takes_the_store_and_keeps_what_it_could_not_send(nodes: tuple[Path, Path]) -> None:
    one, two = claimed(nodes[0]), claimed(nodes[1])
    for name in ("both", "mine"):
        (one.folder / name).write_text("first")
    one.once()
    two.once()
    one.end()
    (one.folder / "both").write_text("behind")
    (one.folder / "mine").write_text("unsent")
    (two.folder / "both").write_text("further")
    two.once()
    again = claimed(one.folder)
    assert content(again.folder) == {"both": "further", "mine": "unsent"}
    two.once()
    assert content(two.folder) == content(again.folder)


def test_one_process_of_a_node_does_it(nodes: tuple[Path, Path], tmp_path: Path) -> None:
    sync = claimed(nodes[0])
    assert FolderSync.claim(nodes[0]) is None
    sync.end()
    claimed(nodes[0]).end()
    assert FolderSync.claim(tmp_path / "on a disk") is None


def test_a_link_names_the_export_that_was_made_last(nodes: tuple[Path, Path], tmp_path: Path) -> None:
    for stage in (tmp_path / "disk", nodes[0]):
        assert follow_link(stage / "export") is None
        for key in ("abc", "def"):
            with kept_in_step(stage):
                (stage / key / "export").mkdir(parents=True)
                (stage / key / "export/config.json").write_text(key)
            make_link(stage / "export", stage / key / "export")
            found = follow_link(stage / "export")
            assert found is not None
            assert (found / "config.json").read_text() == key
    elsewhere = follow_link(nodes[1] / "export")
    assert elsewhere is not None
    assert (elsewhere / "config.json").read_text() == "def"


@pytest.mark.slow
def test_an_interrupted_job_does_not_wait_for_a_store_that_is_away(
    object_store: ObjectStore, nodes: tuple[Path, Path]
) -> None:
    def job() -> None:
        with store_patience(600), kept_in_step(nodes[0]):
            (nodes[0] / "result").write_text("done")
            object_store.kill()
            raise KeyboardInterrupt

    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            job()
    finally:
        object_store.start()
    assert time.monotonic() - began < 60
    assert (nodes[0] / "result").read_text() == "done"


@pytest.mark.slow
def test_a_store_that_was_never_there_is_told_at_once(
    nodes: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    elsewhere = local_copy("s3://nowhere/run?endpoint_override=127.0.0.1:9&scheme=http")
    with store_patience(600), pytest.raises(StoreError, match="did not answer"), kept_in_step(elsewhere):
        pytest.fail("there is no store")
