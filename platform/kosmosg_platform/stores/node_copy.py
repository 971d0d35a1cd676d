"""Single files between a store and their copies on this node. For a path on a disk there is nothing to do.

bring(path)    before reading: the copy becomes what the store has, and disappears if the store has none
send(path)     after writing: the store gets what the copy is
drop(path)     instead of removing the copy alone
"""

import fcntl
import shutil
from functools import lru_cache
from pathlib import Path

from kosmosg_platform.stores.bucket import Bucket
from kosmosg_platform.stores.location import url_of


@lru_cache(maxsize=256)
def bucket_of(folder: Path) -> Bucket | None:
    """The place in a store whose copy a folder is; one connection for each folder and process."""
    url = url_of(folder)
    return None if url is None else Bucket(url)


def bring(path: Path) -> Path:
    """Make the copy of a file what the store has; gives the path. Raises StoreError."""
    bucket = bucket_of(path.parent)
    if bucket is not None:
        try:
            bucket.download(path.name, path)
        except FileNotFoundError:
            path.unlink(missing_ok=True)
    return path


def bring_folder(folder: Path, under: str = "") -> Path:
    """`bring` for all files of a folder, or those in one of its subfolders, that have another size here.

    One process of a node does it; the others wait.
    """
    bucket = bucket_of(folder)
    if bucket is None:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name, stored in bucket.list(under).items():
            copy = folder / name
            if not copy.is_file() or copy.stat().st_size != stored.size:
                bucket.download(name, copy)
    return folder


def send(path: Path) -> None:
    """Write the copy of a file to its store. Raises StoreError."""
    bucket = bucket_of(path.parent)
    if bucket is not None:
        bucket.upload(path, path.name)


def send_folder(folder: Path, last: str = "") -> None:
    """Write all files of a folder to its store, `last` behind the others; files that are not here are removed there."""
    bucket = bucket_of(folder)
    if bucket is None:
        return
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    for name in sorted(bucket.list().keys() - names):
        bucket.remove(name)
    for name in sorted(names, key=lambda name: (name == last, name)):
        bucket.upload(folder / name, name)


def drop(path: Path) -> None:
    """Remove a file or a folder, here and in its store. Raises StoreError."""
    bucket = bucket_of(path.parent)
    if bucket is not None:
        bucket.remove_folder(path.name)
        bucket.remove(path.name)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
