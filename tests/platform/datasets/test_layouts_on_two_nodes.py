"""Damaged copies of every layout go through two Ray nodes: each row comes out once, as its truth table says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("layouts_build.py")
ROOT = SCRIPT.parents[3]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_layout_adds_up_on_two_nodes(tmp_path: Path) -> None:
    """`make chaos` takes 5,000 rows of each with 2 % of damage, `make test` fewer with more."""
    count, damage = ("5000", "0.02") if os.environ.get("KOSMOSG_CHAOS_ROUNDS") else ("60", "0.2")
    path = os.pathsep.join([str(SCRIPT.parent), str(ROOT), str(ROOT / "platform")])
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), count, damage],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == 14
    for told in found:
        assert told["wrong"] == [], told
        counts = told["counts"]
        assert counts["read"] == counts["written"] + counts["filtered"] + counts["quarantined"] == told["rows"]
        assert 0 < counts["quarantined"] < told["rows"]
