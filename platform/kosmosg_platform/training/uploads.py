"""Uploads of checkpoints while training goes on: one thread in each worker of a run whose folder lies in a store.

A worker writes its part of a checkpoint into the copy of the run's folder on its node, which is all that training waits
for. The thread uploads it; that of the first worker then waits for the parts of all others, uploads the manifest, which
makes it a checkpoint, and removes old ones. At most one checkpoint is under way: the next one is saved when all workers
are done with it.
"""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist

from kosmosg.errors import UnavailableError
from kosmosg_platform.training.checkpoints import MANIFEST
from kosmosg_platform.training.stored_checkpoints import StoredCheckpoints

_POLL_SECONDS = 0.2


class CheckpointUploads:
    """The uploads of one worker.

    Args:
        stored: the run's checkpoints.
        keep: how many of them the store keeps.
    """

    def __init__(self, stored: StoredCheckpoints, keep: int) -> None:
        self._stored, self._keep = stored, keep
        self._thread: threading.Thread | None = None
        self._given_up = threading.Event()
        self.failure = ""
        """Why the store could not be reached, in one sentence; nothing is uploaded any more."""

    @property
    def state(self) -> tuple[bool, bool]:
        """Whether an upload is under way, and whether one has failed."""
        return self._thread is not None and self._thread.is_alive(), bool(self.failure)

    def submit(self, folder: Path, mine: str, sizes: Mapping[str, int] | None) -> None:
        """Upload one file of a checkpoint; with `sizes` (bytes of the files of all workers) the manifest as well.

        Waits for an earlier upload, of which there is none if `state` was asked on all workers.
        """
        if self._thread is not None:
            self._thread.join()
        name = folder.relative_to(self._stored.folder).as_posix()
        self._stored.clean_here(keep=2)  # the one that was uploaded last, in case that this one is not
        self._thread = threading.Thread(
            target=self._upload, args=(name, mine, sizes), name="checkpoint-upload", daemon=True
        )
        self._thread.start()

    def finish(self) -> str:
        """Wait until every worker has uploaded what it has. Collective; the same answer on all: a failure, or ""."""
        while True:
            busy, failed = self.state
            sums = torch.tensor([float(busy), float(failed)])
            sums = sums.cuda() if dist.get_backend() == "nccl" else sums
            dist.all_reduce(sums)
            if sums[1] or not sums[0]:
                break
            time.sleep(_POLL_SECONDS)
        self._given_up.set()
        failures = [self.failure] * dist.get_world_size()
        dist.all_gather_object(failures, self.failure)
        return next((one for one in failures if one), "")

    def _upload(self, name: str, mine: str, sizes: Mapping[str, int] | None) -> None:
        stored = self._stored
        try:
            stored.bucket.upload(stored.folder / name / mine, f"{name}/{mine}")
            if sizes is not None and self._all_there(lambda: stored.has(name, dict(sizes))):
                stored.send_records()
                stored.bucket.upload(stored.folder / name / MANIFEST, f"{name}/{MANIFEST}")
                stored.clean(self._keep)
        except UnavailableError as error:
            self.failure = str(error)
        except Exception as error:  # noqa: BLE001 - a thread's error would be lost; the run must end with it
            self.failure = f"a checkpoint could not be uploaded: {type(error).__name__}: {error}"

    def _all_there(self, question: Callable[[], bool]) -> bool:
        """Wait for the other workers' files; False if the run has ended instead."""
        while not question():
            if self._given_up.wait(_POLL_SECONDS):
                return False
        return True
