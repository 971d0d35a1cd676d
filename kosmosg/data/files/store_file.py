"""Reading from an object store that may be away for a while.

A damaged file stays damaged, and becomes a row in the quarantine table. When a store is away, nothing is wrong with the
rows: it is asked again, with growing pauses, for as long as `store_patience` says; then `StoreError` ends the build.
"""

import io
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from kosmosg.errors import UnavailableError

Answer = TypeVar("Answer")

PATIENCE = 300.0
_ABOUT_THE_FILE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
# What asking again does not change, in the words of the AWS library that Arrow reads S3 with.
_REFUSED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|INVALID_SIGNATURE|SIGNATURE_DOES_NOT_MATCH"
    r"|UNRECOGNIZED_CLIENT|MISSING_AUTHENTICATION_TOKEN|OPT_IN_REQUIRED|ACCOUNT_PROBLEM"
    r"|ExpiredToken|InvalidToken|HTTP status (?:301|401|403)"
)
_NO_BUCKET = re.compile(r"NO_SUCH_BUCKET|InvalidBucketName")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 15.0  # seconds
_patience: ContextVar[float] = ContextVar("store_patience", default=PATIENCE)


class StoreError(UnavailableError):
    """An object store that does not answer, or refuses to."""


@contextmanager
def store_patience(seconds: float) -> Iterator[None]:
    """Sources that are opened in this block ask a store again for so long after it has ceased to answer."""
    before = _patience.set(seconds)
    try:
        yield
    finally:
        _patience.reset(before)


class Store:
    """How one object store is asked. Pickled with its files, so that workers are as patient as the driver.

    Args:
        url: what is read from it, for messages.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.patience = _patience.get()
        self.has_answered = False
        """Until then asking again would only hide a mistake in its address."""

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """The answer to a question. Raises StoreError, and OSError for what is wrong with the file."""
        pause, began = _FIRST_PAUSE, 0.0
        missing = False
        while True:
            try:
                answer = question()
            except OSError as error:
                if isinstance(error, _ABOUT_THE_FILE) and (missing or not began):
                    self.has_answered = True
                    raise
                # A store that has just come back may not know yet of all that it has: it is asked twice.
                missing = isinstance(error, _ABOUT_THE_FILE)
                now = time.monotonic()
                began = began or now
                if not missing and (refusal := self._refusal(error)):
                    raise StoreError(refusal) from error
                if not self.has_answered or now - began + pause > self.patience:
                    raise StoreError(self._away(error, now - began)) from error
            else:
                self.has_answered = True
                return answer
            time.sleep(pause * random.uniform(0.5, 1.0))  # workers must not all come back at once
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _refusal(self, error: OSError) -> str:
        words = str(error)
        if _NO_BUCKET.search(words):
            return f"{self.url}{_endpoint()} is in no bucket that the store has; check the URL"
        if not _REFUSED.search(words):
            return ""
        return (
            f"the object store refuses to give {self.url}{_endpoint()}: {_words(error)}; check its credentials "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, also where Ray's workers run) and run the same command again"
        )

    def _away(self, error: OSError, seconds: float) -> str:
        how_long = f" for {seconds:.0f} s" if seconds >= 1 else ""
        return (
            f"the object store of {self.url}{_endpoint()} did not answer{how_long}: {_words(error)}; check that it can "
            "be reached, and run the same command again to go on from here"
        )


class StoreFile(io.RawIOBase):
    """A file in a store, open for reading bytes, that can seek. Raises StoreError, and OSError as `open_file` does.

    Args:
        store: to be asked.
        open_file: opens the file, at its beginning; again where the connection is lost.
    """

    def __init__(self, store: Store, open_file: Callable[[], Any]) -> None:
        super().__init__()
        self._store, self._open = store, open_file
        self._file: Any = store.ask(open_file)
        self._at = 0

    def read(self, size: int | None = -1) -> bytes:
        """`size` bytes, or all that are left."""
        wanted = -1 if size is None else size
        data = self._store.ask(lambda: self._read(wanted))
        self._at += len(data)
        return data

    def _read(self, size: int) -> bytes:
        try:
            if self._file is None:
                self._file = self._open()
                self._file.seek(self._at)
            data: bytes = self._file.read() if size < 0 else self._file.read(size)
        except OSError:
            self._file = None  # in an unknown state: opened anew when it is asked again
            raise
        return data

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; gives how many bytes there were."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place in the file."""
        if self._file is None:
            self._file = self._store.ask(self._open)
        self._file.seek(offset, whence)
        self._at = int(self._file.tell())
        return self._at

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._at

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def close(self) -> None:
        """Close the connection."""
        if self._file is not None:
            self._file.close()
        super().close()


def _endpoint() -> str:
    address = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return f" ({address})" if address else ""


def _words(error: OSError) -> str:
    return " ".join(str(error).split())[:300]
