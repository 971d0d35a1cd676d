"""The section `tracking`, and which tracking store it means."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from kosmosg.errors import ConfigError
from kosmosg_platform.config import Section
from kosmosg_platform.stores.location import url_of

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_SERVERS = ("http", "https", "databricks")


class TrackingConfig(Section):
    """Settings of MLflow."""

    uri: str | None = None
    """Tracking server or database URI; null means MLFLOW_TRACKING_URI if that is set, else sqlite at
    <output>/mlflow.db, and must be given where `output` is in an object store."""
    experiment: str = Field(default="kosmosg", min_length=1)
    """MLflow experiment: one for all jobs of a project."""

    @field_validator("experiment", mode="before")
    @classmethod
    def _null_is_the_default(cls, value: object) -> object:
        return "kosmosg" if value is None else value  # settings saved by earlier releases have null

    name: str | None = None
    """Name of the run in MLflow; null means one made of the job, its size and its key."""
    description: str | None = None
    """What the run is for, shown on its page; Markdown. Without it the page shows the command."""
    parent_run: str | None = None
    """Id of an enclosing MLflow run, for example the demo's, or the value of that run's tag `kosmosg.run`."""
    flush_seconds: float = Field(default=30.0, ge=0)
    """How long the end of a job waits for the tracking server to take what it has not got yet."""
    system_metrics_every: float = Field(default=15.0, ge=0)
    """Seconds between samples of each node's CPU, memory, disk, network and GPU load; 0 records none."""

    def store(self, default: str, create: bool = True) -> str:
        """The URI that runs are written to. Raises ConfigError for one that MLflow has no store for.

        With `create`, a database file that is not there is made, so that a folder that cannot be written is told now.
        """
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI") or default
        if not uri:
            raise ConfigError(
                "tracking.uri: output is in an object store, where MLflow's database cannot lie; give the address of a "
                "tracking server (http://HOST:PORT), or a database such as sqlite:////path/mlflow.db"
            )
        scheme = urlsplit(uri).scheme.partition("+")[0]
        if scheme not in (*DATABASES, *_SERVERS) and uri not in _SERVERS:
            raise ConfigError(
                f"tracking.uri: {uri} cannot be used; give the address of a tracking server (http://HOST:PORT) or a "
                "database such as sqlite:////path/mlflow.db"
            )
        if create and (file := sqlite_file(uri)) is not None:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("ab"):
                    pass
            except OSError as error:
                raise ConfigError(f"tracking.uri: {uri} cannot be used ({error.strerror}); give another") from error
        return uri


def artifacts_beside(uri: str, folder: Path) -> Path:
    """Where a store without a server keeps artifacts: `folder`, or beside its database if that is in an object store.

    What MLflow writes into the local copy of a stored folder would never reach the store.
    """
    if url_of(folder) is None:
        return folder
    file = sqlite_file(uri)
    return (file.parent if file is not None else Path.cwd()).absolute() / folder.name


def is_database(uri: str) -> bool:
    """Whether this machine writes to the store itself, with no server between."""
    return uri.partition(":")[0].partition("+")[0] in DATABASES


def sqlite_file(uri: str) -> Path | None:
    """The file of a sqlite store; None for every other store."""
    scheme, _, path = uri.partition("://")
    return Path(path[1:]) if scheme.partition("+")[0] == "sqlite" and path[1:] else None
