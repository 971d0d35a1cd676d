"""Checks that a cluster has room for the workers of a job before the first of them starts.

Ray queues what does not fit: a preset for GPUs would wait forever on a laptop. Ray 2.60 has no call that answers "could
this ever run here?", so the answer is derived from what a cluster reports:

- Its nodes (`ray.nodes()`). If they have room for all workers, whether idle or busy at the moment, the job starts.
- Whether an autoscaler may add nodes. If so, the job also starts, and waits for them. There is an autoscaler if
  - the cluster's configuration is in its store, as on managed clusters; or
  - version 2 of the autoscaler is enabled, which must be done explicitly; or
  - the report of version 1 names a node type. Every cluster has that report, but one that cannot grow calls each node
    `node_` and its id.
- A cluster that cannot grow rejects what it has no room for.

The limits of an autoscaler are not reported, so a demand beyond them waits, and Ray's log says why.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kosmosg.errors import ConfigError
from kosmosg_platform.console import echo

ANONYMOUS_NODE = re.compile(r"node_[0-9a-f]{56}")
"""Ray's prefix for the type of a node that was not started by an autoscaler."""

Node = Mapping[str, float]


@dataclass(frozen=True)
class WorkerDemand:
    """Workers that run at the same time, the resources of each, and the settings that determine them."""

    workers: int
    cpus: float = 1.0
    gpus: float = 0.0
    workers_key: str = "scale.workers"
    cpus_key: str = "scale.cpus_per_worker"
    without_gpus: str = "scale.use_gpu=false, as in the presets tiny, minutes and toyworld"
    """How to run without GPUs, for the error message."""


def require_resources(*demands: WorkerDemand, address: str | None = None) -> None:
    """Raise ConfigError if there is no room for these workers, and there never will be.

    If Ray is up, its nodes are counted. Otherwise this machine's GPUs are, if the job will run here; with an `address`
    (or RAY_ADDRESS) the check waits until that cluster is joined.
    """
    import ray

    if ray.is_initialized():
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        place = "the cluster"
    elif address or os.environ.get("RAY_ADDRESS"):
        return
    else:
        import torch

        # A cluster started here offers as many CPUs as its workers request: more than there are cores is only slower.
        nodes = [{"CPU": float("inf"), "GPU": float(torch.cuda.device_count())}]
        place = "this machine"
    refused = _refusal(demands, nodes, place)
    if refused is None:
        return
    if ray.is_initialized() and _may_grow():
        echo(f"waiting for the cluster's autoscaler: {refused.partition(';')[0]}")
        return
    raise ConfigError(refused)


def _refusal(demands: Sequence[WorkerDemand], nodes: Sequence[Node], place: str) -> str | None:
    """The problem with the first demand that does not fit, with a remedy; None if there is room for all."""
    for demand in demands:
        room = sum(_fitting(demand, node) for node in nodes)
        if room < demand.workers:
            return f"{_asked(demand)}, but {place} {_offer(nodes, room)}; {_remedy(demand, nodes, room)}"
    for name, offered in (("CPU", _total(nodes, "CPU")), ("GPU", _total(nodes, "GPU"))):
        taken = sum(demand.workers * _each(demand, name) for demand in demands)
        if taken > offered:
            keys = ", ".join(demand.workers_key for demand in demands if _each(demand, name))
            return (
                f"{keys}: together they need {_count(taken, name)}, but {place} has {offered:g}; lower some of them, "
                "or name a larger cluster (scale.address)"
            )
    return None


def _fitting(demand: WorkerDemand, node: Node) -> int:
    """How many such workers a node has room for, at most as many as requested."""
    room = [node.get(name, 0.0) / _each(demand, name) + 1e-6 for name in ("CPU", "GPU") if _each(demand, name)]
    return int(min([*room, demand.workers]))


def _asked(demand: WorkerDemand) -> str:
    each = [_count(_each(demand, name), name) for name in ("CPU", "GPU") if _each(demand, name)]
    workers, be = ("1 worker", "is") if demand.workers == 1 else (f"{demand.workers} workers", "are")
    return f"{demand.workers_key}: {workers} with {' and '.join(each)} {'' if be == 'is' else 'each '}{be} asked for"


def _offer(nodes: Sequence[Node], room: int) -> str:
    cpus, gpus = _total(nodes, "CPU"), _total(nodes, "GPU")
    has = [_count(amount, name) for amount, name in ((cpus, "CPU"), (gpus, "GPU")) if amount != float("inf")]
    on = f" on {len(nodes)} nodes" if len(nodes) > 1 else ""
    return f"has {' and '.join(has)}{on}" + (f", room for {room}" if room else "")


def _remedy(demand: WorkerDemand, nodes: Sequence[Node], room: int) -> str:
    if max((node.get("GPU", 0.0) for node in nodes), default=0.0) < demand.gpus:
        return f"name a cluster with GPUs (scale.address), or set {demand.without_gpus}"
    if room:
        return f"set {demand.workers_key} to {room} or less, or name a larger cluster (scale.address)"
    return f"lower {demand.cpus_key}, or name a cluster with larger nodes (scale.address)"


def _each(demand: WorkerDemand, name: str) -> float:
    return demand.gpus if name == "GPU" else demand.cpus


def _total(nodes: Sequence[Node], name: str) -> float:
    return sum(node.get(name, 0.0) for node in nodes)


def _count(amount: float, name: str) -> str:
    return f"{amount:g} {name}{'' if amount == 1 else 's'}"


def _may_grow() -> bool:
    """Whether the running cluster has an autoscaler. Through `ray://` only the cluster itself can say."""
    import ray
    from ray.util.client import ray as client

    if client.is_connected():
        return bool(ray.get(ray.remote(num_cpus=0)(_has_autoscaler).remote()))
    return _has_autoscaler()


def _has_autoscaler() -> bool:
    """Runs inside the cluster; see the top of this file."""
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray._private.state import state
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.experimental.internal_kv import _internal_kv_get

    if state.get_cluster_config() is not None or is_autoscaler_v2():
        return True
    status = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}")
    report: dict[str, Any] = status.get("autoscaler_report") or {}
    types = {*(report.get("active_nodes") or ()), *(report.get("node_type_mapping") or {}).values()}
    return any(not ANONYMOUS_NODE.fullmatch(name) for name in types)
