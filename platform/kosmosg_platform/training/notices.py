"""What a worker wants the user to know while a run goes on: a line in the run's folder, which the driver prints.

Workers are processes on other machines, and Ray is told not to mix their output into the driver's. So they append to
`notices.log`; the driver prints what is appended while it follows the run, and the file keeps it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from kosmosg_platform.console import echo
from kosmosg_platform.progress import repeating

FILE = "notices.log"


def notify(folder: Path, text: str) -> None:
    """Tell the user one line; `folder` is the run's."""
    line = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {' '.join(text.split())}\n"
    with (folder / FILE).open("a", encoding="utf-8") as file:
        file.write(line)  # one write of a short line: lines of several workers do not mix


@contextmanager
def follow_notices(folder: Path, title: str) -> Iterator[None]:
    """Print what is appended while the block runs, after the name of the stage."""
    path = folder / FILE
    offset = path.stat().st_size if path.is_file() else 0

    def show() -> None:
        nonlocal offset
        if not path.is_file():
            return
        with path.open("rb") as file:
            file.seek(offset)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        offset += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            echo(f"{title}: {line.split(' ', 2)[-1]}", "warning")

    with repeating(show):
        yield


__all__ = ["FILE", "follow_notices", "notify"]
