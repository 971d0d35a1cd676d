"""Ends what a killed driver leaves behind of the Ray cluster that it started.

Ray's own processes end with the driver, also when it is killed with SIGKILL, but for two agents, which first try for
about a minute to report the death to a cluster that is gone. `watch` starts this file as a small program of its own,
whose standard input the driver holds open. At its end it gives the processes a moment, then ends those that are left.
It imports nothing of this package, to start in a few milliseconds.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_PATIENCE_SECONDS = 3.0
_PROCESSES = "/proc"


@contextmanager
def watch() -> Iterator[None]:
    """Guard the processes that this one has started so far, and theirs, for the duration of the block."""
    if not os.path.isdir(_PROCESSES):  # a Mac: there the agents end when they have tried
        yield
        return
    names = [f"{pid}:{began}" for pid in _descendants(os.getpid()) if (began := _began(pid)) is not None]
    command = [sys.executable, "-S", "-E", __file__, *names]
    # A session of its own: Ctrl-C in a terminal is not for this process.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def _reap(names: Sequence[str]) -> None:
    """End the processes `PID:BEGAN` that have not ended by themselves soon after standard input did."""
    sys.stdin.buffer.read()
    deadline = time.monotonic() + _PATIENCE_SECONDS
    left = list(names)
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = [name for name in left if _is_alive(name)]
    for name in left:
        try:
            os.kill(int(name.partition(":")[0]), signal.SIGKILL)
        except ProcessLookupError:
            continue


def _is_alive(name: str) -> bool:
    pid, _, began = name.partition(":")
    return _began(int(pid)) == began


def _began(pid: int) -> str | None:
    """When a process began, in ticks since boot, which tells it from a later one of the same id; None once it ended."""
    status = _status(pid)
    return None if status is None or status[0] == "Z" else status[19]


def _descendants(pid: int) -> list[int]:
    parents = {int(name): _status(int(name)) for name in os.listdir(_PROCESSES) if name.isdigit()}
    found, looked_at = [pid], 0
    while looked_at < len(found):
        found += [one for one, status in parents.items() if status is not None and int(status[1]) == found[looked_at]]
        looked_at += 1
    return found[1:]


def _status(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third on: state, parent, ..."""
    try:
        with open(f"{_PROCESSES}/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


if __name__ == "__main__":
    _reap(sys.argv[1:])
