"""Atomic writes of files and links, and digests of files."""

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kosmosg.errors import ConfigError, DataError


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises DataError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not readable as JSON: {error}") from None


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A name to write to; behind the block that file is `path`, even if the machine crashes in between.

    What a failed block has written is removed: on a disk that is full, remains would keep it so.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Process and thread in the name: a task that Ray runs twice never writes to one file twice.
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a file atomically, even if the machine crashes in between."""
    with replaced(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def point(link: Path, target: Path) -> None:
    """Make `link` a relative symbolic link to `target`, replacing an earlier one in a single step."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.exists() and not link.is_symlink():
        raise ConfigError(f"output: {link} is a real folder where a link belongs; move it away")
    partial = link.with_name(f".{link.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    partial.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)
    partial.replace(link)


def file_sha256(path: Path) -> str:
    """The sha256 of one file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256(paths: Iterable[Path]) -> str:
    """One digest of files: their names and contents, in sorted order."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
