"""Ray Train's trainer, with this platform's decisions about failures: how many workers, and when they hang.

Facts about Ray 2.60 that this file relies on: the trainer makes an actor of `TrainController` and runs it; the
controller keeps the workers that failed until it starts new ones, so a policy that waits for room would wait for that
of its own; its loop does not pause while a policy decides to do nothing; what a policy raises ends the run with a
ControllerError that carries it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController

from kosmosg_platform.cluster.session import ScaleConfig
from kosmosg_platform.training.failure_count import FailuresSinceCheckpoint
from kosmosg_platform.training.stall_watch import StallWatch
from kosmosg_platform.training.worker_count import WorkerCountPolicy


class FaultTolerantController(TrainController):  # type: ignore[misc] # Ray's class is untyped
    """The process that starts the workers and looks after them."""

    def __init__(self, scaling_policy: WorkerCountPolicy, callbacks: Sequence[Any], **others: Any) -> None:
        super().__init__(scaling_policy=scaling_policy, callbacks=[*callbacks, scaling_policy], **others)

    def _make_and_handle_scaling_decision_for_non_running_worker_group(self, controller_state: Any) -> Any:
        if self._worker_group is not None:
            self._shutdown_worker_group()
        return super()._make_and_handle_scaling_decision_for_non_running_worker_group(controller_state)


class FaultTolerantTrainer(TorchTrainer):  # type: ignore[misc] # Ray's class is untyped
    """Ray Train's TorchTrainer with the settings of `scale`.

    Args:
        run: the run's folder.
        checkpoints: its checkpoints.
        counts: all numbers of workers that are possible, the wanted one first.
    """

    def __init__(
        self, work: Any, scale: ScaleConfig, run: Path, checkpoints: Path, counts: Sequence[int], **others: Any
    ) -> None:
        resources = {"CPU": scale.cpus_per_worker, **({"GPU": 1} if scale.use_gpu else {})}
        scaling = ScalingConfig(num_workers=counts[0], use_gpu=scale.use_gpu, resources_per_worker=resources)
        super().__init__(work, scaling_config=scaling, **others)
        self._scale, self._run, self._checkpoints, self._counts = scale, run, checkpoints, counts

    def _create_default_callbacks(self) -> list[Any]:
        # The cleaner serves clusters that outlive a controller that was killed; workers end with it anyway.
        callbacks = [
            one for one in super()._create_default_callbacks() if not isinstance(one, PlacementGroupCleanerCallback)
        ]
        if seconds := self._scale.stall_seconds:
            long = max(self._scale.long_stall_seconds, self._scale.store_retry_s + seconds)
            callbacks.append(StallWatch(self._run, seconds, long))
        return callbacks

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        arguments["scaling_policy"] = WorkerCountPolicy(
            self.scaling_config, self._counts, self._run, self._scale.max_wait_seconds
        )
        arguments["failure_policy"] = FailuresSinceCheckpoint(self.run_config.failure_config, self._checkpoints)
        variables = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"} | get_env_vars_to_propagate()
        here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
        options = {"num_cpus": 0, "label_selector": here, "runtime_env": {"env_vars": variables}}
        controller = ray.remote(**options)(FaultTolerantController).remote(**arguments)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())
