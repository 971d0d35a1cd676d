"""How many failures of the workers a run survives: those since its newest checkpoint count, not those of all its days.

`scale.max_failures` is there for a run that fails again and again at the same place. A run of weeks on hundreds of GPUs
loses more workers than that, one now and then, and gets on in between.

Fact about Ray 2.60 that this file relies on: the controller asks one failure policy at each failure, and Ray's own
counts failures in `_worker_group_failures` and `_preemption_failures`.
"""

from pathlib import Path
from typing import Any

from ray.train import FailureConfig
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy

from kosmosg.errors import UnavailableError
from kosmosg_platform.training.checkpoints import MANIFEST
from kosmosg_platform.training.stored_checkpoints import StoredCheckpoints


class FailuresSinceCheckpoint(DefaultFailurePolicy):  # type: ignore[misc] # Ray's class is untyped
    """Ray's policy, whose counts begin again with every new checkpoint.

    Args:
        config: `max_failures`, -1 for any number.
        folder: the run's checkpoints, in folders `ATTEMPT/step-00000000-...`, or the copy of those in a store.
    """

    def __init__(self, config: FailureConfig, folder: Path) -> None:
        super().__init__(config)
        self._folder = folder
        self._saved = newest_step(folder)

    def make_decision(self, training_failed_error: Any) -> Any:
        """Whether the workers start again."""
        try:
            saved = newest_step(self._folder)
        except UnavailableError:  # without the store nobody knows of a new one
            saved = self._saved
        if saved > self._saved:
            self._saved = saved
            self._worker_group_failures = self._preemption_failures = 0
        return super().make_decision(training_failed_error)


def newest_step(folder: Path) -> int:
    """Steps of the newest complete checkpoint by its name, which is not read; 0 if there is none.

    Raises UnavailableError for a store that is away.
    """
    if (stored := StoredCheckpoints.of(folder)) is not None:
        return stored.newest_step()
    return max((int(path.parent.name.split("-")[1]) for path in folder.glob(f"*/step-*/{MANIFEST}")), default=0)
