"""How a run is asked to stop, and how it tells why it ended before its last step.

    RUN/stop          written by the driver on SIGTERM: save a checkpoint after the current step and stop
    RUN/ended.json    written by the first worker: why the workers ended early without an error

A node that Ray drains (preempted, or scaled down) is known to every worker; the run then saves at once and goes on,
since Ray starts the workers again once the node is gone. Both signals travel with a reduction that every step needs
anyway.

Facts about Ray 2.60 that this file relies on: the result of a run holds the metrics of its last checkpoint, not those
that were reported later; Ray's public way to read the preemption is a barrier over all workers, its own flag is not.
"""

import time
from pathlib import Path
from typing import Any

from kosmosg_platform.storage import read_json, write_json, write_text

FILES = STOP, ENDED = "stop", "ended.json"
_POLL_SECONDS = 0.5


class Interruptions:
    """What one worker knows of requests to stop and of nodes that go; polled at every step."""

    def __init__(self, run: Path, rank: int) -> None:
        self._stop = run / STOP if rank == 0 else None
        self._asked = 0.0
        self._stopping = False
        self._preemption: Any = None

    def poll(self) -> tuple[bool, bool]:
        """Whether the run is asked to stop, and whether a node is going that was not known to go before."""
        if self._stop is not None and time.monotonic() - self._asked > _POLL_SECONDS:
            self._asked, self._stopping = time.monotonic(), self._stop.exists()
        found = _preemption()
        fresh, self._preemption = found is not None and found != self._preemption, found
        return self._stopping, fresh


def ask_to_stop(run: Path) -> None:
    """Ask the workers of a run to save and stop."""
    write_text(run / STOP, "")


def tell_end(run: Path, kind: str, reason: str) -> None:
    """Tell the driver why the workers end early: `kind` is `stopped` or `diverged`."""
    write_json(run / ENDED, {"kind": kind, "reason": reason})


def read_end(run: Path) -> tuple[str, str] | None:
    """What `tell_end` told, if it did."""
    path = run / ENDED
    if not path.is_file():
        return None
    told = read_json(path)
    return told["kind"], told["reason"]


def clear(run: Path) -> None:
    """Forget both, before the workers start."""
    for name in FILES:
        (run / name).unlink(missing_ok=True)


def _preemption() -> Any:
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info
