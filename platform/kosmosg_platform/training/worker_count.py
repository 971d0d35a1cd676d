"""How many workers a run trains with, when nodes are lost and others come: Ray Train's controller asks this policy.

A run wants `scale.workers`. While the cluster has no room for them, it waits, tells so at once and every minute, and
ends after `scale.max_wait_seconds` with one sentence; the same command goes on later. With `scale.min_workers` below
`scale.workers` it is elastic: it goes on with as many as there is room for, at least that many, and takes more at a
checkpoint once there is room again, so that no step is lost. Only numbers of workers that divide the batch are used.

Whether there is room, the cluster is asked itself, by a placement group like the one that the workers get: Ray counts a
lost node as alive for a while. One that waits is also what an autoscaler adds nodes for.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.train import ScalingConfig
from ray.train.v2._internal.execution.callback import ReportCallback
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision, ScalingDecision, ScalingPolicy
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from kosmosg.errors import KosmosGError
from kosmosg_platform.progress import duration
from kosmosg_platform.training.notices import notify

_POLL_SECONDS = 0.5
_SURE_SECONDS = 2.0  # a group that has just ended needs a moment to return its room
_PATIENCE_SECONDS = 5.0  # an elastic run waits so long for a node that takes the place of a lost one
_TELL_SECONDS = 60.0
_GROW_SECONDS = 5.0


class NoRoomError(KosmosGError):
    """The cluster had no room for the workers for longer than the run may wait."""


class WorkerCountPolicy(ScalingPolicy, ReportCallback):  # type: ignore[misc] # Ray's classes are untyped
    """Decides on the number of workers.

    Args:
        scaling: what Ray Train is told; its number of workers is the wanted one.
        counts: all numbers of workers that are possible, the wanted one first.
        run: folder of the run, for notices.
        max_wait: seconds that a run waits for room.
    """

    def __init__(self, scaling: ScalingConfig, counts: Sequence[int], run: Path, max_wait: float) -> None:
        super().__init__(scaling)
        self._counts, self._run, self._max_wait = tuple(counts), run, max_wait
        self._each: Mapping[str, float] = scaling._resources_per_worker_not_none
        self._room: PlacementGroup | None = None
        self._waiting_since: float | None = None
        self._told = 0.0
        self._looked = 0.0
        self._saved = False

    # -- Ray's autoscaling coordinator, which this policy does without ---------------------------------------------

    def after_controller_start(self, train_run_context: Any) -> None:
        """Nothing is registered: that would start two more processes."""

    async def before_controller_shutdown(self) -> None:
        self._return_room()

    def before_controller_abort(self) -> None:
        self._return_room()

    def _get_num_workers_for_resource_request(self) -> int:
        return self._counts[0]

    # -- decisions -------------------------------------------------------------------------------------------------

    def after_report(self, training_report: Any, metrics: Any) -> None:
        self._saved |= training_report.checkpoint is not None

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """How many workers to start now; none while there is no room. The workers before have ended.

        Raises NoRoomError.
        """
        now = time.monotonic()
        if self._waiting_since is None:
            self._waiting_since, self._told = now, now - _TELL_SECONDS + _SURE_SECONDS
        wanted = self._counts[0]
        if self._has_room(wanted, _POLL_SECONDS):
            return self._start(wanted)
        waited = time.monotonic() - self._waiting_since
        if waited > _PATIENCE_SECONDS:
            for count in self._counts[1:]:
                if count <= self._free() and self._has_room(count, _SURE_SECONDS):
                    notify(self._run, f"going on with {count} of {wanted} workers: the cluster has no room for more")
                    return self._start(count)
        self._tell(waited)
        return NoopDecision()

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """More workers once there is room for them, right after a checkpoint."""
        saved, self._saved = self._saved, False
        running = worker_group_state.num_workers
        if running >= self._counts[0] or not saved:
            return NoopDecision()
        room = running + self._free()
        count = next((one for one in self._counts if one <= room), running)
        if count <= running:
            return NoopDecision()
        notify(self._run, f"going on with {count} workers instead of {running}: there is room again")
        return ResizeDecision(count, dict(self._each))

    def _start(self, count: int) -> ScalingDecision:
        self._return_room()
        self._waiting_since, self._saved = None, False
        return ResizeDecision(count, dict(self._each))

    def _tell(self, waited: float) -> None:
        least = self._counts[-1]
        needed = f"{least} workers" if least == self._counts[0] else f"{least} to {self._counts[0]} workers"
        each = ", ".join(f"{amount:g} {name}" for name, amount in self._each.items() if amount)
        lacking = f"the cluster has no room for {needed} ({each} each)"
        if waited > self._max_wait:
            self._return_room()
            raise NoRoomError(
                f"{lacking} since {duration(waited)}, longer than scale.max_wait_seconds={self._max_wait:g}; run the "
                "same command again once there is, and it goes on from its last checkpoint, or set scale.workers or "
                "scale.min_workers lower"
            )
        if time.monotonic() - self._told >= _TELL_SECONDS:
            self._told = time.monotonic()
            notify(self._run, f"{lacking}; waiting, for at most {duration(self._max_wait - waited)} more")

    def _has_room(self, count: int, seconds: float) -> bool:
        """Whether so many workers have room, reserved by a placement group."""
        if self._room is not None and len(self._room.bundle_specs) != count:
            self._return_room()
        if self._room is None:
            self._room = placement_group([dict(self._each)] * count)
        return bool(self._room.wait(seconds))

    def _return_room(self) -> None:
        if self._room is not None:
            remove_placement_group(self._room)
            self._room = None

    def _free(self) -> int:
        """For how many more workers the nodes say that they have room; Ray counts a lost one for a while."""
        from ray._private.state import available_resources_per_node

        nodes: Mapping[str, Mapping[str, float]] = available_resources_per_node()
        needed = {name: amount for name, amount in self._each.items() if amount}
        return sum(
            int(min(node.get(name, 0.0) / amount + 1e-6 for name, amount in needed.items())) for node in nodes.values()
        )
