"""A run of many days survives more failures than `scale.max_failures`, as long as it gets on in between."""

from pathlib import Path

import pytest
from ray.train import FailureConfig
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.exceptions import WorkerGroupError

from kosmosg_platform.training.failure_count import FailuresSinceCheckpoint, newest_step


def save(folder: Path, step: int, complete: bool = True) -> None:
    place = folder / "20261125-090000-0a1b" / f"step-{step:08d}-0a1b2c"
    place.mkdir(parents=True)
    (place / "state-00000.safetensors").touch()
    if complete:
        (place / "manifest.json").touch()


def decisions(policy: FailuresSinceCheckpoint, count: int) -> list[bool]:
    lost = WorkerGroupError("lost", worker_failures={0: RuntimeError("lost")})
    return [policy.make_decision(lost) == FailureDecision.RETRY for _ in range(count)]


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_failures_count_from_the_newest_checkpoint(tmp_path: Path, allowed: int) -> None:
    save(tmp_path, 20)
    policy = FailuresSinceCheckpoint(FailureConfig(max_failures=allowed), tmp_path)
    for step in (40, 60, 80):
        assert all(decisions(policy, allowed))
        save(tmp_path, step)
    save(tmp_path, 100, complete=False)  # no checkpoint
    assert decisions(policy, allowed + 1) == [True] * allowed + [False]
    assert newest_step(tmp_path) == 80


def test_any_number_of_failures(tmp_path: Path) -> None:
    assert all(decisions(FailuresSinceCheckpoint(FailureConfig(max_failures=-1), tmp_path), 20))
