"""What lies under one URL of an object store: list, read, write, remove.

Every question to a store that has ceased to answer is asked again for a while (`kosmosg.data.files.store_file`); then
`StoreError` says so. A file appears in a store as a whole or not at all: an object when it is complete, a file of HDFS
when it is renamed.
"""

import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from kosmosg.data.files.store_file import Store
from kosmosg.errors import ConfigError

Answer = TypeVar("Answer")

_BLOCK = 2**24
_APPEARS_WHOLE = ("s3", "gcs", "gs", "abfs")


def _opened(process: int, url: str) -> tuple[Any, str]:
    """The store of a URL, connected once in a process, and the path in it."""
    parts = urlsplit(url)
    filesystem, top = _connected(process, urlunsplit((parts.scheme, parts.netloc, "", parts.query, "")))
    return filesystem, f"{top.rstrip('/')}/{unquote(parts.path).strip('/')}"


@lru_cache(maxsize=64)
def _connected(process: int, url: str) -> tuple[Any, str]:
    from pyarrow.fs import FileSystem

    filesystem, top = FileSystem.from_uri(url)
    return filesystem, str(top)


class StoredFile(NamedTuple):
    """What a store tells of a file. Another content has another value."""

    size: int
    """Bytes."""
    changed: int
    """When it was written, ns since 1970 by the store's clock."""


class Bucket:
    """The files under one URL, by names relative to it.

    Args:
        url: a folder that pyarrow knows (s3://bucket/folder?region=...).
        answered: whether the store is known to be there. If not, a first question without an answer is an error at
            once: it is more often a mistake in the address than a store that is away.

    Raises StoreError from every method if the store does not answer, or refuses to.
    """

    def __init__(self, url: str, answered: bool = False) -> None:
        self.url = url
        self.store = Store(url.partition("?")[0])
        self.store.has_answered = answered

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_place"}

    @cached_property
    def _place(self) -> tuple[Any, str]:
        from pyarrow import ArrowInvalid

        before = self.store.has_answered
        try:
            filesystem, root = self._ask(lambda: _opened(os.getpid(), self.url))
        except (ArrowInvalid, ValueError) as error:
            raise ConfigError(f"{self.url} cannot be opened: {str(error).splitlines()[0]}") from None
        self.store.has_answered = before  # that may have asked nobody
        return filesystem, root.rstrip("/")

    @property
    def _files(self) -> Any:
        return self._place[0]

    def _path(self, name: str) -> str:
        root = str(self._place[1])
        return f"{root}/{name}" if name else root

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        return self.store.ask(question)

    def list(self, under: str = "") -> dict[str, StoredFile]:
        """All files in a folder and its subfolders; empty where there is no such folder."""
        from pyarrow.fs import FileSelector, FileType

        top = self._path(under)
        selected = FileSelector(top, recursive=True, allow_not_found=True)
        found = self._ask(lambda: self._files.get_file_info(selected))
        start = len(self._path("")) + 1
        return {
            info.path[start:]: StoredFile(int(info.size or 0), int(info.mtime_ns or 0))
            for info in found
            if info.type == FileType.File
        }

    def stat(self, name: str) -> StoredFile | None:
        """What the store tells of a file; None if there is none."""
        from pyarrow.fs import FileType

        info = self._ask(lambda: self._files.get_file_info(self._path(name)))
        return StoredFile(int(info.size or 0), int(info.mtime_ns or 0)) if info.type == FileType.File else None

    def read(self, name: str) -> bytes:
        """A small file. Raises FileNotFoundError."""

        def question() -> bytes:
            with self._files.open_input_stream(self._path(name)) as file:
                return bytes(file.read())

        return self._ask(question)

    def download(self, name: str, target: Path) -> str:
        """Copy a file to a path, which appears when it is complete; gives its sha256. Raises FileNotFoundError."""

        def question() -> str:
            digest = hashlib.sha256()
            with self._files.open_input_stream(self._path(name)) as file, draft.open("wb") as copy:
                while block := file.read(_BLOCK):
                    digest.update(block)
                    copy.write(block)
            return digest.hexdigest()

        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}.tmp")
        try:
            digest = self._ask(question)
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
        return digest

    def upload(self, source: Path, name: str) -> None:
        """Write a local file. A store that breaks off is asked again, from the file's beginning."""

        def question() -> None:
            with source.open("rb") as file:
                self._write(name, file)

        self._ask(question)

    def write(self, name: str, content: bytes) -> None:
        """Write a small file."""
        import io

        self._ask(lambda: self._write(name, io.BytesIO(content)))

    def _write(self, name: str, file: Any) -> None:
        whole = self._files.type_name in _APPEARS_WHOLE
        final = self._path(name)
        target = final if whole else f"{final}.{os.getpid()}.tmp"
        if not whole:
            self._files.create_dir(target.rpartition("/")[0], recursive=True)
        with self._files.open_output_stream(target) as stream:
            shutil.copyfileobj(file, stream, _BLOCK)
        # A stream that broke off is closed as well, and what it had sent may then be an object.
        written = self._files.get_file_info(target).size
        if written != file.tell():
            raise OSError(f"{name} has {written} bytes in the store, {file.tell()} were written")
        if not whole:
            self._files.move(target, final)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        try:
            self._ask(lambda: self._files.delete_file(self._path(name)))
        except FileNotFoundError:
            return

    def remove_folder(self, name: str, last: str = "") -> None:
        """Remove all files of a folder, the file `last` first: what it completes is then incomplete."""
        if last:
            self.remove(f"{name}/{last}")
        for file in self.list(name):
            self.remove(file)
        if self._files.type_name not in _APPEARS_WHOLE and self.list(name) == {}:
            self._ask(lambda: self._files.delete_dir(self._path(name)))

    def rename_folder(self, name: str, new: str) -> None:
        """Give the files of a folder another folder. Not atomic in an object store: copied first, then removed."""
        for file in sorted(self.list(name)):
            target = f"{new}{file.removeprefix(name)}"
            self._ask(partial(self._files.copy_file, self._path(file), self._path(target)))
        self.remove_folder(name)
