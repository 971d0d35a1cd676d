"""A worker's part in saving and finding checkpoints, for runs on a disk and runs in an object store.

On a disk, Ray copies what each worker wrote into the run's folder before training goes on. For a store, training waits
only until each worker has written its part to a local file; `CheckpointUploads` does the rest.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch.distributed as dist
from torch import Tensor

from kosmosg_platform.training import checkpoints
from kosmosg_platform.training.notices import notify
from kosmosg_platform.training.recipe import TrainRun
from kosmosg_platform.training.stability import StoreAway, is_finite
from kosmosg_platform.training.stored_checkpoints import StoredCheckpoints, bring_checkpoint, newest_checkpoint
from kosmosg_platform.training.uploads import CheckpointUploads


class CheckpointSaver:
    """The checkpoints of one run, as one of its workers sees them. All methods but `state` are collective."""

    def __init__(self, job: TrainRun) -> None:
        self._job, self._rank = job, dist.get_rank()
        self._uploads: CheckpointUploads | None = None
        stored = StoredCheckpoints.of(job.checkpoints)
        if stored is not None:
            self._send_left_over(stored)
            self._uploads = CheckpointUploads(stored, job.experiment.train.keep_checkpoints)

    @property
    def _first_of_node(self) -> bool:
        import ray.train

        return bool(ray.train.get_context().get_local_rank() == 0)

    @property
    def state(self) -> tuple[bool, bool]:
        """Whether this worker still uploads a checkpoint, and whether it has given up to."""
        return (False, False) if self._uploads is None else self._uploads.state

    def finish(self) -> StoreAway | None:
        """Wait until all checkpoints are stored; else why they are not, the same on every worker."""
        reason = "" if self._uploads is None else self._uploads.finish()
        return StoreAway(reason) if reason else None

    def newest(self) -> Path | None:
        """The newest readable checkpoint, on this node; the first worker chooses for all of them."""
        found: Path | None = None
        if self._rank == 0:

            def say(text: str) -> None:
                notify(self._job.folder, text)

            found = newest_checkpoint(self._job.checkpoints, self._job.key, say).newest or self._job.resume_from
        chosen: Path | None = agree(found)
        if chosen is not None and self._first_of_node:
            bring_checkpoint(chosen)
        dist.barrier()
        return chosen

    def save(self, progress: checkpoints.TrainingProgress, state: Callable[[], Mapping[str, Tensor]]) -> bool:
        """Save a checkpoint of what `state` gives; False, on every worker, if that is not finite on one of them."""
        import ray.train

        # Workers killed while writing may have left a folder for this step; never write into it.
        name = agree(f"step-{progress.step:08d}-{uuid4().hex[:6]}")
        with self._folder(name) as folder:
            tensors = dict(state())
            mine = checkpoints.write_shard(folder, self._rank, tensors) if is_finite(tensors) else None
            del tensors
            files = [mine] * dist.get_world_size()
            dist.all_gather_object(files, mine)
            written = [file for file in files if file is not None]
            if mine is None or len(written) < len(files):
                return False
            if self._rank == 0:
                checkpoints.write_manifest(folder, progress, written)
            if self._uploads is not None:
                sizes = {file.name: file.bytes for file in written}
                self._uploads.submit(folder, mine.name, sizes if self._rank == 0 else None)
            else:
                checkpoint = ray.train.Checkpoint.from_directory(folder)
                ray.train.report({"step": progress.step}, checkpoint=checkpoint, checkpoint_dir_name=name)
        return True

    @contextmanager
    def _folder(self, name: str) -> Iterator[Path]:
        """Where this worker writes: a temporary folder, from which Ray copies, or that from which it is uploaded."""
        if self._uploads is not None:
            import ray.train

            yield self._job.checkpoints / ray.train.get_context().get_experiment_name() / name
            return
        with tempfile.TemporaryDirectory(prefix="kosmosg-checkpoint-") as temporary:
            yield Path(temporary)

    def _send_left_over(self, stored: StoredCheckpoints) -> None:
        """What an earlier attempt could not upload, from every node that has something of it."""
        for step in (stored.send_left_over, stored.complete_left_over):
            if self._first_of_node:
                step()
            dist.barrier()


def agree(value: Any) -> Any:
    """The first worker's value, on every worker."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
