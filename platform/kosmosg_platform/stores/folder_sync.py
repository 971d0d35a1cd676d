"""Keeps a folder the same on a node and in its store: small files that a job writes, and that other nodes read.

    FOLDER/.synced.json    what this node has last seen of every file, here and in the store
    FOLDER/.sync.lock      held by the one process of the node that does it

A file that has changed here since is sent, one that has changed in the store is brought, and what was removed on one
side is removed on the other. Where both have changed, the node that is at work is right, except when it begins: then
the store is, as another node may have gone on meanwhile.
"""

import fcntl
import json
import os
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from kosmosg.errors import UnavailableError
from kosmosg_platform.storage import write_json
from kosmosg_platform.stores.bucket import Bucket, StoredFile
from kosmosg_platform.stores.location import url_of

RECORD, LOCK = ".synced.json", ".sync.lock"
OF_SYNC = frozenset({RECORD, LOCK})
"""Files that belong to this module alone."""
SECONDS = 2.0
_BYTES_PER_SECOND = 2**19  # of one growing file: metrics of days would otherwise be sent every two seconds
_AT_THE_END = 5.0  # seconds for which a store is asked again when the job has failed or was interrupted

Stamp = tuple[int, int]


class FolderSync:
    """One folder. `claim` gives None where there is nothing to do.

    Args:
        folder: the local copy.
        url: what it is the copy of.
        skip: names in it, files or folders, that others take care of.
    """

    def __init__(self, folder: Path, url: str, skip: Collection[str] = ()) -> None:
        self.folder, self.skip = folder, {RECORD, LOCK, *skip}
        self.bucket = Bucket(url)
        self.error: UnavailableError | None = None
        """Why it has ended, if the store stayed away."""
        self._known: dict[str, tuple[Stamp, StoredFile]] = self._read_record()
        self._sent_at: dict[str, float] = {}
        self._turn = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock: Any = None

    @classmethod
    def claim(cls, folder: Path, skip: Collection[str] = ()) -> Self | None:
        """For the copy of a folder in a store that no other process of this node keeps; else None."""
        url = url_of(folder)
        if url is None:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            return None
        found = cls(folder, url, skip)
        found._lock = lock
        return found

    def begin(self) -> None:
        """The first round; then go on in the background. Raises StoreError."""
        self.once(store_is_right=True)
        self._thread = threading.Thread(target=self._run, name="folder-sync", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """The last round; other processes may go on then. Raises StoreError."""
        self._ended.set()
        try:
            if self._thread is not None:
                self._thread.join()
            if self.error is not None:
                raise self.error
            self.once()
        finally:
            if self._lock is not None:
                self._lock.close()

    def _run(self) -> None:
        while not self._ended.wait(SECONDS):
            try:
                self.once(in_turn=True)
            except UnavailableError as error:
                self.error = error
                return

    def once(self, store_is_right: bool = False, in_turn: bool = False) -> None:
        """One round; with `in_turn`, a large file that grows is not sent in every one. Raises StoreError."""
        with self._turn:
            here, there = self._here(), self._there()
            before = dict(self._known)
            for name in sorted({*here, *there, *self._known}):
                if in_turn and time.monotonic() < self._sent_at.get(name, 0.0):
                    continue
                self._settle(name, here.get(name), there.get(name), store_is_right)
            if self._known != before:
                content = {name: [*stamp, *stored] for name, (stamp, stored) in self._known.items()}
                write_json(self.folder / RECORD, content)

    def _settle(self, name: str, here: Stamp | None, there: StoredFile | None, store_is_right: bool) -> None:
        stamp, stored = self._known.get(name, (None, None))
        changed_here, changed_there = here != stamp, there != stored
        if not (changed_here or changed_there):
            return
        copy = self.folder / name
        if changed_there and (store_is_right or not changed_here):
            if there is None:
                copy.unlink(missing_ok=True)
            else:
                try:
                    self.bucket.download(name, copy)
                except FileNotFoundError:
                    return  # removed meanwhile: the next round sees it
            here = _stamp(copy)
        elif here is None:
            self.bucket.remove(name)
            there = None
        else:
            try:
                self.bucket.upload(copy, name)
            except FileNotFoundError:
                return
            self._sent_at[name] = time.monotonic() + here[0] / _BYTES_PER_SECOND
            there = self.bucket.stat(name)
        if here is None or there is None:
            self._known.pop(name, None)
        else:
            self._known[name] = (here, there)

    def _here(self) -> dict[str, Stamp]:
        found = {}
        for place, folders, files in os.walk(self.folder):
            top = Path(place) == self.folder
            folders[:] = [name for name in folders if not (top and name in self.skip)]
            for name in files:
                if name.endswith((".tmp", ".lock")) or (top and name in self.skip):
                    continue
                path = Path(place, name)
                stamp = _stamp(path)
                if stamp is not None and not path.is_symlink():
                    found[path.relative_to(self.folder).as_posix()] = stamp
        return found

    def _there(self) -> dict[str, StoredFile]:
        return {name: found for name, found in self.bucket.list().items() if name.split("/")[0] not in self.skip}

    def _read_record(self) -> dict[str, tuple[Stamp, StoredFile]]:
        try:
            told = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
            return {name: ((one[0], one[1]), StoredFile(one[2], one[3])) for name, one in told.items()}
        except (OSError, ValueError, LookupError, TypeError):
            return {}  # none yet, or damaged: every file is compared anew


@contextmanager
def kept_in_step(folder: Path, skip: Collection[str] = ()) -> Iterator[FolderSync | None]:
    """Keep a folder the same as its store during the block; nothing (None) for a folder on a disk, or one that another
    process of this node keeps.

    Raises StoreError if the store stays away; what was written is in the local copy then, and sent the next time.
    """
    sync = FolderSync.claim(folder, skip)
    if sync is None:
        yield None
        return
    sync.begin()
    try:
        yield sync
    except BaseException:
        sync.bucket.store.patience = min(sync.bucket.store.patience, _AT_THE_END)  # the program is to end
        try:
            sync.end()
        except UnavailableError as error:  # the first reason is the one to be told
            sync.error = error
        raise
    sync.end()


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns
