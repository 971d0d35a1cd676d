"""A folder is a checkpoint only when all of it is there, and what cannot be read is never deleted."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from kosmosg.errors import CheckpointError
from kosmosg_platform.training.checkpoints import (
    State,
    TrainingProgress,
    assign,
    clean,
    load_weights,
    newest,
    read_progress,
    survey,
    write_manifest,
    write_shard,
)


def write(folder: Path, step: int, key: str = "k", workers: int = 2) -> Path:
    files = [write_shard(folder, rank, {f"param.p{rank}": torch.full((3,), float(step))}) for rank in range(workers)]
    write_manifest(folder, TrainingProgress(key=key, step=step, optimizer_steps=step), files)
    return folder


def as_version_1(folder: Path) -> Path:
    """The folder as releases before content digests wrote it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    files = {name: file["bytes"] for name, file in manifest["files"].items()}
    (folder / "manifest.json").write_text(json.dumps({"version": 1, "progress": manifest["progress"], "files": files}))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def found(folder: Path) -> Path | None:
    return newest(folder, "k", lambda text: None).newest


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    for folder in (write(tmp_path / "a" / "s", 7, workers=3), as_version_1(write(tmp_path / "b" / "s", 7, workers=3))):
        state = State(folder)
        assert state.progress.step == read_progress(folder, verify=True).step == 7
        assert sorted(state) == ["param.p0", "param.p1", "param.p2"]
        assert state["param.p2"].tolist() == [7.0, 7.0, 7.0]
        assert "ema.p2" not in state


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("intact") / "attempt" / "step-6", 6)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_byte_flips_the_checkpoint_is_passed_over_or_the_same_and_never_deleted(
    data: st.DataObject, intact: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    older = write(run / "attempt" / "step-3", 3)
    damaged = Path(shutil.copytree(intact, run / "attempt" / "step-6"))
    name = data.draw(st.sampled_from(sorted(path.name for path in damaged.iterdir())))
    content = bytearray((damaged / name).read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    (damaged / name).write_bytes(content)
    before, told = contents(damaged), []
    chosen = newest(run, "k", told.append)
    if chosen.newest == damaged:  # white space of the manifest: nothing that is read has changed
        assert name == "manifest.json"
        assert not told
        assert State(damaged).progress == State(intact).progress
        assert {name: value.tolist() for name, value in State(damaged).items()} == {
            name: value.tolist() for name, value in State(intact).items()
        }
        return
    assert chosen.newest == older
    assert len(told) == 1
    assert str(damaged) in told[0]
    assert "step 3" in told[0]
    clean(run, chosen)
    assert contents(damaged) == before
    newer = write(run / "attempt" / "step-9", 9)
    clean(run, survey(run, "k"))
    assert contents(damaged) == before
    assert not older.exists()
    shutil.rmtree(newer)
    with pytest.raises(CheckpointError, match=r"no checkpoint of this run can be read: .*train\.restart=true"):
        newest(run, "k", told.append)
    clean(run, survey(run, "k"))
    assert contents(damaged) == before


def lose_a_shard(folder: Path) -> None:
    (folder / "state-00000.safetensors").unlink()


def cut_a_shard(folder: Path) -> None:
    shard = folder / "state-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4])


def lose_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def change_the_version(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "version": 7}))


def cut_the_manifest(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text[: len(text) // 2])


DAMAGE = {
    lose_a_shard: r"state-00000.safetensors is missing",
    cut_a_shard: r"state-00001.safetensors has \d+ bytes, its manifest says",
    lose_the_manifest: "is not complete: it has no manifest.json",
    change_the_version: "has checkpoint version 7, this release reads 1 and 2",
    cut_the_manifest: "is not readable as JSON",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("version", [1, 2])
def test_what_cannot_be_read_is_kept_with_its_reason(version: int, damage: object, tmp_path: Path) -> None:
    assert callable(damage)
    folder = write(tmp_path / "attempt-1" / "step-6", 6)
    if version == 1:
        as_version_1(folder)
    damage(folder)
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=DAMAGE[damage]):
        read_progress(folder)
    with pytest.raises(CheckpointError, match=rf"{DAMAGE[damage]}.*Nothing was deleted"):
        found(tmp_path)
    older = write(tmp_path / "attempt-2" / "step-4", 4)
    oldest = write(tmp_path / "attempt-2" / "step-2", 2)
    told: list[str] = []
    chosen = newest(tmp_path, "k", told.append)
    assert chosen.newest == older
    assert len(told) == 1
    clean(tmp_path, chosen)
    assert not oldest.exists()
    assert {name: content for name, content in contents(tmp_path).items() if "attempt-1" in name} == before


@pytest.mark.parametrize("again", [False, True])
def test_a_shard_that_shows_late_is_used_once_it_is_there(again: bool, tmp_path: Path) -> None:
    folder = write(tmp_path / "attempt" / "step-6", 6)
    if again:
        write(tmp_path / "attempt" / "step-3", 3)
    shard = folder / "state-00001.safetensors"
    late = shard.rename(tmp_path / "late")
    clean(tmp_path, survey(tmp_path, "k"))
    late.rename(shard)
    assert found(tmp_path) == folder


def test_runs_do_not_take_each_others_checkpoints(tmp_path: Path) -> None:
    foreign = write(tmp_path / "attempt-1" / "step-15", 15, key="another run")
    assert found(tmp_path) is None
    assert found(tmp_path / "nothing") is None
    mine = write(tmp_path / "attempt-2" / "step-4", 4)
    assert found(tmp_path) == mine
    clean(tmp_path, survey(tmp_path, "k"))
    assert read_progress(foreign).step == 15


def test_clean_removes_what_is_superseded(tmp_path: Path) -> None:
    write(tmp_path / "a" / "s3", 3)
    kept = write(tmp_path / "b" / "s6", 6)
    write(tmp_path / "b" / "s4", 4)
    (tmp_path / "a" / "notes.json").write_text("{}")
    clean(tmp_path, survey(tmp_path, "k"))
    assert [p for p in tmp_path.rglob("*") if p.is_dir()] == [tmp_path / "b", kept]
    assert read_progress(kept).step == 6


def test_what_is_damaged_is_set_aside_with_its_reason_and_what_is_incomplete_stays(tmp_path: Path) -> None:
    write(tmp_path / "a" / "s3", 3)
    zeros, altered, late = (write(tmp_path / "a" / f"s{step}", step) for step in (6, 7, 8))
    shard = zeros / "state-00000.safetensors"
    shard.write_bytes(bytes(shard.stat().st_size))
    manifest = json.loads((altered / "manifest.json").read_text())
    manifest["progress"]["step"] = 9
    (altered / "manifest.json").write_text(json.dumps(manifest))
    (late / "state-00001.safetensors").rename(tmp_path / "on its way")
    told: list[str] = []
    chosen = newest(tmp_path, "k", told.append, set_aside=True)
    assert chosen.step == 3
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["s3", "s6.damaged", "s7.damaged", "s8"]
    assert "does not have the content" in (tmp_path / "a" / "s6.damaged" / "damaged.txt").read_text()
    assert [line.partition(";")[2] for line in sorted(told)] == [
        " it is set aside as s6.damaged. The newest readable checkpoint is at step 3",
        " it is set aside as s7.damaged. The newest readable checkpoint is at step 3",
        " it is kept but not used. The newest readable checkpoint is at step 3",
    ]
    told.clear()
    newest(tmp_path, "k", told.append, set_aside=True)
    assert len(told) == 1, "what was set aside is told once"
    clean(tmp_path, survey(tmp_path, "k"))
    assert (tmp_path / "a" / "s7.damaged" / "state-00001.safetensors").is_file()
    shutil.rmtree(tmp_path / "a" / "s3")
    with pytest.raises(
        CheckpointError, match=r"no checkpoint of this run can be read: .*s8 is not complete.*s6 is damaged"
    ):
        newest(tmp_path, "k", told.append, set_aside=True)


@pytest.mark.parametrize("keep", [1, 2, 3, 9])
def test_the_last_ones_are_kept(keep: int, tmp_path: Path) -> None:
    for step in (3, 6, 9, 12):
        write(tmp_path / str(step % 2) / f"s{step}", step)
    clean(tmp_path, survey(tmp_path, "k"), keep)
    assert sorted(int(path.name[1:]) for path in tmp_path.glob("*/*")) == [3, 6, 9, 12][-keep:]


def test_every_parameter_has_one_writer_and_the_load_is_even() -> None:
    parameters = [(f"p{i}", nn.Parameter(torch.empty(0))) for i in range(20)]
    sizes = [1 + (i * 37) % 50 for i in range(20)]
    owned = assign(parameters, sizes, 3)
    assert sorted(name for names in owned for name in names) == sorted(name for name, _ in parameters)
    loads = [sum(sizes[int(name[1:])] for name in names) for names in owned]
    assert max(loads) - min(loads) <= max(sizes)
    assert assign(parameters[:1], sizes[:1], 4) == [{"p0"}, set(), set(), set()]


def test_another_stages_checkpoint_is_refused(tmp_path: Path) -> None:
    state = State(write(tmp_path / "s", 1))
    with pytest.raises(CheckpointError, match="has nothing for elsewhere"):
        load_weights([("elsewhere", nn.Parameter(torch.zeros(3)))], state, "param")
    with pytest.raises(CheckpointError, match=r"has a tensor of \(3,\) for p0, the stage needs \(2,\)"):
        load_weights([("p0", nn.Parameter(torch.zeros(2)))], state, "param")
