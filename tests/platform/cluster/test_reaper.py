"""What is left of a Ray cluster is ended, where the system tells of processes; elsewhere nothing breaks."""

import subprocess
import sys
from pathlib import Path

import pytest

from kosmosg_platform.cluster import reaper

SLEEPER = "import time; time.sleep(60)"


def test_what_was_started_before_ends_with_the_block_and_nothing_else() -> None:
    before = subprocess.Popen([sys.executable, "-c", SLEEPER])
    with reaper.watch():
        after = subprocess.Popen([sys.executable, "-c", SLEEPER])
    try:
        assert before.wait(10) < 0
        assert after.poll() is None
    finally:
        after.kill()
        after.wait()


def test_a_system_without_a_list_of_processes_does_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaper, "_PROCESSES", str(tmp_path / "none"))
    with reaper.watch():
        pass
