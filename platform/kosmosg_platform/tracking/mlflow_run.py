"""The calls of MLflow: applies the entries of a spool to a run. Everything here can be repeated without harm.

Facts about MLflow 3.17 that this file relies on: it rejects the file store, so the default is sqlite; a metric is
identified by (key, timestamp, step, value), so a batch that is sent again changes nothing; a request that timed out may
still be carried out, so what is created is looked for first; two processes that make the same new database both fail.
"""

import fcntl
import logging
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from kosmosg_platform.tracking.logged_model import log_model
from kosmosg_platform.tracking.settings import is_database, sqlite_file
from kosmosg_platform.tracking.spool import Entry, read_run, write_run

RUN_TAG = "kosmosg.run"
ATTEMPT_TAG = "kosmosg.attempt"
PARENT_TAG = "mlflow.parentRunId"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # opens on runs and curves, not on chats
SECONDS = 10  # for one request
_PARAM_LIMIT = 6000  # characters of one value, MLflow's own limit
_PARAM_BATCH = 100  # params in one call, MLflow's own limit
_METRIC_BATCH = 900  # metrics in one call, MLflow's own limit is 1000
_NETWORK = {
    "Connection refused": "connection refused",
    "NewConnectionError": "no connection",
    "NameResolutionError": "no such host",
    "imed out": f"no answer within {SECONDS} s",
    "database is locked": "the database is locked",
}
"""Signs in the long messages of the libraries below, and what they mean."""
_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST")


class Unreachable(Exception):
    """The tracking server did not answer, or not with an answer: to be tried again."""


class NotYet(Unreachable):
    """Something has to come first that another process sends, such as the run itself."""


class Refused(Exception):
    """The tracking server will never take this entry."""


class MlflowRun:
    """The MLflow run of a spool folder."""

    def __init__(self, folder: Path, uri: str, attempt: str) -> None:
        self._folder, self._uri, self._attempt = folder, uri, attempt
        self._id = read_run(folder).get("id", "")
        self._ops: dict[str, Callable[[Entry], None]] = {
            "open": self._open,
            "params": self._params,
            "tags": lambda entry: self._set_tags(self._run_id(), entry["tags"]),
            "inputs": self._inputs,
            "image": self._image,
            "file": self._file,
            "model": self._model,
            "close": lambda entry: self._client().set_terminated(self._run_id(), entry["status"], entry["time"]),
        }

    def apply(self, entries: Sequence[Entry]) -> int:
        """Apply the first of the entries, and as many of those behind it as go into the same request.

        Returns how many. Raises Unreachable or Refused; then none of them counts as sent.
        """
        batch = _leading_metrics(entries)
        with _translated(self._uri):
            if batch:
                self._metrics(batch)
                return len(batch)
            entry = entries[0]
            if entry["op"] not in self._ops:
                raise Refused(f"this release knows no entry {entry['op']!r}")
            self._ops[entry["op"]](entry)
            return 1

    def _client(self) -> Any:
        return client(self._uri)

    def _run_id(self) -> str:
        """The id of the run, which another process may have opened."""
        if not self._id:
            self._id = read_run(self._folder).get("id", "")
        if not self._id:
            experiments = [one.experiment_id for one in self._client().search_experiments(max_results=1000)]
            found = self._tagged(experiments, ATTEMPT_TAG, self._attempt)
            if not found:
                raise NotYet("the run has not been opened")
            self._id = str(found[0].info.run_id)
        return self._id

    def _open(self, entry: Entry) -> None:
        api = self._client()
        experiment = self._experiment(entry["experiment"], entry["artifacts"])
        known = self._tagged([experiment], RUN_TAG, entry["key"]) if entry["key"] else []
        mine = self._tagged([experiment], ATTEMPT_TAG, entry["attempt"])
        if not mine and entry["fresh"]:
            for run in known:
                api.set_tag(run.info.run_id, RUN_TAG, f"{entry['key']}, replaced")
            known = []
        tags = {**entry["tags"], ATTEMPT_TAG: entry["attempt"]}
        if entry["key"]:
            tags[RUN_TAG] = entry["key"]
        if entry["parent"]:
            tags[PARENT_TAG] = self._parent(entry["parent"], experiment)
        if mine or known:
            self._id = str((mine or known)[0].info.run_id)
            api.update_run(self._id, status="RUNNING")
            self._set_tags(self._id, tags)
        else:
            api.create_run(experiment, start_time=entry["time"], tags=tags, run_name=entry["name"])
            # An earlier request that timed out may have been carried out after all: one of them is the run.
            first, *others = self._tagged([experiment], ATTEMPT_TAG, entry["attempt"])
            self._id = str(first.info.run_id)
            for other in others:
                api.delete_run(other.info.run_id)
        write_run(self._folder, {**read_run(self._folder), "uri": self._uri, "id": self._id})

    def _experiment(self, name: str, artifacts: str) -> str:
        from mlflow.exceptions import MlflowException

        api = self._client()
        found = api.get_experiment_by_name(name)
        if found is None:
            try:
                # Without a server, artifacts would go to ./mlruns of the working directory; they belong to the output.
                place = f"{artifacts}/{name}" if is_database(self._uri) else None
                return str(api.create_experiment(name, artifact_location=place, tags=EXPERIMENT_TAGS))
            except MlflowException as error:
                found = api.get_experiment_by_name(name)  # another process may have been faster
                if found is None:
                    raise error
        if found.lifecycle_stage != "active":
            raise Unreachable(f"experiment {name!r} was deleted; restore it, or set tracking.experiment")
        return str(found.experiment_id)

    def _tagged(self, experiments: Sequence[str], tag: str, value: str) -> list[Any]:
        """Runs with this tag, the oldest first."""
        runs = self._client().search_runs(list(experiments), filter_string=f"tags.`{tag}` = '{value}'", max_results=50)
        return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))

    def _parent(self, name: str, experiment: str) -> str:
        """A parent's id; its key is enough where it had no id when the child was started."""
        if len(name) == 32:
            return name
        found = self._tagged([experiment], RUN_TAG, name)
        if not found:
            raise NotYet(f"the parent run {name} has not been opened")
        return str(found[0].info.run_id)

    def _set_tags(self, run: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client().log_batch(run, tags=[RunTag(name, str(value)) for name, value in tags.items()])

    def _params(self, entry: Entry) -> None:
        from mlflow.entities import Param

        flat = [Param(name, str(value)[:_PARAM_LIMIT]) for name, value in entry["params"].items()]
        for start in range(0, len(flat), _PARAM_BATCH):
            self._client().log_batch(self._run_id(), params=flat[start : start + _PARAM_BATCH])

    def _metrics(self, entries: Sequence[Entry]) -> None:
        from mlflow.entities import Metric

        points = [
            Metric(name, float(value), entry["time"], entry["step"])
            for entry in entries
            for name, value in entry["metrics"].items()
        ]
        for start in range(0, len(points), _METRIC_BATCH):
            self._client().log_batch(self._run_id(), metrics=points[start : start + _METRIC_BATCH])

    def _inputs(self, entry: Entry) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(one["name"], one["digest"], "local", one["source"], profile=one["profile"]),
                [InputTag("mlflow.data.context", one["context"])],
            )
            for one in entry["datasets"]
        ]
        self._client().log_inputs(self._run_id(), inputs)

    def _image(self, entry: Entry) -> None:
        """An image as MLflow's log_image stores it, but under a name that a second try does not change."""
        from mlflow.tracking.multimedia import compress_image_size
        from PIL import Image

        run, name = self._run_id(), entry["name"].replace("/", "~")
        mark = uuid.uuid5(uuid.NAMESPACE_URL, f"{run}/{name}/{entry['step']}")
        stem = f"{name}+step+{entry['step']}+timestamp+{entry['time']}+{mark}"
        with tempfile.TemporaryDirectory(prefix="kosmosg-image-") as folder, Image.open(_existing(entry)) as image:
            image.save(Path(folder) / f"{stem}.png")
            compress_image_size(image.convert("RGB")).save(Path(folder) / f"{stem}+compressed.webp")
            self._client().log_artifacts(run, folder, "images")
        self._set_tags(run, {"mlflow.loggedImages": "true"})

    def _file(self, entry: Entry) -> None:
        path, api = _existing(entry), self._client()
        (api.log_artifacts if path.is_dir() else api.log_artifact)(self._run_id(), str(path), entry["folder"])

    def _model(self, entry: Entry) -> None:
        _existing(entry)
        log_model(self._client(), self._run_id(), entry)


@cache
def client(uri: str) -> Any:
    """MLflow's client, set up to give up early: this process has other things to do than to wait for a server."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(SECONDS))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # prints a traceback for a locked database
    with _alone_with(sqlite_file(uri)):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def _alone_with(database: Path | None) -> Iterator[None]:
    """MLflow creates the tables of a new sqlite file here; a second process would find half of them and fail."""
    if database is None:
        yield
        return
    with database.with_name(f".{database.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    """Errors of MLflow and of the network as Unreachable or Refused."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        message = _first_line(error)
        if error.error_code in _REFUSALS:
            raise Refused(message) from error
        raise Unreachable(message) from error
    except (FileNotFoundError, ValueError) as error:
        raise Refused(_first_line(error)) from error
    except OSError as error:  # requests' exceptions are OSErrors
        raise Unreachable(_first_line(error)) from error
    except (Unreachable, Refused):
        raise
    except Exception as error:  # a mistake of ours or of MLflow's must end neither the thread nor the job
        raise Refused(f"{type(error).__name__}: {_first_line(error)}") from error


def _leading_metrics(entries: Sequence[Entry]) -> list[Entry]:
    batch: list[Entry] = []
    points = 0
    for entry in entries:
        points += len(entry.get("metrics", ()))
        if entry["op"] != "metrics" or (batch and points > _METRIC_BATCH):
            break
        batch.append(entry)
    return batch


def _existing(entry: Entry) -> Path:
    path = Path(entry["path"])
    if not path.exists():
        raise Refused(f"{path} is no longer there")
    return path


def _first_line(error: BaseException) -> str:
    """The message of an exception in one line that a user can read."""
    whole = str(error).strip()
    text = (whole.splitlines() or [type(error).__name__])[0]
    for sign, meaning in _NETWORK.items():
        if sign in whole:
            return meaning
    return text[:300]
