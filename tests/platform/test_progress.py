"""What a person who waits is told: how much is done, what it costs, and how long it will still take."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kosmosg_platform import progress
from kosmosg_platform.progress import Progress, TimeLeft, duration, follow_metrics

ROOT = Path(__file__).resolve().parents[2]


@given(each=st.floats(0.01, 1000), before=st.integers(0, 500), steps=st.integers(2, 200), rest=st.integers(0, 500))
def test_at_a_steady_speed_the_estimate_is_exact(each: float, before: int, steps: int, rest: int) -> None:
    """Whatever an earlier run had done before."""
    left = TimeLeft(before + steps + rest)
    for step in range(steps + 1):
        left.mark(before + step, 100 + each * step)
    assert left.seconds(100 + each * steps) == pytest.approx(each * rest, rel=1e-3, abs=1e-6)
    assert left.seconds(100 + each * steps + 1e9) == 0


def test_there_is_no_estimate_before_there_is_a_speed() -> None:
    left = TimeLeft(10)
    assert left.seconds(0) is None
    left.mark(3, 1)
    left.mark(3, 9)
    assert left.seconds(9) is None
    left.mark(5, 11)
    assert left.seconds(11) == pytest.approx(25)


def test_steps_that_are_taken_again_start_a_new_estimate() -> None:
    left = TimeLeft(100)
    left.mark(50, 0)
    left.mark(60, 1)
    left.mark(52, 100)
    left.mark(54, 104)
    assert left.seconds(104) == pytest.approx(92)


def test_the_estimate_follows_a_change_of_speed() -> None:
    left = TimeLeft(10_000)
    for step in range(100):
        left.mark(step, step * 3.0)
    for step in range(100, 400):
        left.mark(step, 300 + (step - 100) * 30.0)
    assert left.seconds(300 + 299 * 30.0) == pytest.approx(30 * 9601, rel=0.01)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (273600, "3 d 4 h")],
)
def test_durations_have_at_most_two_units(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_a_log_gets_lines_that_can_be_read_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    with Progress("evaluate", 4, "batches") as shown:
        for done in range(1, 5):
            time.sleep(0.05)
            shown.update(done, f"{done * 8} images")
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"evaluate: 1/4 batches, 8 images, \d+ s left", lines[0])
    assert re.fullmatch(r"evaluate: 4/4 batches, 32 images, took \d+ s", lines[-1])
    assert len(lines) == 4, "the closing line is the last piece's"


def test_between_lines_there_are_fifteen_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("evaluate", 400, "batches") as shown:
        for done in range(400):
            shown.update(done)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_training_run_is_followed_from_its_metrics_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_POLL_SECONDS", 0.02)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(json.dumps({"step": 49, "loss": 9.0}) + "\n")  # of an earlier run
    with follow_metrics("align", 100, metrics), metrics.open("a") as file:
        time.sleep(0.1)
        for step in range(50, 100):
            file.write(json.dumps({"step": step, "loss": 0.5, "samples_per_second": 31.25}) + "\n")
            file.flush()
            time.sleep(0.01)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "align: 0/100 steps, starting workers"
    assert any(re.fullmatch(r"align: \d+/100 steps, loss 0.5000, 31.2 samples/s, \d s left", line) for line in lines)
    assert lines[-1].startswith("align: 100/100 steps, loss 0.5000, 31.2 samples/s, took ")
    assert threading.active_count() < 50


def on_a_terminal(code: str, **environment: str) -> str:
    """What a program prints where standard error is a terminal."""
    leader, follower = os.openpty()
    variables = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    program = subprocess.Popen(
        [sys.executable, "-c", code], stderr=follower, cwd=ROOT, env=variables | {"TERM": "xterm"} | environment
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            shown += os.read(leader, 4096)
        except OSError:  # its other end is closed
            break
    os.close(leader)
    assert program.wait(60) == 0, shown.decode()
    return shown.decode()


BAR = """
import time
from kosmosg_platform.progress import Progress
with Progress("build", 3, "shards") as shown:
    for done in (1, 2):
        time.sleep(0.3)
        shown.update(done, "12 rows")
"""


def test_a_terminal_gets_a_bar_with_the_time_left() -> None:
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", on_a_terminal(BAR))
    assert "build" in shown
    assert "2/3" in shown
    assert re.search(r"12 rows, \d+ s left", shown)


ECHO = """
from kosmosg_platform.console import echo, echo_error
echo_error("kosmosg align", "train.stps: no such setting")
echo("done", "success")
echo("plain")
"""


def test_colours_are_for_terminals_that_want_them() -> None:
    coloured = on_a_terminal(ECHO)
    assert "\x1b[31mkosmosg align:\x1b[0m train.stps: no such setting" in coloured
    assert "\x1b[32mdone\x1b[0m" in coloured
    assert "\r\nplain" in coloured
    bare = "kosmosg align: train.stps: no such setting\ndone\nplain\n"
    for wish in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert on_a_terminal(ECHO, **wish).replace("\r\n", "\n") == bare
    piped = subprocess.run([sys.executable, "-c", ECHO], capture_output=True, text=True, check=True, cwd=ROOT)
    assert piped.stderr == bare
