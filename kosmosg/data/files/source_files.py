"""Files of a source, in a local folder or in an object store alike (s3://, gs://, hdfs:// through pyarrow).

Whatever is asked of a store that does not answer is asked again for a while; then `StoreError` is raised
(`kosmosg.data.files.store_file`).

Names that stand inside of source files (a column of paths, the members of a tar) are never trusted: `safe` refuses
those that would lead out of the source.
"""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

from kosmosg.data.files.store_file import Store, StoreFile
from kosmosg.errors import MACHINE_ERRORS, DataError, UnavailableError


class FileEntry(NamedTuple):
    """One file of a source."""

    path: str
    """Relative to the source, with slashes."""
    size: int
    """Bytes."""
    stamp: str
    """Changes when the file does: size and time of change."""


class SourceFiles:
    """The files under one folder, or one single file.

    Args:
        root: a path, or a URL that pyarrow knows.

    Raises DataError when there is nothing at `root`, when the URL cannot be understood, or holds a password.
    """

    def __init__(self, root: str | Path) -> None:
        text = str(root)
        self.is_local = "://" not in text or text.startswith("file://")
        text, _, self._options = text.partition("?") if not self.is_local else (text, "", "")
        if ":" in text.partition("://")[2].partition("/")[0].rpartition("@")[0]:
            raise DataError(
                "source: a URL ends up in logs and reports, so it takes no password; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY instead"
            )
        self.root = os.path.abspath(text.removeprefix("file://")) if self.is_local else text.rstrip("/")
        self.name = self.root.rstrip("/").rsplit("/", 1)[-1]
        self.store = Store(self.root)

    def at(self, root: str) -> "SourceFiles":
        """The files under another folder, opened with the same patience."""
        other = SourceFiles(root)
        other.store.patience = self.store.patience
        return other

    @property
    def above(self) -> "SourceFiles":
        """The folder that this file or folder lies in."""
        return self.at(self.root.rpartition("/")[0] + (f"?{self._options}" if self._options else ""))

    @cached_property
    def _remote(self) -> tuple[Any, str]:
        from pyarrow import ArrowInvalid
        from pyarrow.fs import FileSystem

        url = f"{self.root}?{self._options}" if self._options else self.root
        known = self.store.has_answered
        try:
            filesystem, path = self.store.ask(lambda: FileSystem.from_uri(url))
            self.store.has_answered = known  # with an endpoint in the environment, that has asked nobody
        except (ArrowInvalid, ValueError) as error:
            raise DataError(f"source: {self.root} cannot be opened ({str(error).splitlines()[0]})") from None
        return filesystem, path

    def __getstate__(self) -> dict[str, Any]:
        # A connection does not travel between processes.
        return {key: value for key, value in self.__dict__.items() if key != "_remote"}

    @cached_property
    def is_file(self) -> bool:
        """Whether the source is one file. Raises DataError when there is nothing."""
        if self.is_local:
            if not os.path.exists(self.root):
                raise DataError(f"source: there is no file or folder {self.root}")
            return os.path.isfile(self.root)
        from pyarrow.fs import FileType

        filesystem, path = self._remote
        found = self.store.ask(lambda: filesystem.get_file_info(path))
        if found.type == FileType.NotFound:
            raise DataError(f"source: there is nothing at {self.root}")
        return bool(found.type == FileType.File)

    def walk(self, suffixes: Sequence[str] = (), under: str = "") -> Iterator[FileEntry]:
        """The files whose names end in one of `suffixes`, in any case, a folder by name; hidden ones are left out.

        A stream: a folder is listed when its turn comes. A single file is listed under its own name.
        """
        ends = tuple(suffix.lower() for suffix in suffixes)
        if self.is_file:
            entry = self.entry(self.name)
            if entry is not None:
                yield entry
            return
        for entry in self._walk_local(under) if self.is_local else self._walk_remote(under):
            if not ends or entry.path.lower().endswith(ends):
                yield entry

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return self.entry(path) is not None

    def entry(self, path: str) -> FileEntry | None:
        """Size and stamp of one file, None when it is not there. Raises StoreError, DataError as `safe` does."""
        if self.is_local:
            return _local_entry(path, self._local(path))
        from pyarrow.fs import FileType

        filesystem, _ = self._remote
        url = self._url(path)

        def info() -> Any:
            told = filesystem.get_file_info(url)
            if told.type == FileType.NotFound:
                raise FileNotFoundError(url)
            return told

        try:
            found = self.store.ask(info)
        except FileNotFoundError:
            return None
        return _remote_entry(path, found) if found.type == FileType.File else None

    def read(self, path: str, start: int = 0, length: int = 0) -> bytes:
        """Bytes of a file: `length` of them from `start`, all of the rest by default. Raises OSError, StoreError."""
        with self.open(path) as file:
            if start:
                file.seek(start)
            data: bytes = file.read(length) if length else file.read()
        return data

    def open(self, path: str) -> Any:
        """The file, open for reading bytes; it can seek. Raises OSError, StoreError."""
        if self.is_local:
            place = self._local(path)
            try:
                return open(place, "rb")
            except OSError as error:
                if error.errno in MACHINE_ERRORS:
                    raise UnavailableError(f"{place} cannot be opened: {error.strerror}") from error
                raise
        filesystem, _ = self._remote
        return StoreFile(self.store, partial(filesystem.open_input_file, self._url(path)))

    def _local(self, path: str) -> str:
        return self.root if self.is_file else os.path.join(self.root, safe(path))

    def _url(self, path: str) -> str:
        return str(self._remote[1]) if self.is_file else f"{self._remote[1]}/{safe(path)}"

    def _walk_local(self, folder: str, above: tuple[tuple[int, int], ...] = ()) -> Iterator[FileEntry]:
        folders = set()
        names = []
        place = os.path.join(self.root, folder)
        status = os.stat(place)
        here = (status.st_dev, status.st_ino)
        if here in above:
            return  # a link back to a folder that this one lies in
        with os.scandir(place) as found:
            for entry in found:
                if not entry.name.startswith("."):
                    names.append(entry.name)
                    if entry.is_dir():
                        folders.add(entry.name)
        names.sort()  # names alone: the stamps of millions of files are asked for when their turn comes
        for name in names:
            path = f"{folder}/{name}" if folder else name
            if not name.isprintable() and (told_name := _readable(path)) != path:
                yield FileEntry(told_name, 0, "")  # not UTF-8: reading it says that there is no such file
            elif name in folders:
                yield from self._walk_local(path, (*above, here))
            elif (told := _local_entry(path, os.path.join(place, name))) is not None:
                yield told  # even where `safe` will refuse to read it: such a name costs its own row

    def _walk_remote(self, folder: str) -> Iterator[FileEntry]:
        from pyarrow.fs import FileSelector, FileType

        filesystem, root = self._remote
        selected = FileSelector(f"{root}/{folder}" if folder else root)
        found = self.store.ask(lambda: filesystem.get_file_info(selected))
        for info in sorted(found, key=lambda info: info.base_name):
            if info.base_name.startswith("."):
                continue
            path = f"{folder}/{info.base_name}" if folder else info.base_name
            if info.type == FileType.Directory:
                yield from self._walk_remote(path)
            elif info.type == FileType.File:
                yield _remote_entry(path, info)


def safe(path: str) -> str:
    """A relative path as it is. Raises DataError for one that leads out of its folder, or holds a null byte."""
    parts = path.replace("\\", "/").split("/")
    if path.startswith(("/", "\\", "~")) or ".." in parts or "\0" in path or ":" in parts[0][:2]:
        raise DataError(f"the path {path[:200]!r} leads out of the source; only files inside of it are read")
    return path


def _local_entry(path: str, place: str) -> FileEntry | None:
    try:
        status = os.stat(place)
    except OSError:
        return None
    return FileEntry(path, status.st_size, f"{status.st_size}:{status.st_mtime_ns}")


def _readable(path: str) -> str:
    """The path with what is not UTF-8 in it spelled out."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _remote_entry(path: str, info: Any) -> FileEntry:
    return FileEntry(path, int(info.size or 0), f"{info.size}:{info.mtime_ns or 0}")
