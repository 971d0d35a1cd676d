"""A folder is a checkpoint only when all of it is there."""

from pathlib import Path

import pytest
import torch
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
    write_manifest,
    write_shard,
)


def write(folder: Path, step: int, key: str = "k", workers: int = 2) -> Path:
    files = [write_shard(folder, rank, {f"param.p{rank}": torch.full((3,), float(step))}) for rank in range(workers)]
    write_manifest(folder, TrainingProgress(key=key, step=step, optimizer_steps=step), files)
    return folder


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    folder = write(tmp_path / "a" / "s", 7, workers=3)
    state = State(folder)
    assert state.progress.step == 7
    assert sorted(state) == ["param.p0", "param.p1", "param.p2"]
    assert state["param.p2"].tolist() == [7.0, 7.0, 7.0]
    assert "ema.p2" not in state


def test_newest_passes_over_the_unfinished_the_damaged_and_the_foreign(tmp_path: Path) -> None:
    first = write(tmp_path / "attempt-1" / "step-3", 3)
    torn = write(tmp_path / "attempt-1" / "step-6", 6)
    shard = torn / "state-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4])
    absent = write(tmp_path / "attempt-2" / "step-9", 9)
    (absent / "state-00000.safetensors").unlink()
    unmarked = write(tmp_path / "attempt-2" / "step-12", 12)
    (unmarked / "manifest.json").unlink()
    half = write(tmp_path / "attempt-2" / "step-13", 13)
    (half / "manifest.json").write_text('{"version": 1, "fil')
    write(tmp_path / "attempt-2" / "step-15", 15, key="another run")
    assert newest(tmp_path, "k") == first
    second = write(tmp_path / "attempt-2" / "step-4", 4)
    assert newest(tmp_path, "k") == second
    assert newest(tmp_path / "nothing", "k") is None
    with pytest.raises(CheckpointError, match=r"state-00001.safetensors has \d+ bytes, its manifest says"):
        read_progress(torn)
    with pytest.raises(CheckpointError, match=r"state-00000.safetensors is missing"):
        read_progress(absent)
    with pytest.raises(CheckpointError, match=r"is not a checkpoint"):
        read_progress(unmarked)


def test_clean_keeps_one(tmp_path: Path) -> None:
    write(tmp_path / "a" / "s3", 3)
    kept = write(tmp_path / "b" / "s6", 6)
    write(tmp_path / "b" / "s4", 4)
    (tmp_path / "b" / "notes.json").write_text("{}")
    clean(tmp_path, kept)
    assert [p for p in tmp_path.rglob("*") if p.is_dir()] == [tmp_path / "b", kept]
    assert read_progress(kept).step == 6


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
