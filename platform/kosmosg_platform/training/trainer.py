"""Start a training run and follow it until it ends: the driver's side of `kosmosg_platform.training.loop`.

A run is identified by its key, a digest of everything that affects its result. The same settings under the same output
are therefore the same run: an interrupted one resumes, a finished one is not trained again. How it is distributed
(workers, ZeRO stage, micro-batches) and how often it saves are not part of the key, so it may resume with more workers.
"""

import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from kosmosg.data.files.store_file import StoreError, store_patience
from kosmosg.errors import CheckpointError, ConfigError, KosmosGError, UnavailableError
from kosmosg_platform.cluster.resources import require_resources
from kosmosg_platform.cluster.session import connect
from kosmosg_platform.config import digest, plain, to_yaml
from kosmosg_platform.console import echo, quiet_libraries
from kosmosg_platform.faults import disk_error, told_in_a_sentence
from kosmosg_platform.progress import duration, follow_metrics
from kosmosg_platform.run_paths import STAGES, RunPaths
from kosmosg_platform.storage import read_json, write_json, write_text
from kosmosg_platform.stores.folder_sync import FolderSync, kept_in_step
from kosmosg_platform.stores.link import make_link
from kosmosg_platform.stores.location import told
from kosmosg_platform.stores.node_copy import bring_folder, drop
from kosmosg_platform.tracking import Run
from kosmosg_platform.tracking.spool import read_run
from kosmosg_platform.training import checkpoints, engine_config, stopping
from kosmosg_platform.training.changed_settings import changed_settings
from kosmosg_platform.training.lr_schedule import batch_plan, worker_counts
from kosmosg_platform.training.metrics import last_metrics
from kosmosg_platform.training.model_card import PURPOSE
from kosmosg_platform.training.notices import FILE as NOTICES
from kosmosg_platform.training.notices import follow_notices
from kosmosg_platform.training.recipe import KEPT_APART, Recipe, TrainingExperiment, TrainRun
from kosmosg_platform.training.replacement import FILE as REPLACED
from kosmosg_platform.training.resume_point import base_of, find_resume_point
from kosmosg_platform.training.skipped_data import FILE as SKIPPED
from kosmosg_platform.training.stability import TrainingDivergedError
from kosmosg_platform.training.stored_checkpoints import StoredCheckpoints
from kosmosg_platform.training.worker_entry import packed, start

FINISHED = "finished.json"
REGISTERED = "kosmosg"
"""Name of the trained model in MLflow's registry; models of the stages before the last are `kosmosg-STAGE`."""
_FILES = (FINISHED, "run.json", "experiment.yaml", "metrics.jsonl", REPLACED, NOTICES, SKIPPED, *stopping.FILES)
_WRITTEN = (*_FILES, "checkpoints", "samples", "export", "tracking")
# Settings of `train` that affect logging or how batches are split, but not the result.
_FREE = {
    "micro_batch",
    "checkpoint_every",
    "log_every",
    "sample_every",
    "validate_every",
    "max_replaced",
    "max_skipped_updates",
    "max_rollbacks",
    "keep_checkpoints",
    "resume_from",
    "restart",
}
_SMALL = 8  # workers up to which a report should not wait for Ray's two-second health check


@dataclass(frozen=True)
class FitResult:
    """The result of a finished run."""

    export: Path
    """Folder to load the model from."""
    run_id: str
    """MLflow run; empty if the tracking server has not been reached yet."""
    metrics: dict[str, float]
    """The last logged metrics: loss, samples_per_second, ..."""
    seconds: float
    """Time spent training, over all attempts, without start-up."""
    folder: Path
    """The run's own folder: experiment.yaml, metrics.jsonl, samples/."""
    skipped: bool = False
    """Whether the run was already finished and not trained again."""


def fit(recipe: Recipe, experiment: TrainingExperiment) -> FitResult:
    """Train a stage to the end, resume it, or return the result if it is already finished.

    Raises ConfigError and other KosmosGErrors for user errors; other exceptions are raised unchanged.
    """
    # Ray's workers have working directories of their own, so paths must be absolute.
    experiment = experiment.model_copy(update={"output": experiment.output.absolute()})
    batch_plan(experiment.train, experiment.scale.workers)
    if (experiment.scale.min_workers or 1) > experiment.scale.workers:
        raise ConfigError(
            f"scale.min_workers: {experiment.scale.min_workers} is more than scale.workers, {experiment.scale.workers}"
        )
    engine_config.check(experiment.engine, experiment.scale.use_gpu)
    fingerprint = recipe.fingerprint()
    base = base_of(recipe.stage, experiment.train, fingerprint)
    origin = find_resume_point(experiment.train, base)
    resumed = None if origin is None else origin.identity
    key = run_key(recipe.stage, experiment, fingerprint, resumed)
    layout = RunPaths(experiment.output)
    folder = layout.run(recipe.stage, key)
    waits = store_patience(experiment.scale.store_retry_s)
    with told_in_a_sentence(folder), _alone(folder), waits, kept_in_step(folder, KEPT_APART) as sync:
        if (folder / FINISHED).is_file() and not experiment.train.restart:
            echo(f"{recipe.stage}: already finished with these settings, see {told(folder)}")
            make_link(layout.job(recipe.stage) / "export", bring_folder(folder / "export"))
            return _result(folder, skipped=True)
        _set_start_up(experiment.scale.workers)
        with connect(experiment):
            require_resources(experiment.scale.training_workers())
            if experiment.train.restart:
                _forget(folder)
            run = _open_run(recipe, experiment, fingerprint, key)
            known = {"uri": run.uri, "data": fingerprint.get("data"), "resumed_from": resumed}
            write_json(folder / "run.json", known)
            if origin is not None:
                run.set_tags({"resumed.from": f"{origin.key} at step {origin.step}"})
                if not (folder / SKIPPED).is_file():
                    origin.skipped.write(folder)
            job = TrainRun(recipe, experiment, key, run, base, origin.checkpoint if origin else None)
            with run.closing():
                seconds = _train(job, sync)
                _finish(job, fingerprint, seconds)
        return _result(folder)


def run_key(
    stage: str, experiment: TrainingExperiment, fingerprint: Mapping[str, Any], origin: Mapping[str, Any] | None = None
) -> str:
    """The identity of a run: twelve characters of a digest of everything that affects its result.

    `origin` is the identity of the `ResumePoint` that it goes on from.
    """
    train = {name: value for name, value in plain(experiment.train).items() if name not in _FREE}
    shaping = {"stage": stage, "train": train, "precision": experiment.engine.precision, "fingerprint": fingerprint}
    if origin is not None:
        shaping["resumed_from"] = origin
    return digest(shaping)[:12]


def _set_start_up(workers: int) -> None:
    """Ray Train reads its environment when the first worker starts: quick reports for few, patience for many."""
    if workers <= _SMALL:
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    else:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "900")
    quiet_libraries()


def _train(job: TrainRun, sync: FolderSync | None) -> float:
    """Run the loop on the workers; returns the seconds trained so far over all attempts."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.config import LoggingConfig

    from kosmosg_platform.training.ray_trainer import FaultTolerantTrainer

    experiment, stage = job.experiment, job.recipe.stage
    scale = experiment.scale
    keep = experiment.train.keep_checkpoints
    stored = StoredCheckpoints.of(job.checkpoints)
    if stored is None:
        found = checkpoints.newest(job.checkpoints, job.key, lambda text: echo(f"{stage}: {text}"), set_aside=True)
        checkpoints.clean(job.checkpoints, found, keep)
        step = found.step
    else:
        step = stored.newest_step()  # what it holds is verified where it is needed
    if step:
        echo(f"{stage}: resuming from step {step} of {experiment.train.steps}")
    elif job.resume_from is not None:
        echo(f"{stage}: going on from {job.resume_from}")
    stopping.clear(job.folder)
    trainer = FaultTolerantTrainer(
        start,
        scale,
        job.folder,
        job.checkpoints,
        worker_counts(experiment.train, scale.workers, scale.min_workers),
        train_loop_config=packed(job),
        torch_config=TorchConfig(backend="nccl" if scale.use_gpu else "gloo"),
        run_config=RunConfig(
            # Ray would resume a name used before from its own records; our checkpoints decide instead.
            name=f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid4().hex[:4]}",
            storage_path=str(job.checkpoints),
            failure_config=FailureConfig(max_failures=scale.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=keep),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    with follow_metrics(stage, experiment.train.steps, job.metrics), follow_notices(job.folder, stage):
        try:
            _interruptible(trainer.fit, lambda: stopping.ask_to_stop(job.folder), scale.stop_seconds)
        except Exception as error:
            mistake = _told(error, job.folder)
            if mistake is None:
                raise
            raise mistake from None
    if sync is not None:
        sync.once()  # what the workers of other nodes have written last
    if (ended := stopping.read_end(job.folder)) is not None:
        kind, reason = ended
        if kind == "diverged":
            raise TrainingDivergedError(reason)
        if kind == "away":
            raise StoreError(reason)
        echo(f"{stage}: {reason}")
        raise KeyboardInterrupt
    if stored is not None and stored.newest_step() >= experiment.train.steps:
        return stored.seconds()
    final = checkpoints.survey(job.checkpoints, job.key)
    if final.newest is None or final.step < experiment.train.steps:
        raise CheckpointError(
            f"training ended, but its last checkpoint cannot be read: {'; '.join(final.unreadable) or 'there is none'}"
        )
    checkpoints.clean(job.checkpoints, final, keep)
    return checkpoints.read_progress(final.newest).seconds


def _interruptible(call: Callable[[], object], ask_to_stop: Callable[[], None], seconds: float) -> None:
    """Run a blocking call of Ray so that Ctrl-C and SIGTERM end the program as they should.

    On the main thread Ray Train would take over Ctrl-C and end the process with code 0. On another thread it leaves
    signals alone; the workers end with the driver, and the next start resumes from their last checkpoint. SIGTERM, with
    which schedulers announce the end, first asks the workers to stop and leaves them `seconds` to save.
    """
    failures: list[BaseException] = []

    def target() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - handed to the caller below
            failures.append(error)

    terminated: list[float] = []
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    on_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, lambda *_: terminated.append(time.monotonic())) if on_main else None
    asked = False
    try:
        while thread.is_alive():
            thread.join(0.2)
            if terminated and not asked:
                asked = True
                ask_to_stop()
            if terminated and time.monotonic() > terminated[0] + seconds:
                raise KeyboardInterrupt
    finally:
        if on_main:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    if failures:
        raise failures[0]


def _open_run(recipe: Recipe, experiment: TrainingExperiment, fingerprint: Mapping[str, Any], key: str) -> Run:
    """Open the run's MLflow run, and write its settings to a file beside its checkpoints."""
    tags = {
        "config.sha256": digest(experiment),
        "world_size": str(experiment.scale.workers),
        "zero_stage": str(experiment.engine.zero_stage),
        "data.manifest.sha256": digest(fingerprint.get("data", {})),
        "parent.sha256": str(fingerprint.get("parent", "")),
        **recipe.lineage(),
    }
    layout, train = RunPaths(experiment.output), experiment.train
    folder = layout.run(recipe.stage, key)
    name = f"{recipe.stage} {train.steps} x {train.global_batch} ({key[:4]})"
    params = changed_settings(experiment, recipe.stage)
    run = Run.open(experiment.tracking, layout, recipe.stage, folder, key, name, tags, params)
    settings = folder / "experiment.yaml"
    write_text(settings, to_yaml(experiment))
    run.log_file(settings)
    if datasets := recipe.tracked_datasets():
        run.log_inputs(datasets)
    return run


def _finish(job: TrainRun, fingerprint: Mapping[str, Any], seconds: float) -> None:
    stage = job.recipe.stage
    name = REGISTERED if stage == STAGES[-1] else f"{REGISTERED}-{stage}"
    bring_folder(job.export)
    job.run.log_model(name, job.export, job.key, PURPOSE.get(stage, stage), {"run.key": job.key, "stage": stage})
    metrics = {name: value for name, value in last_metrics(job).items() if name != "step"}
    finished = {
        "run_id": job.run.id,
        "metrics": metrics,
        "seconds": seconds,
        "fingerprint": fingerprint,
    }
    write_json(job.folder / FINISHED, finished)
    make_link(RunPaths(job.experiment.output).job(stage) / "export", job.export)
    echo(f"{stage}: {job.experiment.train.steps} steps in {duration(seconds)}, model in {told(job.export)}", "success")


def _result(folder: Path, skipped: bool = False) -> FitResult:
    finished = read_json(folder / FINISHED)
    # A tracking server that was away at the end may have taken the run since.
    run_id = finished["run_id"] or read_run(folder / "tracking").get("id", "")
    return FitResult(folder / "export", run_id, finished["metrics"], finished["seconds"], folder, skipped)


def _told(error: BaseException, folder: Path) -> KosmosGError | UnavailableError | None:
    """What is behind a failure of the workers, if a sentence tells it: a user error, a store or disk that is away."""
    controller = getattr(error, "controller_failure", None)  # what decides on the number of workers
    for failure in (*getattr(error, "worker_failures", {}).values(), controller):
        cause = getattr(failure, "_base_exc", failure)
        if isinstance(cause, KosmosGError | UnavailableError):
            return cause
        if isinstance(cause, BaseException) and (full := disk_error(cause, folder)) is not None:
            return full
    return None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Prevent two processes from training the same run. The lock is released when its process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"output: another process is already training this run in {folder}; wait for it or stop it"
            ) from None
        yield


def _forget(folder: Path) -> None:
    """Delete what a run writes, and nothing else."""
    for name in _WRITTEN:
        drop(folder / name)
