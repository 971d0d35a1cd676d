"""Submission to a real Ray head: once, followed, stopped, and with the job's own exit code."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from kosmosg.errors import ConfigError
from kosmosg_platform.cluster.submit import Cluster, absolute, runtime_env

BIN = Path(sys.executable).parent

TOKEN = "a" * 64

# A job as the checkout's are, small enough to start at once. It proves what every job needs on a cluster: its own
# packages, the `platform` import root, and the settings as given.
HELLO = """
import sys, pathlib, kosmosg_platform
print("words", *sys.argv[1:], flush=True)
print("platform from", pathlib.Path(kosmosg_platform.__file__).is_relative_to(pathlib.Path.cwd()), flush=True)
if "sleep=1" in sys.argv: import time; time.sleep(120)
if "fail=1" in sys.argv: sys.exit(7)
output = next(word.partition("=")[2] for word in sys.argv if word.startswith("output="))
if "wait=1" in sys.argv:
    import os, time
    (pathlib.Path(output) / "pid").write_text(str(os.getpid()))
    while not (pathlib.Path(output) / "go").exists(): time.sleep(0.2)
with open(pathlib.Path(output) / "ran", "a") as file: file.write("once ")
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start_head(folder: Path, port: int | None = None, **environment: str) -> tuple[subprocess.Popen[bytes], str]:
    """A Ray head of its own on free ports, in its own process group; `ray stop` would end other people's too."""
    port = port or free_port()
    command = [BIN / "ray", "start", "--head", "--block", "--num-cpus=2", f"--port={free_port()}"]
    command += [f"--dashboard-port={port}", "--dashboard-agent-listen-port=0", f"--temp-dir={folder}"]
    command += ["--disable-usage-stats", "--object-store-memory=100000000"]
    log = (folder / "head.log").open("wb")
    head = subprocess.Popen(
        command, stdout=log, stderr=log, env=os.environ | environment, start_new_session=True, cwd=folder
    )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and head.poll() is None:
        try:
            if requests.get(f"{url}/api/jobs/", timeout=5).status_code in (200, 401):
                return head, url
        except requests.exceptions.ConnectionError:
            pass
        time.sleep(0.3)
    pytest.fail(f"no Ray head: {(folder / 'head.log').read_text()[-2000:]}")


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """The URL of a cluster that asks for a token, as Ray's clusters do unless told otherwise."""
    # Ray's sockets live there, and their paths may have 107 characters: pytest's folders are too deep.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    process, url = start_head(folder, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    yield url
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one job, and the current folder in it."""
    checkout = tmp_path / "checkout"
    for package in ("jobs", "platform/kosmosg_platform"):
        (checkout / package).mkdir(parents=True)
        (checkout / package / "__init__.py").touch()
    (checkout / "pyproject.toml").write_text('[project]\nname = "kosmosg"\n')
    (checkout / "jobs" / "hello.py").write_text(HELLO)
    (checkout / "runs").mkdir()
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[3] / "platform")]))
    return checkout


def kosmosg(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / "kosmosg", *arguments], capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_job_is_submitted_once_followed_and_listed(head: str, project: Path) -> None:
    first = kosmosg("submit", "hello", "tiny", "train.seed=1", "--address", head, "--id", "first")
    assert first.returncode == 0, first.stderr
    assert f"words tiny train.seed=1 output={project / 'runs'}" in first.stdout
    assert "platform from True" in first.stdout, "PYTHONPATH=platform must reach the job"

    again = kosmosg("submit", "hello", "tiny", "train.seed=1", "--address", head, "--id", "first")
    assert again.returncode == 0, again.stderr
    assert "does not run again" in again.stderr
    assert (project / "runs" / "ran").read_text() == "once "

    other = kosmosg("submit", "hello", "tiny", "train.seed=2", "--address", head, "--id", "first")
    assert other.returncode == 2
    assert "--id: first was already used" in other.stderr

    listing = kosmosg("status", "--address", head)
    assert "first  SUCCEEDED" in listing.stdout
    assert "words tiny" in kosmosg("logs", "first", "--address", head).stdout


@pytest.mark.slow
def test_a_restarted_head_gets_the_job_again(
    head: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second cluster, with a token of its own, whose head is killed while the job runs."""
    folder, other = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp")), "c" * 64
    process, url = start_head(folder, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=other)
    follower = None
    try:
        refused = kosmosg("submit", "hello", "sleep=1", "--address", url)
        assert refused.returncode == 2
        assert len(refused.stderr.strip().splitlines()) == 1
        assert "rejects the token that is set here; set RAY_AUTH_TOKEN to" in refused.stderr
        monkeypatch.setenv("RAY_AUTH_TOKEN", other)
        with pytest.raises(ConfigError, match="rejects the token"):
            Cluster(head)

        command = ["submit", "hello", "wait=1", "--address", url]
        log = (tmp_path / "follower.log").open("w+")
        follower = subprocess.Popen([BIN / "kosmosg", *command], stdout=log, stderr=log)
        wait_for(tmp_path / "follower.log", "words wait=1")
        # The same command again, as after a closed laptop: it finds the job that runs.
        found = kosmosg(*command, "--no-wait")
        assert found.returncode == 0, found.stderr
        assert f"{found.stdout.strip()} was submitted before and is RUNNING" in found.stderr
        assert len(list(Cluster(url).status())) == 1

        # A head that is lost takes the job's driver with it; Ray starts drivers in a session of their own.
        os.killpg(process.pid, signal.SIGKILL)
        os.kill(int((project / "runs" / "pid").read_text()), signal.SIGKILL)
        process.wait()
        wait_for(tmp_path / "follower.log", "lost the connection")
        process, _ = start_head(folder, int(url.rpartition(":")[2]), RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=other)
        (project / "runs" / "go").touch()
        assert follower.wait(timeout=120) == 0, (tmp_path / "follower.log").read_text()
        assert "does not know" in (tmp_path / "follower.log").read_text()
        assert (project / "runs" / "ran").read_text() == "once "
        # It has ended: the same command is a new submission.
        assert kosmosg(*command, "--no-wait").stdout.strip() == f"{found.stdout.strip()}-2"
    finally:
        if follower is not None and follower.poll() is None:
            follower.kill()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(file: Path, text: str) -> None:
    deadline = time.monotonic() + 120
    while text not in file.read_text():
        assert time.monotonic() < deadline, file.read_text()
        time.sleep(0.3)


@pytest.mark.slow
def test_the_exit_code_is_the_jobs_own(head: str, project: Path) -> None:
    failed = kosmosg("submit", "hello", "fail=1", "--address", head)
    assert failed.returncode == 7, failed.stderr
    assert "FAILED" in failed.stderr


@pytest.mark.slow
def test_a_running_job_is_stopped(head: str, project: Path) -> None:
    started = kosmosg("submit", "hello", "sleep=1", "--address", head, "--id", "long", "--no-wait")
    assert (started.returncode, started.stdout.strip()) == (0, "long")
    cluster = Cluster(head)
    deadline = time.monotonic() + 60
    while "words" not in cluster.log("long") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert cluster.stop("long") == "long STOPPED"
    assert cluster.follow("long") == 130
    assert "already ended" in cluster.stop("long")


def test_an_unknown_job_and_an_absent_cluster_are_one_sentence(head: str, project: Path) -> None:
    with pytest.raises(ConfigError, match="there is no job 'nobody'"):
        Cluster(head).log("nobody")
    with pytest.raises(ConfigError, match="no Ray cluster answers at"):
        Cluster(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ConfigError, match="not the URL of a dashboard"):
        Cluster("ray://head:10001")


def test_a_cluster_that_asks_for_a_token_says_so(head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Cluster(head).address == head, "the token is in the environment of every test here"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "b" * 64)
    with pytest.raises(ConfigError, match="rejects the token"):
        Cluster(head)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="requires a token; set RAY_AUTH_TOKEN"):
        Cluster(head)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(TOKEN)
    assert Cluster(head).address == head


def test_paths_mean_the_same_on_the_cluster(project: Path) -> None:
    (project / "photos" / "mine").mkdir(parents=True)
    here = absolute(["toyworld", "source=photos/mine", "dest=out", "train.lr=1e-3", "decoder=org/absent"], here=True)
    assert here == [
        "toyworld",
        f"source={project}/photos/mine",
        f"dest={project}/out",
        "train.lr=1e-3",
        "decoder=org/absent",
        f"output={project}/runs",
    ]
    assert absolute(["output=/shared/runs"], here=False) == ["output=/shared/runs"]
    with pytest.raises(ConfigError, match="output: on a cluster give an absolute path"):
        absolute(["toyworld"], here=False)
    with pytest.raises(ConfigError, match="dest=out: on a cluster"):
        absolute(["output=/shared", "dest=out"], here=False)


def test_what_is_sent_is_the_code_only(project: Path) -> None:
    sent = runtime_env(project)
    assert sent["env_vars"] == {"PYTHONPATH": "platform"}
    assert {".git", ".venv", "runs"} <= set(sent["excludes"])
