"""Named blocks of work, distributed over Ray actors that each hold a model: shared by image generation and feature
extraction.

Each actor creates one worker and calls it with block after block; the worker writes its results to files and returns a
count. A user error that occurs in a worker, such as a damaged image, ends the job with one sentence instead of a
traceback through Ray.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from kosmosg.errors import KosmosGError
from kosmosg_platform.cluster.resources import WorkerDemand, require_resources
from kosmosg_platform.cluster.session import ScaleConfig
from kosmosg_platform.console import quiet_ray_data
from kosmosg_platform.progress import Progress

Worker = Callable[[str], int]
_ACTOR_CPUS = 0.5  # not a whole core: with as many actors as cores nothing would be left to hand them their rows
_TASKS = 1000  # parts of the work that Ray Data keeps account of


class BlockActor:
    """A Ray Data actor: creates a worker and passes blocks to it."""

    def __init__(self, make: Callable[[Any], Worker], argument: Any) -> None:
        self.worker: Worker | None = None
        self.error = ""
        try:
            self.worker = make(argument)
        except KosmosGError as error:
            self.error = str(error)

    def __call__(self, batch: dict[str, Sequence[str]]) -> dict[str, list[Any]]:
        """Rows of `block` to rows of `count` and `error`."""
        counts, errors = [], []
        for block in batch["block"]:
            count, error = 0, self.error
            if self.worker is not None:
                try:
                    count = self.worker(str(block))
                except KosmosGError as mistake:
                    error = str(mistake)
            counts.append(count)
            errors.append(error)
        return {"count": counts, "error": errors}


def run_blocks(
    title: str, unit: str, make: Callable[[Any], Worker], argument: Any, blocks: Sequence[str], scale: ScaleConfig
) -> int:
    """Process all blocks with as many actors as there are workers; returns the sum of their counts.

    `title` and `unit` are used in progress messages. Ray must be up. Raises the KosmosGError of the first block that
    fails, and ConfigError if the cluster has no room for the actors.
    """
    import ray

    if not blocks:
        return 0
    demand = WorkerDemand(min(scale.workers, len(blocks)), _ACTOR_CPUS, float(scale.use_gpu))
    require_resources(demand)
    done = 0
    with quiet_ray_data(), warnings.catch_warnings():
        # `max_restarts` has no parameter of its own in Ray 2.60.
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        rows = ray.data.from_items(
            [{"block": block} for block in blocks], override_num_blocks=min(len(blocks), _TASKS)
        ).map_batches(
            BlockActor,
            fn_constructor_args=(make, argument),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=demand.workers),
            num_cpus=demand.cpus,
            num_gpus=demand.gpus,
            # No restarts, so that Ray does not warn that a restarted actor might not find its arguments.
            max_restarts=0,
        )
        with Progress(title, len(blocks), "batches") as shown:
            began = time.perf_counter()
            for number, row in enumerate(rows.iter_rows(), start=1):
                if row["error"]:
                    raise KosmosGError(row["error"])
                done += int(row["count"])
                shown.update(number, f"{done:,} {unit}, {done / (time.perf_counter() - began):.2f} {unit}/s")
    return done
