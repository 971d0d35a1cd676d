"""Files of an object store that does not answer: told from files that are damaged.

A damaged file stays damaged, and becomes a row in the quarantine table. When a store is away, nothing is wrong with the
rows: `StoreError` goes on to the build, which must try the shard again, so that a re-run gives the same bytes.
"""

from types import TracebackType
from typing import Any

from kosmosg.data.files.source_files import FileEntry, SourceFiles

_ABOUT_THE_FILE = (FileNotFoundError, PermissionError, IsADirectoryError)


class StoreError(Exception):
    """An object store did not answer."""


def open_file(files: SourceFiles, path: str) -> Any:
    """A file of a source, open for reading, that can seek. Raises OSError, StoreError."""
    return files.open(path) if files.is_local else _StoreFile(files, path)


def read_file(files: SourceFiles, path: str, start: int = 0, length: int = 0) -> bytes:
    """Bytes of a file: `length` of them from `start`, all of the rest by default. Raises OSError, StoreError."""
    try:
        return files.read(path, start, length)
    except OSError as error:
        raise _told(files, path, error) from error


def file_entry(files: SourceFiles, path: str) -> FileEntry | None:
    """Size and stamp of one file, None when it is not there. Raises StoreError, DataError for a path that leads out."""
    try:
        return files.entry(path)
    except OSError as error:
        told = _told(files, path, error)
        if isinstance(told, StoreError):
            raise told from error
        return None


class _StoreFile:
    closed = False

    def __init__(self, files: SourceFiles, path: str) -> None:
        self._files, self._path = files, path
        try:
            self._file = files.open(path)
        except OSError as error:
            raise _told(files, path, error) from error

    def read(self, size: int | None = -1) -> bytes:
        try:
            data: bytes = self._file.read() if size is None or size < 0 else self._file.read(size)
        except OSError as error:
            raise _told(self._files, self._path, error) from error
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self._file.seek(offset, whence)
        return int(self._file.tell())

    def tell(self) -> int:
        return int(self._file.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def flush(self) -> None:
        return None

    def close(self) -> None:
        self.closed = True
        self._file.close()

    def __enter__(self) -> "_StoreFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _told(files: SourceFiles, path: str, error: OSError) -> OSError | StoreError:
    if files.is_local or isinstance(error, _ABOUT_THE_FILE):
        return error
    return StoreError(f"the store did not give {path} of {files.root}: {' '.join(str(error).split())[:300]}")
