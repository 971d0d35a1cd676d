"""Experiment tracking with MLflow, which no job ever waits for.

What a job logs is appended to a file of its run (`spool`) and sent from there by a thread (`sender`), in order and
once, whether the tracking server is there, slow, gone, or comes back after the job has ended. `settings` is the section
`tracking`, `run` what jobs write to, `mlflow_run` the calls of MLflow, `provenance` where a run came from,
`logged_model` the export of a run as a model that MLflow can load (`pyfunc_model`), `registry` the names `models:/...`,
`system_metrics` the load of the nodes.
"""

from kosmosg_platform.tracking.run import Run
from kosmosg_platform.tracking.settings import TrackingConfig

__all__ = ["Run", "TrackingConfig"]
