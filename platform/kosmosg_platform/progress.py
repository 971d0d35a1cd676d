"""Progress of long tasks with the time left: the progress display of all commands and jobs.

A bar on a terminal; elsewhere, such as in a log, a self-contained line every fifteen seconds.
"""

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kosmosg_platform.console import echo

_POLL_SECONDS = 0.3
_LINE_SECONDS = 15.0
_MARK_SECONDS = 2.0
_MARKS = 60  # so the speed is that of the last two minutes, or of the last sixty pieces of slow work


class TimeLeft:
    """Estimates the remaining seconds of a task from its recent speed.

    Work done before the first `mark`, by an earlier run, does not count towards the speed of this one.
    """

    def __init__(self, total: float) -> None:
        self.total = total
        self._marks: deque[tuple[float, float]] = deque(maxlen=_MARKS)

    def mark(self, done: float, now: float) -> None:
        """Record that `done` of `total` were done at the time `now`, in seconds."""
        if self._marks and done < self._marks[-1][1]:
            self._marks.clear()  # a resumed run takes some steps again
        if self._marks and done == self._marks[-1][1]:
            return
        if len(self._marks) > 1 and now - self._marks[-2][0] < _MARK_SECONDS:
            self._marks.pop()
        self._marks.append((now, done))

    def seconds(self, now: float) -> float | None:
        """None before there is a speed."""
        if len(self._marks) < 2:
            return None
        (began, first), (seen, last) = self._marks[0], self._marks[-1]
        each = (seen - began) / (last - first)
        return max(each * (self.total - last) - (now - seen), 0.0)


class Progress:
    """The display of one task, for the duration of a `with` block.

    Args:
        title: what the task is called, as in `align`.
        total: how much there is to do.
        unit: of what, as in `steps`.
        running: whether the work starts with the block, so that the first piece already gives the speed.
    """

    def __init__(self, title: str, total: int, unit: str, running: bool = True) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done, self.state = 0, ""
        self._left = TimeLeft(total)
        self._began = self._said = time.monotonic()
        if running:
            self._left.mark(0, self._began)
        self._shown: tuple[int, str] | None = None
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as RichProgress

            columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn())
            self._bar = RichProgress(*columns, TextColumn("{task.fields[state]}"), console=Console(stderr=True))
            self._task = self._bar.add_task(self.title, total=self.total, state="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, state=self._details(f"took {duration(self.seconds)}"))
            self._bar.stop()
        elif self.done or kind is None:
            echo(self._line(f"took {duration(self.seconds)}"))

    def update(self, done: int | None = None, state: str | None = None, total: int | None = None) -> None:
        """Report how much is done in total, and details such as the loss.

        Call it as often as you like; without `done` only the display is refreshed. `total` replaces a total that was
        not known before the work began.
        """
        now = time.monotonic()
        if total is not None:
            self.total = self._left.total = total
        if done is not None:
            self.done = done
            self._left.mark(done, now)
        if state is not None:
            self.state = state
        left = self._left.seconds(now)
        remaining = f"{duration(left)} left" if left is not None and self.done < self.total else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, total=self.total, state=self._details(remaining))
        elif self.done == self.total and self.total:
            return  # the closing line says so
        elif now - self._said > _LINE_SECONDS and self._shown != (self.done, self.state):
            self._said, self._shown = now, (self.done, self.state)
            echo(self._line(remaining))

    @property
    def seconds(self) -> float:
        """Since the block began."""
        return time.monotonic() - self._began

    def _line(self, time_told: str) -> str:
        details = self._details(time_told)
        return f"{self.title}: {self.done:,}/{self.total:,} {self.unit}{', ' if details else ''}{details}"

    def _details(self, time_told: str) -> str:
        return ", ".join(part for part in (self.state, time_told) if part)


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`: the two largest units, which is precise enough for an estimate."""
    whole = round(seconds)
    for (large, size), (small, part) in pairwise((("d", 86400), ("h", 3600), ("min", 60), ("s", 1))):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {large}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


@contextmanager
def follow_metrics(title: str, steps: int, metrics: Path) -> Iterator[None]:
    """Show the progress of a training run, from the metrics file that its first worker appends to."""
    tail = MetricsTail(metrics)
    tail.update()  # what an earlier run left
    with Progress(title, steps, "steps", running=False) as shown:
        shown.update(state="starting workers")

        def show() -> None:
            if tail.update():
                shown.update(int(tail.last["step"]) + 1, _figures(tail.last))
            else:
                shown.update()

        with repeating(show):
            yield


@contextmanager
def repeating(poll: Callable[[], None]) -> Iterator[None]:
    """Call `poll` a few times a second from a thread while the block runs, and once more at its end."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(_POLL_SECONDS):
            poll()
        poll()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class MetricsTail:
    """The last line of a growing metrics file, read incrementally."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._inode = 0
        self.last: dict[str, Any] = {}

    def update(self) -> bool:
        """Read what is new; True when there was a new line."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return False
        if status.st_ino != self._inode or status.st_size < self._offset:
            self._inode, self._offset = status.st_ino, 0  # a resumed run rewrites the file without its lost steps
        with self._path.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        end = text.rfind(b"\n") + 1
        if not end:
            return False
        self._offset += end
        self.last = json.loads(text[:end].splitlines()[-1])
        return True


def _figures(last: dict[str, Any]) -> str:
    speed = [f"{last['samples_per_second']:.1f} samples/s"] if "samples_per_second" in last else []
    loss = [f"loss {last['loss']:.4f}"] if "loss" in last else ["loss not finite"]
    skipped = [f"{last['skipped_updates']:.0f} updates skipped"] if "skipped_updates" in last else []
    return ", ".join([*loss, *skipped, *speed])
