"""A file system that a test can fill up or make read-only."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(place: Path) -> Iterator[Path]:
    """A new file system of 64 MB at `place`; skips the test where mounting is not permitted."""
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def remount(place: Path, options: str) -> None:
    """Change size or mode (`size=100k`, `size=64m,ro`) of what is mounted."""
    subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)
