"""Files of a store whose sha256 is known, kept on the node: shards of datasets.

    $KOSMOSG_CACHE/shards/<sha256>          the file
    $KOSMOSG_CACHE/shards/<sha256>.used     touched whenever the file is opened

All processes of a node share the folder. A file is compared with its sha256 while it is downloaded, and appears when it
is complete. Before a download that would go beyond `$KOSMOSG_CACHE_GB` (default 100), the files that were not used for
longest are removed; a process that has one of them open goes on reading it.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kosmosg.errors import ConfigError, DataError
from kosmosg.node_cache import cache_folder
from kosmosg_platform.stores.bucket import Bucket

LIMIT = "KOSMOSG_CACHE_GB"
_DEFAULT_GB = 100.0


def cached(bucket: Bucket, name: str, size: int, sha256: str) -> Path:
    """A local copy of a stored file.

    Raises:
        DataError: the store has no such file, or one of other content.
        StoreError: the store does not answer.
    """
    copy = cache_folder() / "shards" / sha256
    if not copy.is_file():
        with _locked(copy):
            if not copy.is_file():  # another process may have been faster
                _make_room(copy.parent, size)
                _download(bucket, name, copy, sha256)
    copy.with_suffix(".used").touch()
    return copy


def _download(bucket: Bucket, name: str, copy: Path, sha256: str) -> None:
    draft = copy.with_suffix(".draft")
    place = f"{bucket.url.partition('?')[0]}/{name}"
    try:
        found = bucket.download(name, draft)
    except FileNotFoundError:
        raise DataError(f"there is no {place}, which its manifest lists; build the dataset again, or copy it") from None
    if found != sha256:
        draft.unlink()
        raise DataError(
            f"{place} has the sha256 {found}, its manifest says {sha256}: it is damaged, or another file of the same "
            "name; delete it and run the same build again, which builds only what is missing, or copy the file again"
        )
    draft.replace(copy)


def _make_room(folder: Path, size: int) -> None:
    """Remove the files that were not used for longest until `size` bytes more are within the limit."""
    room = limit_bytes() - size
    files = sorted((used.stat().st_mtime_ns, used) for used in folder.glob("*.used"))
    sizes = {used: _size(used.with_suffix("")) for _, used in files}
    total = sum(sizes.values())
    for _, used in files:
        if total <= room:
            return
        used.with_suffix("").unlink(missing_ok=True)
        used.with_suffix(".lock").unlink(missing_ok=True)
        used.unlink(missing_ok=True)
        total -= sizes[used]


def limit_bytes() -> int:
    """What the cache may hold. Raises ConfigError."""
    told = os.environ.get(LIMIT, "")
    try:
        limit = float(told or _DEFAULT_GB)
        if not limit > 0:
            raise ValueError
    except ValueError:
        raise ConfigError(f"{LIMIT}: {told!r} is no number of gigabytes above 0") from None
    return int(limit * 1e9)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@contextmanager
def _locked(copy: Path) -> Iterator[None]:
    """One process of the node downloads a file; the others wait for it, as it ends with its process."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    with copy.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
