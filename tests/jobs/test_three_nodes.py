"""Three stages on a cluster of three nodes with their results in an object store, while one part after the other fails.

Part of `make chaos`; takes about ten minutes. Short forms of its faults, one each, are in `make test`.
"""

import hashlib
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from kosmosg_platform.stores.location import local_copy
from tests.chaos import chaos
from tests.jobs.test_stored_runs import Lab, eventually
from tests.mlflow_server import MlflowServer
from tests.object_store import ObjectStore

STEPS = {"pretrain": 240, "align": 400, "instruct": 120}
SETTINGS = ("train.checkpoint_every=20", "train.log_every=1", "train.sample_every=0", "scale.workers=2")
QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    chaos,
]


class ThreeNodes:
    """A Ray cluster whose nodes are processes of this machine, each with room for one worker."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        for _ in range(2):
            self.cluster.add_node(num_cpus=1)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def lose_a_node(self) -> None:
        """A node that is not the head goes without a word, and another one joins."""
        lost = next(node for node in self.cluster.list_all_nodes() if not node.head)
        self.cluster.remove_node(lost, allow_graceful=False)
        self.cluster.add_node(num_cpus=1)

    def lose_the_head(self) -> None:
        """Everything ends, as when the head's machine is lost; then there is a new cluster."""
        for process in psutil.process_iter(["cmdline"]):
            if "gcs_server" in " ".join(process.info["cmdline"] or ()) and self.address.split(":")[1] in " ".join(
                process.info["cmdline"]
            ):
                process.kill()
        self.stop()
        self.start()

    def stop(self) -> None:
        self.cluster.shutdown()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreeNodes]:
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    found = ThreeNodes()
    yield found
    found.stop()


@pytest.fixture
def lab(s3_server: ObjectStore, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Lab:
    # The nodes are started by this process, and their workers need the store's address and the cache's place too.
    found = Lab(s3_server, tmp_path_factory.mktemp("nodes"))
    for name, value in {**s3_server.environment, "KOSMOSG_CACHE": str(found.cache)}.items():
        monkeypatch.setenv(name, value)
    found.environment |= QUIET
    return found


def training_workers() -> list[psutil.Process]:
    return [one for one in psutil.process_iter(["cmdline"]) if "ray::RayTrainWorker" in " ".join(one.info["cmdline"])]


def run_folder(lab: Lab, stage: str, process: "subprocess.Popen[str]") -> Path:
    """Where a stage keeps its run on this machine."""
    place = local_copy(f"{lab.url}/runs/{stage}")
    eventually(lambda: any(place.glob("*/metrics.jsonl")), process)
    return next(place.glob("*/metrics.jsonl")).parent


def weights(export: Path) -> str:
    return hashlib.sha256((export / "model.safetensors").read_bytes()).hexdigest()


def test_three_stages_learn_what_they_would_have_learnt_undisturbed(
    lab: Lab, cluster: ThreeNodes, tmp_path: Path
) -> None:
    disk = lab.folder / "disk"
    lab.run("build_dataset", f"output={disk}")
    data = lab.store.upload(disk / "build_dataset", f"{lab.folder.name}/data")
    for stage, steps in STEPS.items():
        lab.run(stage, f"output={disk}", f"train.steps={steps}", *SETTINGS)

    server = MlflowServer(tmp_path / "tracking")
    server.start()
    lab.environment["MLFLOW_TRACKING_URI"] = server.uri

    def start(stage: str) -> "subprocess.Popen[str]":
        place = (f"output={lab.url}/runs", f"data.folder={data}", f"scale.address={cluster.address}")
        return lab.start(stage, f"train.steps={STEPS[stage]}", *place, *SETTINGS)

    def finish(process: "subprocess.Popen[str]") -> str:
        told, _ = process.communicate(timeout=600)
        assert process.returncode == 0, told[-5000:]
        return str(told)

    # A worker is killed, then a node.
    process = start("pretrain")
    run = run_folder(lab, "pretrain", process)
    eventually(lambda: lab.steps(run) > 50, process)
    training_workers()[0].kill()
    eventually(lambda: lab.steps(run) > 120, process, 300)
    cluster.lose_a_node()
    finish(process)

    # The store is away for 30 s, the tracking server for 60 s.
    process = start("align")
    run = run_folder(lab, "align", process)
    eventually(lambda: lab.steps(run) > 30, process)
    server.kill()
    lab.store.kill()
    later = [threading.Timer(30, lab.store.start), threading.Timer(60, server.start)]
    for timer in later:
        timer.start()
    finish(process)
    for timer in later:
        timer.join()

    # The head is lost, with everything on it.
    process = start("instruct")
    run = run_folder(lab, "instruct", process)
    eventually(lambda: lab.steps(run) > 50, process)
    cluster.lose_the_head()
    process.send_signal(signal.SIGKILL)  # its machine is gone as well
    process.communicate()
    resumed = start("instruct")
    told = finish(resumed)
    assert "resuming from step" in told

    for stage in STEPS:
        (stored,) = local_copy(f"{lab.url}/runs/{stage}").glob("*/export")
        assert weights(stored) == weights(disk / stage / "export"), stage
    until = time.monotonic() + 60
    while len(runs := finished_runs(server)) < len(STEPS):
        assert time.monotonic() < until, runs
        time.sleep(1)
    server.kill()


def finished_runs(server: MlflowServer) -> list[str]:
    """Stages of the runs that the tracking server knows as finished."""
    from mlflow import MlflowClient

    api = MlflowClient(server.uri)
    experiments = [one.experiment_id for one in api.search_experiments()]
    return [run.data.tags["stage"] for run in api.search_runs(experiments) if run.info.status == "FINISHED"]
