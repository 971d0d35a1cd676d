"""What each part of a build cost: time inside it, for how many rows. `kosmosg plan build_dataset` extrapolates from it.

Measured where the part runs. Loading a model does not count, nor does what Ray does between processes. The sums travel
with the rows of a chunk into its counts, and from there into the receipt of its shard, not into the manifest: two
builds of the same source have the same manifest.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

READ, COMPOSE, WRITE, FINISH = "read", "compose", "write", "finish"
"""Parts of every build, beside its steps: reading and decoding, making records, writing chunks, putting shards
together."""


@dataclass
class Spent:
    """The cost of one part."""

    reached: int = 0
    """Rows that came to it."""
    rows: int = 0
    """Those that it worked on; the others had kept answers."""
    seconds: float = 0.0
    """Wall time."""
    cpu: float = 0.0
    """CPU time of the process."""
    device: str = ""
    """Where it ran."""

    def add(self, other: "Spent") -> None:
        """Add the cost of other rows."""
        self.reached += other.reached
        self.rows += other.rows
        self.seconds += other.seconds
        self.cpu += other.cpu
        self.device = other.device or self.device


Costs = dict[str, Spent]
"""By the name of the part: a step's, or one of the above."""


@contextmanager
def timed(costs: Costs, part: str, rows: int, device: str = "") -> Iterator[Spent]:
    """Add what happens inside to `costs`; the number of rows may be corrected until the end."""
    spent = Spent(rows, rows, device=device or cpu_name())
    began, cpu = time.perf_counter(), time.process_time()
    yield spent
    spent.seconds, spent.cpu = time.perf_counter() - began, time.process_time() - cpu
    costs.setdefault(part, Spent()).add(spent)


def total(costs: Iterable[Mapping[str, Spent]]) -> Costs:
    """The sums of several."""
    sums: Costs = {}
    for each in costs:
        for part, spent in each.items():
            sums.setdefault(part, Spent()).add(spent)
    return sums


def plain_costs(costs: Mapping[str, Spent]) -> dict[str, dict[str, Any]]:
    """As plain values."""
    return {part: asdict(spent) for part, spent in costs.items()}


def read_costs(told: Mapping[str, Mapping[str, Any]]) -> Costs:
    """The inverse of `plain_costs`."""
    return {part: Spent(**spent) for part, spent in told.items()}


def device_of(annotator: Any) -> str:
    """Name of the GPU that an annotator's model is on, else of the CPU."""
    network = getattr(annotator, "network", None) or getattr(getattr(annotator, "embedder", None), "network", None)
    device = getattr(network, "device", None)
    if getattr(device, "type", "cpu") == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return cpu_name()


@cache
def cpu_name() -> str:
    """As Linux names the processor, otherwise "CPU"."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "CPU"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
