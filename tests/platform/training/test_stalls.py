"""Workers that hang, and a driver that is killed: real processes of a run of its own are suspended or killed."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from ray import cloudpickle

from kosmosg_platform.console import read_metrics
from kosmosg_platform.training.trainer import FitResult, fit
from tests.chaos import chaos
from tests.platform.datasets.test_killed_builds import descendants, named
from tests.platform.training import faulty_run

# Workers cannot import test files: what is defined there travels by value.
cloudpickle.register_pickle_by_value(faulty_run)

SCRIPT = Path(__file__).with_name("faulty_run.py")
ROOT = SCRIPT.parents[3]

pytestmark = pytest.mark.slow


def start(output: Path, *settings: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(SCRIPT.parent), str(ROOT), str(ROOT / "platform")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(output), *settings]
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def steps_of(output: Path) -> int:
    lines = [line for path in output.glob("numbers/*/metrics.jsonl") for line in read_metrics(path)]
    return 1 + max((line["step"] for line in lines), default=-1)


def wait_for_step(run: subprocess.Popen[str], output: Path, step: int) -> None:
    until = time.monotonic() + 120
    while steps_of(output) < step:
        assert run.poll() is None, run.communicate()[0][-3000:]
        assert time.monotonic() < until
        time.sleep(0.05)


def ended(run: subprocess.Popen[str]) -> tuple[int, str]:
    told, _ = run.communicate(timeout=240)
    return run.returncode, told


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    return fit(faulty_run.FaultyRecipe(), faulty_run.experiment(tmp_path_factory.mktemp("undisturbed")))


def suspend(output: Path, of_loader: bool) -> int:
    """Suspend a process of the run, once it has saved a checkpoint, and return its id."""
    while steps_of(output) < 8:
        time.sleep(0.05)
    workers = named(os.getpid(), "RayTrainWorker")
    loaders = [pid for worker in workers for pid in named(worker, "RayTrainWorker")]
    victim = max(loaders) if of_loader else max(set(workers) - set(loaders))
    os.kill(victim, signal.SIGSTOP)
    return victim


@pytest.mark.parametrize("who", ["worker", pytest.param("data loader", marks=chaos)])
def test_what_is_suspended_is_noticed_and_the_run_goes_on(
    undisturbed: FitResult, tmp_path: Path, capsys: pytest.CaptureFixture[str], who: str
) -> None:
    loaders = {"dataloader_workers": 1} if who == "data loader" else {}
    experiment = faulty_run.experiment(tmp_path, scale={"stall_seconds": 5, **loaders})
    with ThreadPoolExecutor(1) as pool:
        suspended = pool.submit(suspend, tmp_path, who == "data loader")
        result = fit(faulty_run.FaultyRecipe(), experiment)
    victim, told = suspended.result(), capsys.readouterr().err
    (path,) = result.folder.glob("stalls/*.txt")
    stacks = path.read_text()
    assert stacks.count("== worker") == 2
    assert "kosmosg_platform/training/loop.py" in stacks, "no stack of the training loop"
    if who == "data loader":
        assert f"process {victim}: suspended" in stacks
        assert "no worker has got on for 5 s" in told
        assert "last heartbeat `data` after step" in told
    else:
        assert f"(process {victim} " in told
        assert "does not answer any more" in told
        assert "It does not answer." in stacks
    assert "the workers are started again" in told
    assert not is_running(victim)
    expected = torch.load(undisturbed.export / "weights.pt", weights_only=True)
    for name, tensor in torch.load(result.export / "weights.pt", weights_only=True).items():
        assert torch.equal(tensor, expected[name]), "other weights than those of an undisturbed run"


def test_nothing_stays_of_a_driver_that_is_killed(tmp_path: Path) -> None:
    run = start(tmp_path)
    wait_for_step(run, tmp_path, 2)
    processes = list(descendants(run.pid))
    assert named(run.pid, "RayTrainWorker")
    run.kill()
    run.wait()
    until = time.monotonic() + 10
    while alive := [pid for pid in processes if is_running(pid)]:
        assert time.monotonic() < until, [Path(f"/proc/{pid}/cmdline").read_text() for pid in alive]
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
