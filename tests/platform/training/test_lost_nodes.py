"""Nodes that are lost, join, or are announced to go: a real cluster of several Ray nodes on this machine."""

import subprocess
import time
from pathlib import Path

import pytest

from kosmosg_platform.console import read_metrics
from kosmosg_platform.training.lr_schedule import TrainConfig, batch_plan, worker_counts
from tests.chaos import chaos
from tests.platform.training.test_stalls import start, wait_for_step


def told(run: subprocess.Popen[str], word: str) -> str:
    """What the run prints, up to the first line that holds a word."""
    assert run.stdout is not None
    lines = []
    for line in run.stdout:
        lines.append(line)
        if word in line:
            return "".join(lines)
    raise AssertionError("".join(lines))


def say(run: subprocess.Popen[str], word: str) -> None:
    assert run.stdin is not None
    run.stdin.write(f"{word}\n")
    run.stdin.flush()


@chaos
@pytest.mark.slow
def test_a_run_goes_on_with_fewer_workers_and_takes_more_when_a_node_joins(tmp_path: Path) -> None:
    run = start(tmp_path, "nodes=2", "scale.min_workers=1", "train.steps=150", "train.checkpoint_every=10")
    wait_for_step(run, tmp_path, 12)
    say(run, "lose")
    before = told(run, "going on with 1 of 2 workers")
    assert "Traceback" not in before
    say(run, "join")
    told(run, "going on with 2 workers instead of 1: there is room again")
    rest, _ = run.communicate(timeout=240)
    assert run.returncode == 0, rest[-3000:]
    (folder,) = (path.parent for path in tmp_path.glob("numbers/*/finished.json"))
    assert [line["step"] for line in read_metrics(folder / "metrics.jsonl")] == list(range(150))


@pytest.mark.slow
def test_a_run_that_finds_no_room_says_so_at_once_ends_after_a_while_and_goes_on_later(tmp_path: Path) -> None:
    run = start(tmp_path, "nodes=2", "scale.max_wait_seconds=8")
    wait_for_step(run, tmp_path, 8)
    say(run, "lose")
    lost = time.monotonic()
    told(run, "numbers: the cluster has no room for 2 workers (1 CPU each); waiting, for at most")
    said = time.monotonic() - lost
    rest, _ = run.communicate(timeout=240)
    assert run.returncode == 2, rest[-3000:]
    assert "Traceback" not in rest
    assert "longer than scale.max_wait_seconds=8; run the same command again once there is" in rest.splitlines()[-1]
    assert said < 30
    again = start(tmp_path, "nodes=2", "scale.max_wait_seconds=9")
    assert "resuming from step" in told(again, "resuming from step")
    rest, _ = again.communicate(timeout=240)
    assert again.returncode == 0, rest[-3000:]


def test_only_numbers_of_workers_that_share_the_batch_are_used() -> None:
    train = TrainConfig(global_batch=12)
    assert worker_counts(train, 6, 1) == [6, 3, 2, 1]
    assert worker_counts(train, 6, 2) == [6, 3, 2]
    assert worker_counts(train, 6, None) == [6]
    assert [batch_plan(train, count, 6) for count in (6, 3, 1)] == [(2, 1), (2, 2), (2, 6)]
    assert worker_counts(TrainConfig(global_batch=12, micro_batch=4), 3, 1) == [3, 1]
