"""From a checkpoint of a run to an export folder that users and the next stage load."""

from pathlib import Path
from typing import Any

from kosmosg.errors import CheckpointError
from kosmosg.stages import Stage
from kosmosg_platform.console import echo
from kosmosg_platform.training import checkpoints
from kosmosg_platform.training.metrics import last_metrics
from kosmosg_platform.training.recipe import TrainRun


def export(job: TrainRun, folder: Path) -> tuple[Stage, int]:
    """Write the newest checkpoint of a run as an export folder; gives the stage in it and the steps it has behind it.

    Needs neither cluster nor GPU: the stage is built anew and gets the checkpoint's fp32 weights, averaged ones if any.
    Raises CheckpointError when the run has no readable checkpoint.
    """
    source = checkpoints.newest(job.checkpoints, job.key, echo).newest
    if source is None:
        raise CheckpointError(f"{job.checkpoints} holds no readable checkpoint of this run; train it first")
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
        "mlflow_run": job.run.id,
    }
    figures |= {name: value for name, value in last_metrics(job).items() if name == "loss"}
    job.recipe.save(stage, folder, figures)
    return stage, progress.step
