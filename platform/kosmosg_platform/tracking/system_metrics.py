"""The load of a node while it trains: CPU, memory, disk, network and GPUs, under `system/<node>/`.

Measured by MLflow's own monitors, but logged through the spool, which waits for no tracking server.
"""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kosmosg_platform.tracking.run import Run

_FLUSH_SECONDS = 1.0


@contextmanager
def record_node(run: Run, seconds: float) -> Iterator[None]:
    """Record this node's load every so many seconds for the duration of the block; with 0, nothing.

    One process of a machine is enough: the others of the same run do nothing here.
    """
    node = re.sub(r"[^\w.-]", "_", socket.gethostname())
    mine = run.as_writer(f"node-{node}")
    if not seconds or not mine.claim():
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_record, args=(mine, f"system/{node}", seconds, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=_FLUSH_SECONDS)
        mine.flush(_FLUSH_SECONDS)
        mine.release()


def _record(run: Run, prefix: str, seconds: float, ended: threading.Event) -> None:
    step = 1 + max(run.logged().under(prefix), default=-1)
    monitors = _monitors()
    while True:
        metrics: dict[str, float] = {}
        for monitor in monitors:
            monitor.collect_metrics()
            metrics.update(monitor.aggregate_metrics())
            monitor.clear_metrics()
        run.log_metrics({f"{prefix}/{name}": value for name, value in metrics.items()}, step)
        step += 1
        if ended.wait(seconds):
            return


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    found: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        found.append(GPUMonitor())
    except (ImportError, RuntimeError):
        return found  # no GPU, or no driver library to ask
    return found
