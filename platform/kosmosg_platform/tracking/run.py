"""What a job logs to: a run that takes everything at once and sends it in the background."""

import dataclasses
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from kosmosg_platform.config import flatten
from kosmosg_platform.run_paths import RunPaths
from kosmosg_platform.tracking.provenance import source_tags
from kosmosg_platform.tracking.sender import Sender, report_unsent
from kosmosg_platform.tracking.settings import TrackingConfig, artifacts_beside
from kosmosg_platform.tracking.spool import Entry, Spool, read_entries, read_run, write_run

FOLDER = "tracking"
_TAG_LIMIT = 5000  # characters, what MLflow takes at least
_SHORT = 5.0  # seconds that an interrupted job waits for the tracking server
_SENDERS: dict[tuple[str, str], Sender] = {}  # of this process, by folder and writer


@dataclass(frozen=True)
class Run:
    """An MLflow run that any process can write to, whether the tracking server is there or not; pickles as a few
    strings.

    Nothing here waits for the server but `flush` and `close`, and those only for as long as the settings say.
    """

    uri: str
    spool: str
    """Folder in which everything is kept until it is sent."""
    attempt: str = ""
    """What tells the MLflow run of this spool from others of the same key."""
    flush_seconds: float = 30.0
    writer: str = "driver"

    @classmethod
    def open(
        cls,
        tracking: TrackingConfig,
        layout: RunPaths,
        job: str,
        folder: Path,
        key: str = "",
        name: str | None = None,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> "Run":
        """The run tagged with `key` if there is one, else a new one; returns before the server knows of it.

        `folder` is the folder of the job's results; what is logged is kept in its subfolder `tracking`. The first time
        that a folder is used, the run is a new one: one that was started over is not mixed with the discarded one,
        which stays in MLflow under another tag. `params` are nested and are logged with dotted names.

        Raises ConfigError for a store that cannot be used.
        """
        uri = tracking.store(layout.tracking)
        spool = folder.absolute() / FOLDER
        known = read_run(spool)
        fresh = not known
        attempt = known.get("attempt") or uuid4().hex
        run = cls(uri, str(spool), attempt, tracking.flush_seconds)
        run._sender()  # makes the folder, and a lock in it
        # A run that goes on in another store is another run there.
        same = {"id": known["id"]} if known.get("uri") == uri and "id" in known else {}
        write_run(spool, {"uri": uri, "attempt": attempt, **same})
        run._append(
            {
                "op": "open",
                "attempt": attempt,
                "fresh": fresh,
                "key": key,
                "experiment": tracking.experiment,
                "artifacts": artifacts_beside(uri, layout.job("mlartifacts")).as_uri(),
                "name": tracking.name or name or (f"{job} ({key[:4]})" if key else job),
                "parent": tracking.parent_run or "",
                "tags": {"stage": job, **source_tags(tracking.description), **(tags or {})},
            }
        )
        if fresh and params:
            run.log_params(params)
        return run

    @property
    def id(self) -> str:
        """The id of the MLflow run; empty as long as the server has not been reached."""
        return read_run(Path(self.spool)).get("id", "")

    def wait_for_id(self, seconds: float) -> str:
        """The id, as soon as there is one; empty if there is none in time."""
        until = time.monotonic() + seconds
        while not self.id and time.monotonic() < until:
            time.sleep(0.02)
        return self.id

    def as_writer(self, writer: str) -> "Run":
        """The same run, for another process: each has a file of its own."""
        return dataclasses.replace(self, writer=writer)

    def claim(self) -> bool:
        """Whether this process writes under this name; False if another one does."""
        place = (self.spool, self.writer)
        if place in _SENDERS:
            return True
        try:
            _SENDERS[place] = Sender(Spool(Path(self.spool), self.writer), self.uri, self.attempt)
        except BlockingIOError:
            return False
        return True

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log nested settings as dotted params. Params cannot change, so call this once per run."""
        flat = {name: str(value) for name, value in flatten(params).items()}
        if flat:
            self._append({"op": "params", "params": flat})

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log the metrics of one step."""
        numbers = {name: _number(float(value)) for name, value in metrics.items()}
        if numbers:
            self._append({"op": "metrics", "step": step, "metrics": numbers})

    def log_inputs(self, datasets: Iterable[Mapping[str, str]]) -> None:
        """Log the datasets that the run reads: `name`, `digest`, `source`, `profile` (JSON) and `context` of each."""
        self._append({"op": "inputs", "datasets": [dict(one) for one in datasets]})

    def log_image(self, path: Path, name: str, step: int) -> None:
        """Log an image file; MLflow shows images with the same name as a series over steps."""
        self._append({"op": "image", "path": str(path.absolute()), "name": name, "step": step})

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Log a file, or a folder with all its contents, as an artifact. It is read when it is sent."""
        self._append({"op": "file", "path": str(path.absolute()), "folder": folder})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; later values replace earlier ones."""
        self._append({"op": "tags", "tags": dict(tags)})

    def log_model(
        self, model: str, export: Path, key: str, description: str = "", tags: Mapping[str, str] | None = None
    ) -> None:
        """Log an export folder as a model of the run and as a new version of the registered `model`.

        The version gets the alias `candidate`, and `champion` too if no version has that. `key` identifies the export:
        the same one is registered once.
        """
        self._append(
            {
                "op": "model",
                "model": model,
                "path": str(export.absolute()),
                "key": key,
                "description": description,
                "tags": dict(tags or {}),
            }
        )

    def logged(self) -> "LoggedSoFar":
        """What any process has logged to this run, sent or not: what a resumed run repeats is not logged twice."""
        return LoggedSoFar.of(read_entries(Path(self.spool)))

    def flush(self, seconds: float | None = None) -> int:
        """Wait for the server, `flush_seconds` at most; returns how many entries it has not got."""
        return self._sender().flush(self.flush_seconds if seconds is None else seconds)

    def close(self, status: str = "FINISHED") -> None:
        """Set the status: FINISHED, FAILED or KILLED (interrupted by the user; opening it again makes it RUNNING).

        What the server does not take in time is reported, and stays in the spool.
        """
        self._append({"op": "close", "status": status})
        left = self.flush(self.flush_seconds if status == "FINISHED" else min(self.flush_seconds, _SHORT))
        if left:
            report_unsent(Path(self.spool), self.uri, left)
        self.release()

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Close the run with a status that reflects how the block ended, and the reason if it failed."""
        try:
            yield
        except KeyboardInterrupt:
            self.close("KILLED")
            raise
        except BaseException as error:
            self.set_tags({"failure": f"{type(error).__name__}: {error}"[:_TAG_LIMIT]})
            self.close("FAILED")
            raise
        self.close("FINISHED")

    def release(self) -> None:
        """End this process's part in the run; other processes may then send what is left."""
        sender = _SENDERS.pop((self.spool, self.writer), None)
        if sender is not None:
            sender.close()

    def _append(self, entry: Entry) -> None:
        self._sender().append({"time": int(time.time() * 1000), **entry})

    def _sender(self) -> Sender:
        place = (self.spool, self.writer)
        if place not in _SENDERS:
            _SENDERS[place] = Sender(Spool.claim(Path(self.spool), self.writer), self.uri, self.attempt)
        return _SENDERS[place]


@dataclass(frozen=True)
class LoggedSoFar:
    """What a run has logged."""

    last_step: Mapping[str, int]
    """The last step of each metric."""
    images: frozenset[tuple[str, int]]
    """Name and step of each image."""

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> "LoggedSoFar":
        last: dict[str, int] = {}
        images = set()
        for entry in entries:
            if entry["op"] == "metrics":
                last.update({name: max(entry["step"], last.get(name, -1)) for name in entry["metrics"]})
            elif entry["op"] == "image":
                images.add((entry["name"], entry["step"]))
        return cls(last, frozenset(images))

    def new(self, metrics: Mapping[str, float], step: int) -> dict[str, float]:
        """Those of the metrics that were not logged for this step."""
        return {name: value for name, value in metrics.items() if step > self.last_step.get(name, -1)}

    def under(self, prefix: str) -> list[int]:
        """The last steps of the metrics whose names begin with `prefix`."""
        return [step for name, step in self.last_step.items() if name.startswith(f"{prefix}/")]


def _number(value: float) -> float | str:
    """A number as JSON has it: NaN and the infinities are written as text, which `float` reads again."""
    return value if math.isfinite(value) else str(value)
