"""What the user sees while a job runs: progress with loss and speed, on a terminal or in a log file."""

import json
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

QUIET = (
    "DeepSpeed",
    "deepspeed",
    "ray",
    "ray.train",
    "mlflow",
    "alembic",
    "transformers",
    "httpx",
    "torch.distributed",
)
_POLL_SECONDS = 0.3
_LINE_SECONDS = 15.0


def quiet_libraries() -> None:
    """Show only warnings of the underlying libraries; their info messages mean nothing to the user."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when transformers first logs
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")


@contextmanager
def quiet_ray_data() -> Iterator[Any]:
    """Silence Ray Data's own progress and plan messages, since the caller reports progress. Returns its context."""
    from ray.data import DataContext

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    with DataContext.current(context):
        yield context


def echo(text: str) -> None:
    """Print one line for the user to standard error; results that programs read go to standard output instead."""
    print(text, file=sys.stderr, flush=True)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, oldest first; an incomplete last line is ignored."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


@contextmanager
def progress(title: str, steps: int, metrics: Path) -> Iterator[None]:
    """Show the progress of a run, from the metrics file that its first worker appends to.

    A bar on a terminal; elsewhere a line every fifteen seconds.
    """
    done = threading.Event()
    show = _show_bar if sys.stderr.isatty() else _show_lines
    watcher = threading.Thread(target=show, args=(title, steps, metrics, done), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


class Tail:
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
            self._inode, self._offset = status.st_ino, 0  # a resumed run rewrites the file without the lost steps
        with self._path.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        end = text.rfind(b"\n") + 1
        if not end:
            return False
        self._offset += end
        self.last = json.loads(text[:end].splitlines()[-1])
        return True


def _describe(last: dict[str, Any]) -> str:
    if not last:
        return "starting workers"
    parts = [f"loss {last['loss']:.4f}"]
    if "samples_per_second" in last:
        parts.append(f"{last['samples_per_second']:.1f} samples/s")
    return "  ".join(parts)


def _show_lines(title: str, steps: int, metrics: Path, done: threading.Event) -> None:
    tail = Tail(metrics)
    said, last_step = time.monotonic(), -1
    while True:
        finished = done.wait(_POLL_SECONDS)
        tail.update()
        step = int(tail.last.get("step", -1)) + 1
        if (finished or time.monotonic() - said > _LINE_SECONDS) and step != last_step:
            echo(f"{title}: step {max(step, 0)}/{steps}  {_describe(tail.last)}")
            said, last_step = time.monotonic(), step
        if finished:
            return


def _show_bar(title: str, steps: int, metrics: Path, done: threading.Event) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:>9}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[state]}"),
    )
    tail = Tail(metrics)
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=steps, state=_describe({}))
        while True:
            finished = done.wait(_POLL_SECONDS)
            if tail.update():
                bar.update(task, completed=int(tail.last["step"]) + 1, state=_describe(tail.last))
            if finished:
                return
