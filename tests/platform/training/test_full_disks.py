"""Disks that fill up, turn read-only or limit the size of files while training: one sentence, nothing lost."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from kosmosg_platform.training.checkpoints import survey
from tests.chaos import chaos
from tests.platform.training.test_stalls import ended, start, wait_for_step
from tests.small_disk import remount

pytestmark = [pytest.mark.slow, chaos]


def weights(output: Path) -> dict[str, torch.Tensor]:
    (path,) = output.glob("numbers/*/export/weights.pt")
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return found


def refused(run: "subprocess.Popen[str]", why: str) -> None:
    code, told = ended(run)
    assert code == 1, told
    assert "Traceback" not in told, told
    last = told.strip().splitlines()[-1]
    assert why in last
    assert "run the same command again" in last


def test_training_goes_on_when_there_is_room_again(small_disk: Path, tmp_path: Path) -> None:
    settings = ("scale.max_failures=0", "scale.workers=1", "train.steps=120")
    straight = tmp_path / "straight"
    shutil.copytree(small_disk, straight)
    code, told = ended(start(straight, *settings))
    assert code == 0, told

    run = start(small_disk, *settings)
    wait_for_step(run, small_disk, 12)
    remount(small_disk, f"size={sum(path.stat().st_blocks for path in small_disk.rglob('*')) // 2 + 8}k")
    refused(run, "No space left on device; make room")
    (folder,) = small_disk.glob("numbers/*")
    kept = survey(folder / "checkpoints", folder.name)
    assert kept.step >= 5

    remount(small_disk, "size=64m,ro")
    refused(start(small_disk, *settings), "Read-only file system; make it writable")

    remount(small_disk, "size=64m,rw")
    code, told = ended(start(small_disk, *settings))
    assert code == 0, told
    assert f"resuming from step {kept.step} of 120" in told
    expected = weights(straight)
    for name, tensor in weights(small_disk).items():
        assert torch.equal(tensor, expected[name]), "other weights than those of an undisturbed run"
