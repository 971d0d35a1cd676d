"""The tracking server killed, suspended, or started later than the run: real servers, and every entry there once."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from PIL import Image

from kosmosg.errors import ConfigError
from kosmosg_platform.run_paths import RunPaths
from kosmosg_platform.tracking import Run, TrackingConfig
from kosmosg_platform.tracking.sender import replay
from kosmosg_platform.tracking.spool import Spool, count_unsent, read_run
from tests.mlflow_server import MlflowServer

KEY = "0123456789ab"


def open_run(folder: Path, uri: str | None, **settings: Any) -> Run:
    tracking = TrackingConfig(uri=uri, **settings)
    return Run.open(tracking, RunPaths(folder), "align", folder / "align", KEY, params={"train": {"lr": 0.1}})


def steps_of(uri: str, run_id: str, metric: str = "loss") -> list[int]:
    return [point.step for point in MlflowClient(uri).get_metric_history(run_id, metric)]


def log_steps(run: Run, start: int, stop: int, pause: float = 0.005) -> float:
    """Log one metric a step; returns the longest time that a call took, in seconds."""
    longest = 0.0
    for step in range(start, stop):
        began = time.monotonic()
        run.log_metrics({"loss": 1 / (step + 1)}, step)
        longest = max(longest, time.monotonic() - began)
        time.sleep(pause)
    return longest


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path / "server")
    yield server
    server.kill()


@pytest.mark.slow
def test_no_step_waits_for_the_server_and_every_entry_is_there_once_in_the_end(
    server: MlflowServer, tmp_path: Path
) -> None:
    """Away at the start, then there, suspended in mid-run, killed in mid-run and started again: 1,200 steps."""
    began = time.monotonic()
    run = open_run(tmp_path, server.uri, flush_seconds=60)
    worker = run.as_writer("worker")
    assert time.monotonic() - began < 5
    longest = log_steps(worker, 0, 200)
    assert run.id == ""
    image = tmp_path / "sample.png"
    Image.new("RGB", (8, 8), "red").save(image)
    worker.log_image(image, "prompts", 0)

    server.start()
    longest = max(longest, log_steps(worker, 200, 400))
    run_id = run.wait_for_id(30)
    assert run_id
    server.signal(signal.SIGSTOP)
    longest = max(longest, log_steps(worker, 400, 800))
    server.signal(signal.SIGCONT)
    longest = max(longest, log_steps(worker, 800, 900))
    server.kill()
    longest = max(longest, log_steps(worker, 900, 1100))
    server.start()
    longest = max(longest, log_steps(worker, 1100, 1200))
    worker.flush()
    worker.release()
    run.close()

    assert longest < 1, "a step waited for the tracking server"
    assert steps_of(server.uri, run_id) == list(range(1200))
    client = MlflowClient(server.uri)
    found = client.get_run(run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"train.lr": "0.1"}
    assert len(client.search_runs([found.info.experiment_id])) == 1
    images = [file.path for file in client.list_artifacts(run_id, "images")]
    assert [path.endswith(".png") for path in sorted(images)].count(True) == 1
    assert count_unsent(Path(run.spool)) == 0


@pytest.mark.slow
def test_a_server_that_never_comes_costs_only_the_agreed_seconds_and_a_replay_brings_everything(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    nowhere = "http://127.0.0.1:9"
    began = time.monotonic()
    run = open_run(tmp_path, nowhere, flush_seconds=1)
    log_steps(run, 0, 50, pause=0)
    run.close()
    assert time.monotonic() - began < 5
    told = capfd.readouterr().err
    assert "53 entries could not be sent to http://127.0.0.1:9" in told  # open, params, 50 steps, close
    assert f"kosmosg track replay {tmp_path / 'align'}" in told

    uri = f"sqlite:///{tmp_path / 'later.db'}"
    command = [sys.executable, "-m", "kosmosg_platform.cli.main", "track", "replay", str(tmp_path / "align")]
    result = subprocess.run([*command, "--uri", uri], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "53 sent" in result.stdout
    run_id = read_run(Path(run.spool))["id"]
    assert steps_of(uri, run_id) == list(range(50))
    assert MlflowClient(uri).get_run(run_id).info.status == "FINISHED"
    assert replay(Path(run.spool), uri) == 0

    refused = subprocess.run([*command[:-1], str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert (refused.returncode, "is not the folder of a run" in refused.stderr) == (2, True)


def killed_on_the_way(folder: Path, uri: str, start: int, stop: int) -> None:
    run = open_run(folder, uri)
    log_steps(run, start, stop, pause=0.002)
    run.flush(20)
    log_steps(run, stop, stop + 40, pause=0.0)  # not all of these are sent
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_is_one_run_with_every_step_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    context = multiprocessing.get_context("spawn")
    for attempt in range(2):
        start = attempt * 100
        process = context.Process(target=killed_on_the_way, args=(tmp_path, uri, start, start + 60))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    run = open_run(tmp_path, uri, flush_seconds=30)
    with Path(run.spool, "driver.jsonl").open() as file:
        spooled = [entry["step"] for entry in map(json.loads, file) if entry["op"] == "metrics"]
    assert spooled == list(range(200))
    assert run.logged().new({"loss": 1.0}, 199) == {}, "a step that a resumed run repeats would be logged again"
    run.close()
    client = MlflowClient(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("kosmosg").experiment_id])
    assert steps_of(uri, found.info.run_id) == list(range(200))
    assert found.info.status == "FINISHED"


def test_a_line_that_was_cut_off_is_dropped_and_a_file_in_use_is_left_alone(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "worker")
    spool.append({"op": "metrics", "step": 1})
    with pytest.raises(BlockingIOError):
        Spool(tmp_path, "worker")
    assert Spool.claim(tmp_path, "worker").writer == "worker.2"
    spool.close()
    with spool.path.open("ab") as file:
        file.write(b'{"op": "metr')
    again = Spool(tmp_path, "worker")
    again.append({"op": "metrics", "step": 2})
    assert [entry["step"] for entry, _ in again.pending(10)] == [1, 2]
    again.mark(again.pending(1)[0][1])
    assert [entry["step"] for entry, _ in again.pending(10)] == [2]
    again.close()


@pytest.mark.slow
def test_what_the_server_refuses_is_set_aside_and_what_follows_is_sent(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = open_run(tmp_path, None, flush_seconds=60)
    run.log_metrics({"loss": 1.0, "a name with a !": 2.0}, 0)
    run.log_metrics({"loss": float("nan")}, 1)
    run.log_file(tmp_path / "not there")
    run.log_metrics({"loss": 3.0}, 2)
    run.close()
    assert steps_of(run.uri, run.id) == [0, 1, 2]
    rejected = Path(run.spool, "driver.rejected.jsonl").read_text().splitlines()
    assert len(rejected) == 2
    assert "a name with a !" in rejected[0]
    assert "no longer there" in rejected[1]
    assert "the server refuses" in capfd.readouterr().err


def two_at_once(folder: Path, number: int, ready: Any) -> None:
    ready.wait()
    run = Run.open(
        TrackingConfig(flush_seconds=60), RunPaths(folder), "align", folder / f"align/{number}", f"key{number}"
    )
    log_steps(run, 0, 150)
    run.close()


@pytest.mark.slow
def test_two_runs_start_into_one_new_output_at_the_same_moment(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(2)
    processes = [context.Process(target=two_at_once, args=(tmp_path, number, ready)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    uri = RunPaths(tmp_path).tracking
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("kosmosg").experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    for run in runs:
        assert steps_of(uri, run.info.run_id) == list(range(150))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("file:///tmp/mlruns", "cannot be used"),
        ("mlruns", "cannot be used"),
        ("sqlite:////proc/no/mlflow.db", "cannot be used"),
    ],
)
def test_a_store_that_can_never_be_used_is_told_at_once(uri: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        open_run(tmp_path, uri)
