"""What a run does when training breaks down: skip updates, then roll back, then end with one sentence.

Every update is checked on all workers, without communication of its own: a loss that is not finite makes every gradient
NaN (`poison`), and the norm of all gradients, which clipping needs anyway, tells every worker in the same step. The
engine skips such an update. After `train.max_skipped_updates` of them in a row, or when the state is not finite when it
should be saved, the run goes back to its last checkpoint and leaves out the data since then. It does so at most
`train.max_rollbacks` times from the same checkpoint; then it ends, and nothing that it saved is lost.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kosmosg.errors import KosmosGError
from kosmosg_platform.console import echo, plural
from kosmosg_platform.training.notices import notify
from kosmosg_platform.training.recipe import TrainRun
from kosmosg_platform.training.skipped_data import SkippedData
from kosmosg_platform.training.stored_checkpoints import newest_checkpoint


class TrainingDivergedError(KosmosGError):
    """Training broke down, and rolling back did not help."""


@dataclass(frozen=True)
class Stopped:
    """The workers stopped because they were asked to; the same on every worker."""

    step: int
    """Steps taken."""
    saved: int
    """The step of the newest checkpoint."""


@dataclass(frozen=True)
class StoreAway:
    """The workers stopped because the store did not answer for too long; the same on every worker."""

    reason: str


@dataclass(frozen=True)
class Setback:
    """Why a worker cannot go on from where it is; the same on every worker."""

    step: int
    """The failed step, 0-based."""
    reason: str


class SkippedUpdates:
    """Counts updates that were skipped in a row.

    An update that fp16 skipped while it can still lower its loss scale does not count: that is how it finds the scale.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._first = 0
        self.in_row = 0

    def add(self, step: int, applied: bool, adjusting: bool) -> Setback | None:
        """The outcome of one step; a Setback after too many skipped ones."""
        if applied:
            self.in_row = 0
            return None
        if adjusting:
            return None
        self._first = self._first if self.in_row else step
        self.in_row += 1
        if self.in_row < self._limit:
            return None
        return Setback(step, f"loss or gradients of steps {self._first} to {step} were not finite")


def poison(loss: Tensor) -> Tensor:
    """A factor of the loss: 1 if the loss is finite, else NaN, and so is every gradient."""
    return 1.0 + 0.0 * loss.detach()


def is_finite(tensors: dict[str, Tensor]) -> bool:
    """Whether every number in every tensor is finite."""
    # Both extremes in one pass, thirty times as fast as `isfinite` of every number; NaN is passed on.
    extremes = (torch.aminmax(tensor) for tensor in tensors.values() if tensor.numel())
    return all(bool(torch.isfinite(one)) for pair in extremes for one in pair)


def roll_back(job: TrainRun, setback: Setback) -> str | None:
    """Record a rollback, after which the workers start again from the last checkpoint.

    The first worker decides for all. Returns why the run has to end instead, if it was rolled back often enough.
    """
    ended: list[Any] = [None]
    if dist.get_rank() == 0:
        found = newest_checkpoint(job.checkpoints, job.key, echo)
        skipped = SkippedData.read(job.folder)
        train = job.experiment.train
        if skipped.rollbacks_to(found.step) < train.max_rollbacks:
            skipped.after(found.step, setback.step, setback.reason).write(job.folder)
            told = f"back to the checkpoint at step {found.step}, the data since then are left out"
            notify(job.folder, f"{setback.reason}: {told}")
        else:
            ended[0] = (
                f"training breaks down: {setback.reason}, also after {plural(train.max_rollbacks, 'rollback')} to the "
                f"checkpoint at step {found.step}, each with other data. Go on from it with a lower rate (train.lr is "
                f"{train.lr:g}; train.resume_from={job.folder}), or look at the data (kosmosg trace --run {job.folder} "
                f"--step {setback.step}). Nothing was deleted"
            )
    dist.broadcast_object_list(ended, src=0)
    reason: str | None = ended[0]
    return reason
