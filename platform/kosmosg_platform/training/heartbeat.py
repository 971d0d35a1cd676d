"""What a worker is doing, told step by step, so that others can see when it does nothing any more.

The loop calls `beat` wherever it has got on. That costs a few assignments; nobody writes or sends anything.
`kosmosg_platform.training.stall_watch` asks each worker from outside, by calling `read` in its process on another
thread than the loop's, which therefore answers also while the loop hangs. A process that is suspended does not answer.
"""

import faulthandler
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

LONG = frozenset({"start", "first step", "checkpoint", "validation", "sample images", "export"})
"""What may take minutes without a beat; everything else is quick."""
_STATES = {"T": "suspended", "t": "stopped by a debugger", "Z": "ended", "D": "waiting for a disk", "R": "running"}
_KILLED_WITH_PARENT = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Heartbeat:
    """The last thing that a worker told."""

    doing: str
    """`data`, `step` or one of `LONG`."""
    step: int
    """Optimizer steps taken."""
    seconds: float = 0.0
    """How long ago it was told, when this was read."""
    pid: int = 0

    def __str__(self) -> str:
        return f"`{self.doing}` after step {self.step}, {self.seconds:.0f} s before"


_last = Heartbeat("start", 0)
_told = time.monotonic()


def beat(doing: str, step: int) -> None:
    """Tell what the loop does from now on."""
    global _last, _told
    _last, _told = Heartbeat(doing, step), time.monotonic()


def read() -> Heartbeat:
    """What the loop of this process told last."""
    return replace(_last, seconds=time.monotonic() - _told, pid=os.getpid())


def stacks() -> str:
    """The stacks of all threads of this process, and the state of its data loader processes."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        threads = file.read()
    children = [f"  process {child.pid}: {_state(child.pid)}" for child in multiprocessing.active_children()]
    loaders = "\n".join(["Data loader processes:", *children]) if children else "No data loader processes."
    return f"{threads}\n{loaders}\n"


def end_with_parent(worker: int = 0) -> None:
    """Let this data loader process be killed when its worker ends, also while it is suspended."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_KILLED_WITH_PARENT, signal.SIGKILL)


def _state(pid: int | None) -> str:
    try:
        letter = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return "gone"
    return _STATES.get(letter, "waiting")
