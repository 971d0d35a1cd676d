"""Notices workers that hang, saves the stacks of all of them, and lets Ray start the group again.

Part of Ray Train's controller, which calls it at every look at the workers. It asks each worker for its heartbeat,
never waiting for an answer. The group stalls when a worker has not answered for `scale.stall_seconds` (it is suspended,
or its node is cut off), or when no worker has got on for that long (a data loader hangs, a collective operation waits
for somebody). What may take long, from the start of the workers to a checkpoint, has `scale.long_stall_seconds`.

Then the stacks of all workers that answer go to RUN/stalls/TIME.txt, and the group fails like one that lost a worker:
it is started again from its last checkpoint, if `scale.max_failures` allows.

Facts about Ray 2.60 that this file relies on: callbacks of a run that are not a `UserCallback` get the controller's own
hooks; a WorkerGroupError that a hook raises is handled as a failure of the workers; a worker runs what it is asked to
on its main thread while the training function runs on another.
"""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2.api.exceptions import WorkerGroupError

from kosmosg_platform.storage import write_text
from kosmosg_platform.training import heartbeat
from kosmosg_platform.training.heartbeat import LONG, Heartbeat
from kosmosg_platform.training.notices import notify

FOLDER = "stalls"
_ASK_SECONDS = 2.0
_STACK_SECONDS = 5.0


class StalledError(RuntimeError):
    """The workers hang."""


@dataclass
class _Watched:
    """What is known of one worker."""

    worker: Any
    answered: float
    asked: Any = None
    asked_at: float = 0.0
    last: Heartbeat = field(default_factory=lambda: Heartbeat("start", 0))

    @property
    def told(self) -> float:
        """When its loop has told its last heartbeat."""
        return self.answered - self.last.seconds

    @property
    def place(self) -> str:
        return f"process {self.worker.metadata.pid} on {self.worker.metadata.node_ip}"


class StallWatch(WorkerGroupCallback):  # type: ignore[misc] # Ray's class is untyped
    """Ray Train's controller calls it."""

    def __init__(self, run: Path, seconds: float, long_seconds: float) -> None:
        self._run, self._seconds, self._long = run, seconds, max(long_seconds, seconds)
        self._watched: dict[int, _Watched] = {}
        self._started: float | None = None  # when a worker first told that it is past its start, so that all are

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        now, self._started = time.monotonic(), None
        workers = worker_group.get_workers()
        self._watched = {one.distributed_context.world_rank: _Watched(one, now) for one in workers}

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        self._watched = {}

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        if worker_group_status.errors or worker_group_status.finished or not self._watched:
            return  # Ray knows already
        self._ask()
        stalled = self._stalled(time.monotonic())
        if stalled is None:
            return
        path = self._save_stacks(stalled)
        ranks, reason = stalled
        told = f"{reason}; the stacks of all workers are in {path}, and the workers are started again"
        notify(self._run, told)
        raise WorkerGroupError(told, worker_failures=dict.fromkeys(ranks, StalledError(told)))

    def _ask(self) -> None:
        now = time.monotonic()
        for one in self._watched.values():
            if one.asked is not None and ray.wait([one.asked], timeout=0)[0]:
                with suppress(ray.exceptions.RayError):  # it died, of which Ray's own look at it tells
                    one.last, one.answered = ray.get(one.asked), now
                one.asked = None
            if one.asked is None and now - one.asked_at > min(_ASK_SECONDS, self._seconds / 4):
                one.asked, one.asked_at = one.worker.execute_async(heartbeat.read), now

    def _stalled(self, now: float) -> tuple[list[int], str] | None:
        """The ranks that hang, and what to say about them."""
        long = any(one.last.doing in LONG for one in self._watched.values())
        if self._started is None and any(one.last.doing != "start" for one in self._watched.values()):
            self._started = now
        # The first answer takes as long as a worker takes to import everything.
        since, limit = (0.0, self._long) if self._started is None else (self._started, self._seconds)
        silent = [rank for rank, one in self._watched.items() if now - max(one.answered, since) > limit]
        if silent:
            told = ", ".join(self._describe(rank) for rank in silent)
            return silent, f"{told} does not answer any more" if len(silent) == 1 else f"{told} do not answer any more"
        allowed = self._long if long else self._seconds
        if now - max(one.told for one in self._watched.values()) <= allowed:
            return None
        # Those that wait for others are in a step; one that reads data keeps them waiting.
        reading = [rank for rank, one in self._watched.items() if one.last.doing == "data"]
        ranks = reading or list(self._watched)
        told = ", ".join(self._describe(rank) for rank in ranks[:4]) + (", ..." if len(ranks) > 4 else "")
        return ranks, f"no worker has got on for {allowed:.0f} s: {told}"

    def _describe(self, rank: int) -> str:
        one = self._watched[rank]
        return f"worker {rank} ({one.place}, last heartbeat {one.last})"

    def _save_stacks(self, stalled: tuple[list[int], str]) -> Path:
        asked = {rank: one.worker.execute_async(heartbeat.stacks) for rank, one in self._watched.items()}
        ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=_STACK_SECONDS)
        parts = [f"{stalled[1]}\n"]
        for rank, reference in asked.items():
            try:
                found = ray.get(reference) if reference in ready else "It does not answer.\n"
            except ray.exceptions.RayError as error:
                found = f"{error}\n"
            parts.append(f"== {self._describe(rank)}\n{found}")
        path = self._run / FOLDER / f"{datetime.now(UTC):%Y%m%d-%H%M%S}.txt"
        write_text(path, "\n".join(parts))
        return path
