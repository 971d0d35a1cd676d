"""Images of web pages that a downloader left: found by a name that is made of what the page says of them.

A page knows an image by its URL. `img2dataset` numbers what it fetches and keeps a list of URLs and numbers;
other tools name files by a hash of the URL, MMC4 by a name of its own.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from kosmosg.data.files.parquet_ranges import DAMAGE
from kosmosg.data.files.source_files import FileEntry, SourceFiles
from kosmosg.data.sources.image_rows import BadRow
from kosmosg.errors import ConfigError, DataError

PLACES = ("name", "md5", "sha1", "sha256", "last", "stem", "shard")
"""What a pattern may say: the name that the page gives, hashes of the URL in hex, the last part of its path; of the
file that holds the page its name without suffix, and the number in it."""
IMG2DATASET = "img2dataset"
_BY_NAME = ("{stem}_images/{name}", "{shard}_images/{name}", "{shard}/{name}", "{stem}/{name}", "{name}")
_BY_HASH = tuple(
    f"{{{kind}}}{suffix}" for kind in ("sha256", "md5", "sha1") for suffix in ("", ".jpg", ".png", ".webp")
)
_SUFFIXES = ("jpg", "png", "webp")  # img2dataset writes one of them


class PageImages:
    """Finds the image files of pages.

    Args:
        files: where they are.
        pattern: of their names, such as "{md5}.jpg"; `img2dataset` for what that tool wrote with
            `--output_format files`, looked for in a folder named like the file of the pages, or in the whole folder;
            None tries what is usual.

    Raises ConfigError for a pattern that says something else than `PLACES`.
    """

    def __init__(self, files: SourceFiles, pattern: str | None) -> None:
        self.files = files
        self.pattern = pattern
        if pattern is not None and pattern != IMG2DATASET:
            try:
                made = pattern.format(**dict.fromkeys(PLACES, "x"))
            except (KeyError, IndexError, ValueError) as error:
                raise ConfigError(f"name is {pattern!r}; places in it are {', '.join(PLACES)}") from error
            if made == pattern:
                raise ConfigError(f"name is {pattern!r}; without a place such as {{name}} all images are one file")
        self._found_by = ""
        self._list: tuple[str, dict[bytes, str]] = ("", {})

    def read(self, document: str, url: str, name: str, limit: int) -> bytes:
        """The image of a URL, or of a name, in a page of the file `document`. Raises BadRow, StoreError."""
        for pattern, path in self._candidates(document, url, name):
            try:
                entry = self.files.entry(path)
            except DataError as error:
                raise BadRow("escapes", str(error)) from error
            if entry is not None:
                self._found_by = pattern
                return self._content(entry, limit)
        raise BadRow("missing-file", f"there is no image {name or url}")

    def _content(self, entry: FileEntry, limit: int) -> bytes:
        if entry.size > limit:
            raise BadRow("unreadable", f"{entry.path} has {entry.size:,} bytes, the limit is {limit:,}")
        return self.files.read(entry.path)

    def _candidates(self, document: str, url: str, name: str) -> Iterator[tuple[str, str]]:
        if self.pattern == IMG2DATASET:
            key = self._keys(document).get(_digest(url))
            if key is not None:
                yield from ((IMG2DATASET, f"{key}.{suffix}") for suffix in _SUFFIXES)
            return
        places = _places(document, url, name)
        patterns = [self.pattern] if self.pattern else [*(_BY_NAME if name else ()), *(_BY_HASH if url else ())]
        # What found the last image probably finds the next one.
        patterns.sort(key=lambda pattern: pattern != self._found_by)
        for pattern in patterns:
            # A pattern that needs what the page does not know finds nothing.
            if all(value or f"{{{key}}}" not in pattern for key, value in places.items()):
                yield pattern, pattern.format(**places)

    def _keys(self, document: str) -> Mapping[bytes, str]:
        """Of the URLs in img2dataset's lists the paths without suffix. One file's at a time is in memory."""
        folder = _stem(document)
        if self._list[0] != folder:
            keys: dict[bytes, str] = {}
            own = self._holds_lists(folder)
            for entry in self.files.walk((".parquet",), folder if own else ""):
                keys.update(self._shard_keys(entry.path))
            self._list = (folder, keys)
        return self._list[1]

    def _holds_lists(self, folder: str) -> bool:
        try:
            return next(self.files.walk((".parquet",), folder), None) is not None
        except OSError:  # there is no such folder
            return False

    def _shard_keys(self, path: str) -> Iterator[tuple[bytes, str]]:
        import pyarrow.parquet as pq

        shard = path.rpartition(".")[0]
        with self.files.open(path) as file:
            try:
                opened = pq.ParquetFile(file, pre_buffer=False)
                if not {"url", "key", "status"} <= set(opened.schema_arrow.names):
                    raise DataError(f"{path} is no list of img2dataset: it has no columns url, key, status")
                for batch in opened.iter_batches(10_000, columns=["url", "key", "status"], use_threads=False):
                    for row in batch.to_pylist():
                        if row["status"] == "success" and isinstance(row["url"], str):
                            yield _digest(row["url"]), f"{shard}/{row['key']}"
            except DAMAGE as error:
                raise DataError(f"{path}, a list of img2dataset, cannot be read: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_list": ("", {})}


def _places(document: str, url: str, name: str) -> dict[str, str]:
    stem = _stem(document)
    raw = url.encode("utf-8", "replace")
    hashes = {kind: hashlib.new(kind, raw, usedforsecurity=False).hexdigest() for kind in ("md5", "sha1", "sha256")}
    numbers = [part for part in stem.split("_") if part.isdigit()]
    last = urlsplit(url).path.rpartition("/")[2] if url.isprintable() and "[" not in url else ""
    return {"name": name, "last": last, "stem": stem, "shard": numbers[-1] if numbers else stem, **hashes}


def _stem(document: str) -> str:
    """`data/docs_no_face_shard_17_v2.jsonl.zip` -> `docs_no_face_shard_17_v2`."""
    return PurePosixPath(document).name.split(".", 1)[0]


def _digest(url: str) -> bytes:
    return hashlib.blake2b(url.encode("utf-8", "replace"), digest_size=16).digest()
