"""The first thing that runs on a training worker.

Ray Train's controller, a process between driver and workers, unpickles what the workers are to run. If that names a
module with the model in it, the controller imports torch, transformers and diffusers, which it never uses, and no
worker starts before it has. So this module imports nothing, and what the workers get is bytes to the controller.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kosmosg_platform.training.recipe import TrainRun


def packed(job: "TrainRun") -> dict[str, bytes]:
    """The configuration of `start`."""
    from ray import cloudpickle  # a job's recipe may be a class of the program's main module

    return {"job": cloudpickle.dumps(job)}


def start(config: Mapping[str, Any]) -> None:
    """What Ray Train runs on every worker: `loop.work` with the job that `packed` was given."""
    from ray import cloudpickle

    from kosmosg_platform.training.loop import work

    work(cloudpickle.loads(config["job"]))


__all__ = ["packed", "start"]
