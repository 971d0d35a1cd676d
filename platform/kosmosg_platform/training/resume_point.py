"""`train.resume_from`: go on from the checkpoint of another run, with other settings of the optimizer.

A run resumes by itself from its own checkpoints. With a changed setting, such as a lower `train.lr`, it is another run
and starts at step 0, unless it is told which run's checkpoint to go on from. Its identity then contains that checkpoint
(run and step, not its path), so the same command resumes it like any other run. It never writes into the other run's
folder.

Weights, optimizer states, step and loss scale are taken over, and so are the data that rollbacks left out. Model, data,
and the order of samples must therefore be the same (`base_of`); the learning rate and its schedule, clipping, weight
decay, betas, averaging and `steps` may change.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kosmosg.errors import ConfigError
from kosmosg_platform.config import digest
from kosmosg_platform.console import echo
from kosmosg_platform.training import checkpoints
from kosmosg_platform.training.lr_schedule import TrainConfig
from kosmosg_platform.training.skipped_data import SkippedData


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint of another run that a run goes on from."""

    checkpoint: Path
    key: str
    """Of the run that wrote it."""
    step: int
    skipped: SkippedData
    """Data that the other run left out."""

    @property
    def identity(self) -> dict[str, Any]:
        """What the identity of the new run contains of it."""
        return {"key": self.key, "step": self.step}


def base_of(stage: str, train: TrainConfig, fingerprint: Mapping[str, Any]) -> str:
    """What runs must share to go on from each other's checkpoints: model, data, and the order of samples."""
    order = {"seed": train.seed, "global_batch": train.global_batch}
    return digest({"stage": stage, "fingerprint": fingerprint, "order": order})


def find_resume_point(train: TrainConfig, base: str) -> ResumePoint | None:
    """The checkpoint that `train.resume_from` names: the folder itself, or the newest one of a run's folder.

    Raises ConfigError if there is none, or one that this run cannot go on from.
    """
    if train.resume_from is None:
        return None
    place = Path(train.resume_from).absolute()
    if (place / checkpoints.MANIFEST).is_file():
        checkpoint, run = place, place.parents[2]
    elif (place / "checkpoints").is_dir():
        found = checkpoints.newest(place / "checkpoints", place.name, echo).newest
        if found is None:
            raise ConfigError(f"train.resume_from: the run in {place} has no checkpoint")
        checkpoint, run = found, place
    else:
        raise ConfigError(
            f"train.resume_from: {place} is neither a checkpoint nor the folder of a run with checkpoints"
        )
    progress = checkpoints.read_progress(checkpoint, verify=True)
    if not progress.base:
        echo(f"{checkpoint} was written by an earlier release and does not tell its data; make sure they are the same")
    elif progress.base != base:
        raise ConfigError(
            f"train.resume_from: {checkpoint} was trained from another model, on other data or with another "
            "train.seed or train.global_batch than this run; take the settings of its experiment.yaml and change only "
            "those of the optimizer"
        )
    if progress.step >= train.steps:
        raise ConfigError(f"train.resume_from: {checkpoint} is at step {progress.step}, train.steps is {train.steps}")
    return ResumePoint(checkpoint, progress.key, progress.step, SkippedData.read(run))
