"""Turns a checkpoint of a run into an export folder, which users and the next stage load."""

from pathlib import Path
from typing import Any

from kosmosg.errors import CheckpointError
from kosmosg.stages import Stage
from kosmosg_platform.console import echo
from kosmosg_platform.stores.location import told
from kosmosg_platform.training import checkpoints
from kosmosg_platform.training.metrics import last_metrics
from kosmosg_platform.training.recipe import TrainRun
from kosmosg_platform.training.stored_checkpoints import newest_checkpoint


def export(job: TrainRun, folder: Path) -> tuple[Stage, int]:
    """Write the newest checkpoint of a run as an export folder; returns its stage and its number of steps.

    Needs neither cluster nor GPU: the stage is built again and loads the checkpoint's fp32 weights, the averaged ones
    if there are any. Raises CheckpointError if the run has no readable checkpoint.
    """
    source = newest_checkpoint(job.checkpoints, job.key, echo).newest
    if source is None:
        raise CheckpointError(f"{told(job.checkpoints)} holds no readable checkpoint of this run; train it first")
    state = checkpoints.State(source)
    stage = job.build_stage()
    averaged = any(name.startswith("ema.") for name in state)
    checkpoints.load_weights(stage.trainable(), state, "ema" if averaged else "param")
    progress = state.progress
    figures: dict[str, Any] = {
        "stage": job.recipe.stage,
        "steps": progress.step,
        "samples": progress.step * job.experiment.train.global_batch,
        "seconds": round(progress.seconds, 1),
        "averaged_weights": averaged,
        "mlflow_run": job.run.id or "not known when this was written",
    }
    figures |= {name: value for name, value in last_metrics(job).items() if name == "loss"}
    job.recipe.save(stage, folder, figures)
    return stage, progress.step
