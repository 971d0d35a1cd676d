"""What a process has logged and the tracking server has not got yet: an append-only file for each writer.

    FOLDER/<writer>.jsonl            entries, one JSON object a line, oldest first; never changed, only appended to
    FOLDER/<writer>.sent             how many bytes of it were sent
    FOLDER/<writer>.rejected.jsonl   entries that the tracking server refused, each with its reason
    FOLDER/run.json                  the store and the MLflow run, once there is one

A writer holds a lock on its file, so a file whose lock is free belongs to a process that has ended, and another one may
send what is left of it.
"""

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from kosmosg_platform.storage import write_json

RUN = "run.json"

Entry = dict[str, Any]


class Spool:
    """The entries of one writer.

    Raises BlockingIOError if another process (or another object of this one) has it open.
    """

    def __init__(self, folder: Path, writer: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.writer = folder, writer
        self.path = folder / f"{writer}.jsonl"
        self._sent = folder / f"{writer}.sent"
        self._file = self.path.open("ab")
        self._lock = threading.Lock()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise
        self._drop_incomplete_line()

    @classmethod
    def claim(cls, folder: Path, writer: str) -> Self:
        """The spool of this name, or with a number behind it where a process that does not end still holds that."""
        for number in range(1, 100):
            try:
                return cls(folder, writer if number == 1 else f"{writer}.{number}")
            except BlockingIOError:
                continue
        raise BlockingIOError(f"{folder / writer}.jsonl and 98 more are held by other processes")

    def append(self, entry: Entry) -> None:
        """Add an entry. It survives the death of the process at once, that of the machine after `sync`."""
        line = json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()

    def sync(self) -> None:
        """Write everything through to the disk."""
        with self._lock:
            os.fsync(self._file.fileno())

    @property
    def sent(self) -> int:
        """Bytes of the file that were sent."""
        return int(self._sent.read_text()) if self._sent.is_file() else 0

    def mark(self, offset: int) -> None:
        """Record that everything before `offset` was sent."""
        partial = self._sent.with_name(f".{self._sent.name}")
        partial.write_text(str(offset))
        partial.replace(self._sent)

    def pending(self, limit: int) -> list[tuple[Entry, int]]:
        """The next entries to send, at most `limit`, each with the offset behind it."""
        found: list[tuple[Entry, int]] = []
        with self.path.open("rb") as file:
            offset = self.sent
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n") or len(found) == limit:
                    break
                offset += len(line)
                found.append((json.loads(line), offset))
        return found

    def remaining(self) -> int:
        """How many entries were not sent."""
        with self.path.open("rb") as file:
            file.seek(self.sent)
            return sum(1 for line in file if line.endswith(b"\n"))

    def reject(self, entry: Entry, reason: str) -> None:
        """Keep an entry that the tracking server refuses, beside the others."""
        with self.path.with_name(f"{self.writer}.rejected.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({**entry, "reason": reason}, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Release the lock."""
        self._file.close()

    def _drop_incomplete_line(self) -> None:
        """A process that was killed while it wrote leaves half a line."""
        size = self._file.seek(0, os.SEEK_END)
        with self.path.open("rb") as file:
            while size > 0:
                start = max(0, size - 2**16)
                file.seek(start)
                end = file.read(size - start).rfind(b"\n") + 1
                if end or not start:
                    size = start + end
                    break
                size = start
        self._file.truncate(size)


def read_entries(folder: Path) -> Iterator[Entry]:
    """Every entry of a run, sent or not, writer after writer."""
    for path in _files(folder):
        with path.open("rb") as file:
            yield from (json.loads(line) for line in file if line.endswith(b"\n"))


def writers(folder: Path) -> list[str]:
    """The writers of a run, those that open it first."""
    names = [path.name.removesuffix(".jsonl") for path in _files(folder)]
    return sorted(names, key=lambda name: (not name.startswith("driver"), name))


def count_unsent(folder: Path) -> int:
    """How many entries of a run were not sent, over all writers."""
    total = 0
    for path in _files(folder):
        sent = path.with_name(path.name.removesuffix(".jsonl") + ".sent")
        with path.open("rb") as file:
            file.seek(int(sent.read_text()) if sent.is_file() else 0)
            total += sum(1 for line in file if line.endswith(b"\n"))
    return total


def read_run(folder: Path) -> dict[str, str]:
    """What is known of the MLflow run: `uri`, and `id` once there is one."""
    path = folder / RUN
    known: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return known


def write_run(folder: Path, known: dict[str, str]) -> None:
    """Record it, atomically."""
    write_json(folder / RUN, known)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.jsonl") if not path.name.endswith(".rejected.jsonl"))
