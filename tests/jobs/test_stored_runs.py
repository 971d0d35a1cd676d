"""Jobs whose folders lie in a real object store, killed and cut off from it: the same weights as on a disk."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kosmosg_platform.stores.location import local_copy
from tests.object_store import BUCKET, ObjectStore

ROOT = Path(__file__).resolve().parents[2]
STEPS = 240
TRAINED = [f"train.steps={STEPS}", "train.checkpoint_every=20", "train.log_every=1", "train.keep_checkpoints=3"]

pytestmark = pytest.mark.slow


class Lab:
    """Commands of one user on one machine, with folders on its disk and in the store."""

    def __init__(self, store: ObjectStore, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.cache = folder / "cache"
        self.started: list[subprocess.Popen[str]] = []
        self.url = f"s3://{BUCKET}/{folder.name}"
        self.environment = {
            **os.environ,
            **store.environment,
            "KOSMOSG_CACHE": str(self.cache),
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def start(self, job: str, *settings: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", f"jobs.{job}", "tiny", *settings]
        started: subprocess.Popen[str] = subprocess.Popen(
            command, cwd=ROOT, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.started.append(started)
        return started

    def run(self, job: str, *settings: str) -> str:
        process = self.start(job, *settings)
        told, _ = process.communicate(timeout=300)
        assert process.returncode == 0, told[-4000:]
        return str(told)

    def stored(self, under: str) -> list[str]:
        """Names of the files in the store below a folder of this lab."""
        from pyarrow.fs import FileSelector, FileType

        top = f"{BUCKET}/{self.folder.name}/{under}"
        found = self.store.files().get_file_info(FileSelector(top, recursive=True, allow_not_found=True))
        return sorted(one.path.removeprefix(f"{top}/") for one in found if one.type == FileType.File)

    def steps(self, run: Path) -> int:
        """Steps that a run has logged on this machine."""
        file = run / "metrics.jsonl"
        text = file.read_text() if file.is_file() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()  # a killed worker leaves half a line
        return int(json.loads(lines[-1])["step"]) + 1 if lines else 0


def eventually(question: Callable[[], bool], process: "subprocess.Popen[str]", seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not question():
        assert process.poll() is None, f"it ended before: {process.communicate()[0][-4000:]}"
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.fixture(scope="module")
def lab(s3_server: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with pytest.MonkeyPatch.context() as patch:
        found = Lab(s3_server, tmp_path_factory.mktemp("lab"))
        patch.setenv("KOSMOSG_CACHE", str(found.cache))
        yield found
        for process in found.started:
            if process.poll() is None:
                process.kill()
                process.wait()


def test_a_run_in_a_store_learns_what_one_on_a_disk_does(lab: Lab) -> None:
    """Killed; its newest checkpoint damaged; gone on with on a machine that has nothing of it; the store away for 20 s.

    A stage and a generated image then start from what it left in the store.
    """
    disk = lab.folder / "disk"
    data = f"{lab.url}/data"
    lab.run("build_dataset", f"dest={data}")
    shutil.rmtree(lab.cache)
    assert "nothing to build, 1 kept" in lab.run("build_dataset", f"dest={data}")
    lab.run("pretrain", f"output={disk}", f"data.folder={data}", *TRAINED)
    settings = (f"output={lab.url}/runs", f"data.folder={data}", *TRAINED)

    process = lab.start("pretrain", *settings)

    def complete() -> list[str]:
        return [name for name in lab.stored("runs") if name.endswith("/manifest.json")]

    eventually(lambda: len(complete()) >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    run = next(local_copy(f"{lab.url}/runs/pretrain").glob("*/experiment.yaml")).parent
    before, changed = -1, time.monotonic()
    while time.monotonic() < changed + 3:  # its workers end with it
        if before != lab.steps(run):
            before, changed = lab.steps(run), time.monotonic()
    assert before < STEPS
    damaged = max(complete(), key=lambda name: name.split("/step-")[1]).removesuffix("/manifest.json")
    shard = f"{BUCKET}/{lab.folder.name}/runs/{damaged}/state-00000.safetensors"
    files = lab.store.files()
    with files.open_input_file(shard) as file:
        content = bytearray(file.read())
    content[len(content) // 2] ^= 1
    with files.open_output_stream(shard) as file:
        file.write(bytes(content))
    shutil.rmtree(lab.cache)

    process = lab.start("pretrain", *settings)
    resumed = int(damaged.split("/step-")[1].split("-")[0])
    eventually(lambda: lab.steps(run) > resumed + 5, process)
    lab.store.kill()
    try:
        seen = lab.steps(run)
        time.sleep(20)
        assert lab.steps(run) > seen + 20, "training waits for the store"
    finally:
        lab.store.start()
    told, _ = process.communicate(timeout=200)
    assert process.returncode == 0, told[-4000:]
    assert "is damaged" in told
    assert "set aside" in told
    assert f"{damaged}/damaged.txt" in lab.stored("runs")
    others = [name for name in complete() if not name.startswith(damaged)]
    assert len(others) == 3
    assert max(others, key=lambda name: name.split("/step-")[1]).split("/step-")[1].startswith(f"{STEPS:08d}")
    digests = [
        hashlib.sha256((folder / "export/model.safetensors").read_bytes()).hexdigest()
        for folder in (run, (disk / "pretrain/export").resolve().parent)
    ]
    assert digests[0] == digests[1]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(STEPS))

    shutil.rmtree(lab.cache)
    short = ("train.steps=2", "train.sample_every=0")
    lab.run(
        "instruct", f"output={lab.url}/runs", f"parent={lab.url}/runs/pretrain/export", f"data.folder={data}", *short
    )
    shown = f"dest={lab.folder / 'images'}"
    lab.run(
        "generate",
        shown,
        f"generate.model={lab.url}/runs/instruct/export",
        "generate.prompt=a red ball",
        "generate.steps=2",
    )
    assert list((lab.folder / "images/images").glob("*.png"))
