"""What was learnt by reading a whole file, kept once per node: its sha256, or where the records in it lie.

Ranks and data loaders of one node open the same large files. The first process to ask does the work under a lock, the
others wait for its answer. An answer holds as long as the file keeps its path, size, timestamps and inode; it is kept
in `$KOSMOSG_CACHE/files/HOST` (default ~/.cache/kosmosg), and where that folder cannot be written, in the process only.
"""

import fcntl
import hashlib
import json
import os
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WAIT_SECONDS = 60.0  # for another process at the same file: it may have been suspended
SMALL = 1 << 20  # bytes: reading a smaller file again costs less than remembering it on disk

FileStatus = tuple[int, int, int, int]

_DIGESTS: dict[tuple[str, FileStatus], str] = {}


def cache_folder() -> Path:
    """The folder for everything that can be fetched or computed again: `$KOSMOSG_CACHE` or ~/.cache/kosmosg."""
    return Path(os.environ.get("KOSMOSG_CACHE", Path.home() / ".cache" / "kosmosg"))


def file_status(path: Path | int) -> FileStatus:
    """Size in bytes, mtime and ctime in ns, inode: as long as these stay, the content is taken to be the same.

    ctime as well: a program that writes in place can reset the mtime, as copying tools do.
    """
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def file_digest(path: Path) -> str:
    """sha256 of a file's content, as 64 hexadecimal digits; the file is read once per node until it changes."""
    path = path.resolve()
    key = (str(path), file_status(path))
    if key not in _DIGESTS:
        large = key[1][0] >= SMALL
        _DIGESTS[key] = (once_per_node(path, "sha256", _sha256) if large else _sha256(path)).decode()
    return _DIGESTS[key]


def digest_again(path: Path) -> str:
    """`file_digest` from the file itself, whatever has been kept: for a file that is about to be refused."""
    return _sha256(path).decode()


def once_per_node(path: Path, what: str, compute: Callable[[Path], bytes]) -> bytes:
    """`compute(path)`, called by one process of this node until the file changes.

    Args:
        path: the file.
        what: names the answer; another `compute` needs another name.
        compute: reads the file. What it raises is raised, and nothing is kept.
    """
    path = path.resolve()
    status = file_status(path)
    name = hashlib.sha256(f"{what}\0{path}".encode(errors="surrogateescape")).hexdigest()
    record = cache_folder() / "files" / socket.gethostname() / name[:2] / name
    found = _read(record, status)
    if found is not None:
        return found
    with _locked(record):
        found = _read(record, status)
        if found is None:
            found = compute(path)
            if file_status(path) == status:
                _write(record, status, found)
    return found


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().encode()


def _read(record: Path, status: FileStatus) -> bytes | None:
    """The answer, if the record holds one for a file of this status and is itself intact."""
    try:
        head, _, answer = record.read_bytes().partition(b"\n")
        told = json.loads(head)
        fits = told == {"status": list(status), "crc32": zlib.crc32(answer)}
    except (OSError, ValueError):
        return None  # no record, or a damaged one: the file itself is read
    return answer if fits else None


def _write(record: Path, status: FileStatus, answer: bytes) -> None:
    draft = record.with_name(f".{record.name}.{os.getpid()}")
    head = json.dumps({"status": list(status), "crc32": zlib.crc32(answer)}).encode()
    try:
        draft.write_bytes(head + b"\n" + answer)
        draft.replace(record)
    except OSError:  # a full or read-only disk: every process then reads the file itself
        with suppress(OSError):
            draft.unlink()


@contextmanager
def _locked(record: Path) -> Iterator[None]:
    """Hold the record's lock; go on without it if the folder cannot be written, or its holder does not answer."""
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        lock = record.with_suffix(".lock").open("w")
    except OSError:
        yield
        return
    with lock:  # closing the file releases the lock
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.02)
            except OSError:
                break  # a file system without locks
        yield


__all__ = ["cache_folder", "digest_again", "file_digest", "file_status", "once_per_node"]
