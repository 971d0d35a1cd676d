"""What is remembered of a run: the section `tracking`, and MLflow behind it."""

from kosmosg_platform.config import Section


class TrackingConfig(Section):
    """MLflow's part of a run."""

    uri: str | None = None
    """Tracking server or database; null means sqlite at <output>/mlflow.db."""
    experiment: str | None = None
    """MLflow experiment; null means the name of the stage."""
    parent_run: str | None = None
    """Id of an enclosing MLflow run, for example the demo's."""
