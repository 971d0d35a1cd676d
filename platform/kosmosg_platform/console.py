"""What the user sees in the terminal: messages, errors and colours, without the output of other libraries."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

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
COLOURS = {"error": "31", "success": "32", "warning": "33", "dim": "2"}
"""Styles of terminal output and their ANSI codes."""


def quiet_libraries() -> None:
    """Show only warnings of the underlying libraries; their info messages mean nothing to the user."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when transformers first logs
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")


@contextmanager
def quiet_ray_data() -> Iterator[Any]:
    """Silence Ray Data's own messages, since the caller reports progress and errors. Returns its context."""
    from ray.data import DataContext

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # the errors that it logs, it raises as well
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    with DataContext.current(context):
        yield context


def echo(text: str, style: str = "") -> None:
    """Print one line for the user to standard error; results that programs read go to standard output instead."""
    print(styled(text, style, sys.stderr), file=sys.stderr, flush=True)


def echo_error(program: str, error: object) -> None:
    """Print a user error as one sentence, prefixed with the name of the program."""
    echo(f"{styled(f'{program}:', 'error', sys.stderr)} {error}")


def styled(text: str, style: str, stream: TextIO) -> str:
    """The text in a style of `COLOURS` if `stream` is a terminal and NO_COLOR is not set; else unchanged."""
    plain = not stream.isatty() or bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return text if plain or not style else f"\033[{COLOURS[style]}m{text}\033[0m"


def plural(count: int, noun: str) -> str:
    """`1 prompt`, `2 prompts`, `1,500 prompts`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def byte_count(number: float) -> str:
    """`512 B`, `1.5 kB`, `640 MB`, `1,200.0 TB`; units of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, oldest first; an incomplete last line is ignored."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
