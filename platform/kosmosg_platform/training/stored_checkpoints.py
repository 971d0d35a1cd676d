"""Checkpoints of a run whose folder lies in an object store, and their copies on a node.

    RUN/checkpoints/<attempt>/step-00002000-ab12cd/state-00000.safetensors ...
    RUN/checkpoints/<attempt>/step-00002000-ab12cd/manifest.json    written last, when all of the others are there
    RUN/checkpoints/<attempt>/step-00002000-ab12cd/damaged.txt      in one that was set aside: why

A folder without a manifest is no checkpoint. A node that resumes brings all files of the newest one and compares each
with the sha256 that the manifest tells; what it has already is not downloaded again.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kosmosg.errors import CheckpointError
from kosmosg_platform.storage import file_sha256, read_json
from kosmosg_platform.stores.bucket import Bucket
from kosmosg_platform.stores.location import told, url_of
from kosmosg_platform.stores.node_copy import send
from kosmosg_platform.training import checkpoints
from kosmosg_platform.training.checkpoints import MANIFEST, REASON, CheckpointSurvey, DamagedCheckpointError

_NAME = re.compile(r"[^/]+/step-(\d+)-[^/]+")


class StoredCheckpoints:
    """The checkpoints of one run. `of` gives None for a run on a disk.

    Raises StoreError from every method if the store stays away.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.bucket = Bucket(url, answered=True)

    @classmethod
    def of(cls, folder: Path) -> "StoredCheckpoints | None":
        """Those in a folder `checkpoints` of a run, if that is the copy of one in a store."""
        url = url_of(folder)
        return None if url is None else cls(folder, url)

    def newest(self, say: Callable[[str], None]) -> CheckpointSurvey:
        """The newest checkpoint, brought to this node and verified; damaged ones are set aside, and told to `say`.

        Raises CheckpointError if there are checkpoints, but none can be read.
        """
        complete, reasons = self._survey()
        for step, name in complete:
            try:
                path = self.bring(name)
            except DamagedCheckpointError as error:
                self.bucket.write(f"{name}/{REASON}", f"{error}\n".encode())
                say(f"{error}; it is set aside, with the reason in its {REASON}")
                reasons.append(str(error))
            except CheckpointError as error:
                say(f"{error}; it is kept but not used")
                reasons.append(str(error))
            else:
                return CheckpointSurvey(path, step, (), tuple(reasons))
        if reasons:
            raise CheckpointError(
                f"no checkpoint of this run can be read: {'; '.join(reasons)}. Nothing was deleted: run the same "
                "command again once one of them can be read, or start over with train.restart=true"
            )
        return CheckpointSurvey(None, 0, (), ())

    def newest_step(self) -> int:
        """Steps of the newest complete checkpoint, which is not read; 0 if there is none."""
        complete, _ = self._survey()
        return complete[0][0] if complete else 0

    def seconds(self) -> float:
        """Time spent training until the newest checkpoint. Raises CheckpointError if there is none."""
        complete, _ = self._survey()
        if not complete:
            raise CheckpointError(f"{told(self.folder)} holds no checkpoint")
        return float(self._manifest(complete[0][1])["progress"]["seconds"])

    def bring(self, name: str) -> Path:
        """A checkpoint on this node, with the content that its manifest tells. Raises CheckpointError."""
        folder = self.folder / name
        for file, expected in self._manifest(name)["files"].items():
            copy = folder / file
            if copy.is_file() and copy.stat().st_size == expected["bytes"] and file_sha256(copy) == expected["sha256"]:
                continue
            try:
                found = self.bucket.download(f"{name}/{file}", copy)
            except FileNotFoundError:
                raise CheckpointError(f"{told(folder)} is not complete: {file} is missing") from None
            if found != expected["sha256"]:
                copy.unlink()
                raise DamagedCheckpointError(
                    f"{told(folder)} is damaged: {file} does not have the content that its manifest says"
                )
        return folder

    def send_left_over(self) -> None:
        """Upload what this node has of newer checkpoints than the store: an earlier attempt could not."""
        newest = self.newest_step()
        for name in self._local():
            step, folder = _step(name), self.folder / name
            if step <= newest or (folder / REASON).is_file():
                continue
            there = self.bucket.list(name)
            for path in sorted(folder.glob("*.safetensors")):
                stored = there.get(f"{name}/{path.name}")
                if stored is None or stored.size != path.stat().st_size:
                    self.bucket.upload(path, f"{name}/{path.name}")

    def complete_left_over(self) -> None:
        """The manifests of `send_left_over`, when every node has sent its files."""
        newest = self.newest_step()
        for name in self._local():
            path = self.folder / name / MANIFEST
            if _step(name) > newest and path.is_file() and not (path.parent / REASON).is_file():
                sizes = {file: int(told["bytes"]) for file, told in read_json(path)["files"].items()}
                if self.has(name, sizes):
                    self.bucket.upload(path, f"{name}/{MANIFEST}")

    def send_records(self) -> None:
        """The files beside the checkpoints (metrics, what was left out) as they are now: no older than a checkpoint."""
        run = self.folder.parent
        for path in sorted(run.iterdir()):
            if path.is_file() and not path.name.startswith(".") and path.suffix != ".tmp":
                send(path)

    def has(self, name: str, sizes: dict[str, int]) -> bool:
        """Whether the store holds these files of a checkpoint, by their sizes in bytes."""
        there = self.bucket.list(name)
        return all((found := there.get(f"{name}/{file}")) and found.size == size for file, size in sizes.items())

    def clean(self, keep: int) -> None:
        """Remove all but the newest `keep` from the store, and what was never completed; what is set aside stays."""
        complete, _ = self._survey()
        if not complete:
            return
        kept = {name for _, name in complete[:keep]}
        for name, files in self._folders().items():
            if name not in kept and _step(name) < complete[0][0] and REASON not in files:
                self.bucket.remove_folder(name, last=MANIFEST)

    def clean_here(self, keep: int) -> None:
        """Remove all but the newest `keep` copies of this node."""
        import shutil

        for name in list(self._local())[keep:]:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def _survey(self) -> tuple[list[tuple[int, str]], list[str]]:
        """Complete checkpoints as (steps, name), the newest first; and why others were set aside."""
        complete, reasons = [], []
        for name, files in self._folders().items():
            if REASON in files:
                reasons.append(self.bucket.read(f"{name}/{REASON}").decode(errors="replace").strip())
            elif MANIFEST in files:
                complete.append((_step(name), name))
        return sorted(complete, reverse=True), reasons

    def _folders(self) -> dict[str, set[str]]:
        """The folders of checkpoints in the store, with the names of their files."""
        found: dict[str, set[str]] = {}
        for path in self.bucket.list():
            folder, _, file = path.rpartition("/")
            if _NAME.fullmatch(folder):
                found.setdefault(folder, set()).add(file)
        return found

    def _local(self) -> Iterator[str]:
        """The checkpoints of which this node has something, the newest first."""
        names = (path.relative_to(self.folder).as_posix() for path in self.folder.glob("*/step-*"))
        return iter(sorted((name for name in names if _NAME.fullmatch(name)), key=_step, reverse=True))

    def _manifest(self, name: str) -> dict[str, Any]:
        folder = self.folder / name
        try:
            self.bucket.download(f"{name}/{MANIFEST}", folder / MANIFEST)
        except FileNotFoundError:
            raise CheckpointError(f"{told(folder)} is not complete: it has no {MANIFEST}") from None
        return checkpoints.read_manifest_of(folder)


def bring_checkpoint(path: Path) -> Path:
    """A checkpoint's folder, with its files on this node if it lies in a store. Raises CheckpointError, StoreError."""
    stored = StoredCheckpoints.of(path.parents[1])
    return path if stored is None else stored.bring(path.relative_to(path.parents[1]).as_posix())


def newest_checkpoint(folder: Path, key: str, say: Callable[[str], None]) -> CheckpointSurvey:
    """`checkpoints.newest` of a run, on a disk or in a store; the newest checkpoint lies on this node then."""
    stored = StoredCheckpoints.of(folder)
    return checkpoints.newest(folder, key, say) if stored is None else stored.newest(say)


def _step(name: str) -> int:
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else 0
