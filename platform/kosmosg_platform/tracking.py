"""Experiment tracking: the section `tracking`, and MLflow behind it.

One training run is one MLflow run, however often it was interrupted: it is found again by a tag. The driver opens and
closes it; only the first worker writes metrics and images to it.

Facts about MLflow 3.17 that this file relies on: it rejects the file store, so the default is sqlite; a killed process
leaves its run RUNNING; steps that a resumed run repeats would be logged twice.
"""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from kosmosg.errors import ConfigError
from kosmosg_platform.config import Section, flatten
from kosmosg_platform.run_paths import RunPaths

RUN_TAG = "kosmosg.run"
PARENT_TAG = "mlflow.parentRunId"
CANDIDATE = "candidate"
_PARAM_LIMIT = 6000  # characters of one value, MLflow's own limit
_PARAM_BATCH = 100  # params in one call, MLflow's own limit
_METRIC_BATCH = 900  # metrics in one call, MLflow's own limit is 1000


class TrackingConfig(Section):
    """Settings of MLflow."""

    uri: str | None = None
    """Tracking server or database URI; null means sqlite at <output>/mlflow.db."""
    experiment: str | None = None
    """MLflow experiment; null means the name of the stage."""
    parent_run: str | None = None
    """Id of an enclosing MLflow run, for example the demo's."""


@dataclass(frozen=True)
class Run:
    """An MLflow run that any process can write to; pickles as two strings."""

    uri: str
    id: str

    @classmethod
    def open(
        cls,
        tracking: TrackingConfig,
        layout: RunPaths,
        name: str,
        key: str | None = None,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        fresh: bool = False,
    ) -> "Run":
        """The run tagged with `key` if there is one, else a new one; `name` is the stage or job.

        `params` are nested; they are logged with dotted names if the run is new. With `fresh` it is always new: a run
        that was started over is not mixed with the discarded one, which stays in MLflow under another tag.
        """
        uri = tracking.uri or layout.tracking
        client = _client(uri)
        experiment = _experiment(client, uri, tracking.experiment or name, layout)
        found = _find(client, experiment, key) if key else None
        if found is not None and fresh:
            client.set_tag(found, RUN_TAG, f"{key}, replaced")
            found = None
        all_tags = {"stage": name, "git.sha": git_sha(), **(tags or {})}
        if key:
            all_tags[RUN_TAG] = key
        if tracking.parent_run:
            all_tags[PARENT_TAG] = tracking.parent_run
        if found is None:
            run_name = f"{name}-{key[:8]}" if key else name
            run = cls(uri, client.create_run(experiment, tags=all_tags, run_name=run_name).info.run_id)
            run.log_params(params or {})
        else:
            run = cls(uri, found)
            client.update_run(found, status="RUNNING")
            for tag, value in all_tags.items():
                client.set_tag(found, tag, value)
        return run

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log nested settings as dotted params. Params cannot change, so call this once per run."""
        from mlflow.entities import Param

        flat = [Param(name, str(value)[:_PARAM_LIMIT]) for name, value in flatten(params).items()]
        for start in range(0, len(flat), _PARAM_BATCH):
            _client(self.uri).log_batch(self.id, params=flat[start : start + _PARAM_BATCH])

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log the metrics of one step."""
        self.log_history([(step, metrics)])

    def log_history(self, history: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Log the metrics of several steps in few calls, since each call costs a database transaction."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric(name, float(value), now, step) for step, metrics in history for name, value in metrics.items()]
        for start in range(0, len(points), _METRIC_BATCH):
            _client(self.uri).log_batch(self.id, metrics=points[start : start + _METRIC_BATCH])

    def last_step(self, metric: str = "loss") -> int:
        """The last step that has been logged, or -1."""
        from mlflow.exceptions import MlflowException

        try:
            history = _client(self.uri).get_metric_history(self.id, metric)
        except MlflowException:
            return -1
        return max((int(point.step) for point in history), default=-1)

    def log_image(self, image: Image.Image, name: str, step: int) -> None:
        """Log a sample image; MLflow shows images with the same name as a series over steps."""
        _client(self.uri).log_image(self.id, image, key=name, step=step, synchronous=True)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Log a file, or a folder with all its contents, as an artifact."""
        client = _client(self.uri)
        (client.log_artifacts if path.is_dir() else client.log_artifact)(self.id, str(path), folder)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        client = _client(self.uri)
        for tag, value in tags.items():
            client.set_tag(self.id, tag, value)

    def close(self, status: str = "FINISHED") -> None:
        """Set the status: FINISHED, FAILED or KILLED (interrupted by the user; opening it again makes it RUNNING)."""
        _client(self.uri).set_terminated(self.id, status)

    def register(self, model: str, export: Path, tags: Mapping[str, str] | None = None) -> str:
        """Register an export folder as a new version of `model` with the alias `candidate`; returns the version.

        With a local store the version points at the folder itself; a server gets the files as artifacts of the run.
        """
        from mlflow.exceptions import MlflowException

        client = _client(self.uri)
        try:
            client.get_registered_model(model)
        except MlflowException:
            client.create_registered_model(model)
        if _is_local(self.uri):
            source = export.absolute().as_uri()
        else:
            self.log_file(export, "export")
            source = f"runs:/{self.id}/export"
        version = client.create_model_version(model, source=source, run_id=self.id, tags=dict(tags or {}))
        client.set_registered_model_alias(model, CANDIDATE, version.version)
        return str(version.version)


def git_sha() -> str:
    """The commit of the running code, `unknown` outside a repository."""
    if sha := os.environ.get("KOSMOSG_GIT_SHA"):
        return sha
    here = Path(__file__).parent
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
    except OSError:
        return "unknown"
    return result.stdout.strip() or "unknown"


def _client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _is_local(uri: str) -> bool:
    return uri.startswith(("sqlite:", "postgresql", "mysql", "mssql"))


def _experiment(client: Any, uri: str, name: str, layout: RunPaths) -> str:
    from mlflow.exceptions import MlflowException

    try:
        if uri == layout.tracking:
            layout.output.absolute().mkdir(parents=True, exist_ok=True)
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        # Without a server, artifacts would go to ./mlruns of the working directory; they belong under `output`.
        location = layout.job("mlartifacts").joinpath(name).as_uri() if _is_local(uri) else None
        return str(client.create_experiment(name, artifact_location=location))
    except (MlflowException, OSError) as error:
        raise ConfigError(f"tracking.uri: {uri} cannot be used ({str(error).splitlines()[0]})") from error


def _find(client: Any, experiment: str, key: str) -> str | None:
    found = client.search_runs([experiment], filter_string=f"tags.`{RUN_TAG}` = '{key}'", max_results=1)
    return str(found[0].info.run_id) if found else None
