"""A training run that tests break: `python faulty_run.py OUTPUT KEY=VALUE ...` on a Ray cluster of its own.

With a word `nodes=N`, N nodes of one core each are its cluster, and lines on standard input kill and add nodes: `lose`
kills one, `join` adds one, `drain` announces the end of one. It prints how it ended and exits as a job does.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import torch
from torch import Tensor, nn

from kosmosg.errors import KosmosGError, UnavailableError
from kosmosg.stages import StageOutput
from kosmosg_platform.config import merge, parse_override, validate
from kosmosg_platform.training.recipe import TrainingExperiment
from kosmosg_platform.training.sampler import SampleIndex

RECORDS = 200


class Net(nn.Module):
    """Learns to double a number, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 64), nn.GELU(), nn.Linear(64, 1))

    def forward(self, batch: Mapping[str, Tensor]) -> StageOutput:
        loss = ((self.net(batch["x"]) - 2 * batch["x"]) ** 2).mean()
        return StageOutput(loss, {"loss": loss.detach()})

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.named_parameters())


class SlowNumbers:
    """Numbers in [0, 1], each of which takes a moment to read."""

    def __len__(self) -> int:
        return RECORDS

    def __getitem__(self, index: int) -> dict[str, Any]:
        time.sleep(0.05)
        return {"x": index / RECORDS}


@dataclass(frozen=True)
class FaultyRecipe:
    stage: str = "numbers"

    def fingerprint(self) -> Mapping[str, Any]:
        return {"data": "numbers"}

    def lineage(self) -> Mapping[str, str]:
        return {}

    def tracked_datasets(self) -> Sequence[Mapping[str, str]]:
        return ()

    def build_stage(self) -> Net:
        return Net()

    def datasets(self) -> Mapping[str, SlowNumbers]:
        return {"numbers": SlowNumbers()}

    def weights(self) -> Mapping[str, float]:
        return {"numbers": 1}

    def build_collate(self) -> Any:
        return collate

    def sample_images(self, stage: Net) -> Sequence[Any]:
        return ()

    def save(self, stage: Net, folder: Path, figures: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(stage.state_dict(), folder / "weights.pt")


def collate(samples: Sequence[tuple[SampleIndex, Mapping[str, Any]]]) -> dict[str, Tensor]:
    return {"x": torch.tensor([[record["x"]] for _, record in samples])}


def train_on_nodes(nodes: int, train: Callable[[], object]) -> None:
    """Train on a cluster of `nodes` nodes of one core each, besides the head, which standard input commands."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    others = [cluster.add_node(num_cpus=1) for _ in range(nodes)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")

    def obey() -> None:
        for line in sys.stdin:
            commands.put(line.strip())

    commands: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=obey, daemon=True).start()
    with ThreadPoolExecutor(1) as pool:  # Ray starts nodes on the main thread only
        training = pool.submit(train)
        while not training.done():
            try:
                command = commands.get(timeout=0.2)
            except Empty:
                continue
            if command == "lose":
                cluster.remove_node(others.pop(), allow_graceful=False)
            elif command == "join":
                others.append(cluster.add_node(num_cpus=1))
            elif command == "drain":
                drain(others[-1].node_id)
    ray.shutdown()
    cluster.shutdown()
    training.result()


def drain(node_id: str) -> None:
    """Tell Ray that a node will be taken away, as a cloud's notice does."""
    import ray
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    deadline_ms = int((time.time() + 20) * 1000)
    why = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, reason = client.drain_node(node_id, why, "reclaimed", deadline_ms)
    assert accepted, reason


def experiment(output: Path, **settings: Any) -> TrainingExperiment:
    """A run of two workers and forty steps."""
    basis = {
        "output": output,
        "train": {"steps": 40, "global_batch": 4, "lr": 0.01, "checkpoint_every": 5},
        "scale": {"workers": 2},
        "engine": {"zero_stage": 1},
        "tracking": {"system_metrics_every": 0},
    }
    return validate(TrainingExperiment, merge(basis, settings))


def main(output: str, *words: str) -> None:
    """Train once."""
    from kosmosg_platform.cluster.session import ScaleConfig, local
    from kosmosg_platform.training.trainer import fit

    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    nodes = [int(word.removeprefix("nodes=")) for word in words if word.startswith("nodes=")]
    settings: dict[str, Any] = {}
    for word in words:
        if not word.startswith("nodes="):
            settings = merge(settings, parse_override(word))
    try:
        if nodes:
            train_on_nodes(nodes[0], lambda: fit(FaultyRecipe(), experiment(Path(output), **settings)))
        else:
            with local(ScaleConfig(workers=2)):
                fit(FaultyRecipe(), experiment(Path(output), **settings))
    except KosmosGError as error:
        print(error, flush=True)
        sys.exit(2)
    except UnavailableError as error:
        print(error, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    # Ray's workers must find the recipe under a name that they can import.
    sys.path.insert(0, str(Path(__file__).parent))
    import faulty_run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulty_run.main(*sys.argv[1:])
