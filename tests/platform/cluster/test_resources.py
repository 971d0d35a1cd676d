"""Workers that a cluster has no room for are refused in one sentence, unless its autoscaler may bring nodes."""

import json
import os
import re
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
import ray
import torch
import yaml

from kosmosg.errors import ConfigError
from kosmosg_platform.cluster.resources import WorkerDemand, _refusal, require_resources

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent
AUTOSCALER = {
    "cluster_name": "fake",
    "max_workers": 2,
    "provider": {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
    },
    "available_node_types": {
        "head": {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0},
        "gpu": {"resources": {"CPU": 2, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
    "head_node_type": "head",
    **{key: {} for key in ("auth", "docker", "file_mounts")},
    **{key: [] for key in ("initialization_commands", "setup_commands", "head_setup_commands")},
    **{key: [] for key in ("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")},
    **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
    **{"file_mounts_sync_continuously": False, "upscaling_speed": 1.0, "idle_timeout_minutes": 0.1},
}


@pytest.mark.parametrize(
    ("demand", "nodes", "told"),
    [
        (
            WorkerDemand(1, 1, 1),
            [{"CPU": 8}],
            "1 CPU and 1 GPU is asked for, but it has 8 CPUs and 0 GPUs;",
        ),
        (WorkerDemand(1, 1, 1), [{"CPU": 8}], "; name a cluster with GPUs (scale.address), or set scale.use_gpu=false"),
        (
            WorkerDemand(4, 2, 1),
            [{"CPU": 9, "GPU": 3}],
            "3 GPUs, room for 3; set scale.workers to 3 or less",
        ),
        (WorkerDemand(3, 4), [{"CPU": 6}, {"CPU": 6}], "3 workers with 4 CPUs each are asked for, but it has 12 CPUs"),
        (WorkerDemand(3, 4), [{"CPU": 6}, {"CPU": 6}], "on 2 nodes, room for 2; set scale.workers to 2 or less"),
        (WorkerDemand(1, 8), [{"CPU": 6}, {"CPU": 6}], "; lower scale.cpus_per_worker, or name a cluster with larger"),
        (WorkerDemand(1, 1, 0.5, "a.actors"), [{"CPU": 6}], "a.actors: 1 worker with 1 CPU and 0.5 GPUs is asked for"),
    ],
)
def test_what_does_not_fit_is_told_with_both_values_and_the_remedy(
    demand: WorkerDemand, nodes: list[dict[str, float]], told: str
) -> None:
    assert told in (_refusal([demand], nodes, "it") or "")


@pytest.mark.parametrize("each", [0.1, 0.25, 0.5, 1.0, 3.0])
def test_exactly_enough_is_enough(each: float) -> None:
    for workers in range(1, 12):
        node = {"CPU": workers * each, "GPU": workers * each}
        assert _refusal([WorkerDemand(workers, each, each)], [node], "it") is None
        assert _refusal([WorkerDemand(workers + 1, each, each)], [node], "it")


def test_demands_that_fit_alone_may_not_fit_together() -> None:
    steps = [WorkerDemand(1, 0, 1, f"build.steps.{index}.actors") for index in range(2)]
    assert _refusal(steps, [{"CPU": 4, "GPU": 2}], "it") is None
    told = _refusal(steps, [{"CPU": 4, "GPU": 1}], "the cluster")
    assert told is not None
    assert "build.steps.0.actors, build.steps.1.actors: together they need 2 GPUs, but the cluster has 1;" in told


def test_a_job_that_joins_a_cluster_is_judged_by_that_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # another test's cluster would be counted
    demand = WorkerDemand(1, 1, 1)
    require_resources(demand, address="ray://head:10001")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="this machine has 0 GPUs"):
        require_resources(demand)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
@pytest.mark.parametrize(
    ("job", "words"),
    [
        ("instruct", ["gpu"]),
        ("demo", ["tiny", "demo.preset=gpu"]),
        ("ablation", ["tiny", "ablation.preset=gpu"]),
    ],
)
def test_a_preset_for_gpus_fails_at_once_where_there_are_none(job: str, words: list[str], tmp_path: Path) -> None:
    """Before data, parents or weights are asked for, which would cost hours for nothing."""
    began = time.monotonic()
    command = [sys.executable, "-W", "ignore", "-m", f"jobs.{job}", *words, f"output={tmp_path}"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    asked = "scale.workers: 1 worker with 8 CPUs and 1 GPU is asked for, but this machine has 0 GPUs; "
    assert line.startswith(f"kosmosg {job}: {asked}")
    assert time.monotonic() - began < 60
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
@pytest.mark.parametrize("words", [["generate", "generate.prompt=a cat"], ["evaluate", "evaluate.cases=1"]])
def test_jobs_that_generate_images_fail_before_the_first_worker_starts(words: list[str], tmp_path: Path) -> None:
    job, *settings = words
    command = [sys.executable, "-W", "ignore", "-m", f"jobs.{job}", "tiny", "scale.use_gpu=true", *settings]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    result = subprocess.run(
        [*command, f"output={tmp_path}"], cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment
    )
    assert result.returncode == 2, result.stderr
    asked = f"kosmosg {job}: scale.workers: 1 worker with 0.5 CPUs and 1 GPU is asked for, but the cluster has "
    assert result.stderr.splitlines()[-1].startswith(asked)


def start_head(folder: Path, autoscaler: bool) -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [BIN / "ray", "start", "--head", "--block", "--num-cpus=2", "--num-gpus=0", f"--port={port}"]
    command += [f"--temp-dir={folder}", "--include-dashboard=false", "--object-store-memory=100000000"]
    if autoscaler:
        (folder / "autoscaler.json").write_text(json.dumps(AUTOSCALER))
        command.append(f"--autoscaling-config={folder / 'autoscaler.json'}")
    environment = os.environ | {
        "RAY_AUTH_MODE": "disabled",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
    }
    log = (folder / "head.log").open("wb")
    head = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True, cwd=folder)
    return head, f"127.0.0.1:{port}"


@pytest.fixture(params=[False, True], ids=["fixed", "autoscaling"])
def cluster(request: pytest.FixtureRequest) -> Iterator[tuple[str, bool]]:
    """The address of a real cluster of two CPUs, with and without an autoscaler that knows a node with a GPU."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets want short paths
    head, address = start_head(folder, request.param)
    yield address, request.param
    os.killpg(head.pid, signal.SIGKILL)
    head.wait()
    shutil.rmtree(folder, ignore_errors=True)


ASK = """
import sys, time, ray, logging
from kosmosg.errors import ConfigError
from kosmosg_platform.cluster.resources import WorkerDemand, require_resources
for attempt in range(60):
    try:
        ray.init(address=sys.argv[1], logging_level=logging.ERROR, log_to_driver=False)
        break
    except ConnectionError:
        time.sleep(1)
from ray.experimental.internal_kv import _internal_kv_get
while b"autoscaler_report" not in (_internal_kv_get("__autoscaling_status") or b""):
    time.sleep(0.5)
require_resources(WorkerDemand(2))
try:
    require_resources(WorkerDemand(1, 1, 1))
    print("goes on")
except ConfigError as error:
    print("refused", error)
"""


@pytest.mark.slow
def test_a_cluster_that_may_grow_is_not_refused_and_one_that_cannot_is(cluster: tuple[str, bool]) -> None:
    address, grows = cluster
    command = [sys.executable, "-W", "ignore", "-c", ASK, address]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150, env=environment)
    assert result.returncode == 0, result.stderr
    if grows:
        assert result.stdout == "goes on\n"
        assert "waiting for the cluster's autoscaler: scale.workers: 1 worker with 1 CPU and 1 GPU" in result.stderr
    else:
        assert result.stdout.startswith("refused scale.workers: 1 worker with 1 CPU and 1 GPU is asked for")
        assert "the cluster has 2 CPUs and 0 GPUs; " in result.stdout


def test_the_presets_that_are_named_as_the_remedy_need_no_gpu() -> None:
    named = re.findall(r"\b(tiny|minutes|toyworld|gpu|paper)\b", WorkerDemand(1).without_gpus)
    assert named
    for name in named:
        scale = yaml.safe_load((ROOT / "jobs" / "presets" / f"{name}.yaml").read_text()).get("scale", {})
        assert not scale.get("use_gpu", False)
