"""Faults of the machine are told in a sentence, never taken for faults of rows, and damage nothing that is there."""

import errno
import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray.exceptions import OutOfDiskError, RayTaskError

from kosmosg.data.annotators.apply import apply
from kosmosg.data.annotators.base import Sample
from kosmosg.data.files.store_file import StoreError
from kosmosg.data.sources.image_rows import guarded
from kosmosg.errors import MACHINE_ERRORS, DataError, DiskError
from kosmosg_platform.datasets.dataset import RecordDataset, write_manifest, write_records
from kosmosg_platform.faults import told_in_a_sentence
from kosmosg_platform.storage import write_text


def in_a_worker(error: Exception) -> RayTaskError:
    """As the driver gets it."""
    return RayTaskError("read", "Traceback ...", error, pid=1, ip="127.0.0.1").as_instanceof_cause()


@pytest.mark.parametrize(
    ("raised", "expected", "words"),
    [
        (OSError(errno.ENOSPC, "No space left"), DiskError, "cannot be written: No space left on device; make room"),
        (OSError(errno.EROFS, "read-only"), DiskError, "Read-only file system; make it writable"),
        (OSError(errno.EFBIG, "too large"), DiskError, "raise the limit on the size of files"),
        (PermissionError(errno.EACCES, "denied", "/data/x"), DiskError, "/data/x cannot be opened: Permission denied"),
        (OSError(errno.ENOSPC, "x", "/disk/a"), DiskError, "^/disk/a cannot be written: No space"),
        (OSError(errno.ENOSPC, "x", "Failed to apply UDF after 1/1 attempts"), DiskError, "/set cannot be written: No"),
        (OutOfDiskError("spilling failed"), DiskError, "Ray has no room .* and run the same command again"),
        (StoreError("the store is away"), StoreError, "^the store is away$"),
        (StoreError("the store is away\nFailed to apply UDF after 1/1 attempts."), StoreError, "^the store is away"),
        (DataError("a bad source"), DataError, "^a bad source$"),
    ],
)
def test_errors_of_workers_become_the_sentence_that_they_are(
    tmp_path: Path, raised: Exception, expected: type[Exception], words: str
) -> None:
    for error in (raised, in_a_worker(raised)):
        with pytest.raises(expected, match=words) as told, told_in_a_sentence(tmp_path / "set"):
            raise error
        assert "Traceback" not in str(told.value)


def test_bugs_keep_their_traceback(tmp_path: Path) -> None:
    for error in (KeyError("x"), in_a_worker(KeyError("x")), OSError(errno.EISDIR, "a folder")):
        with pytest.raises(type(error)), told_in_a_sentence(tmp_path):
            raise error


@pytest.mark.parametrize("number", sorted(MACHINE_ERRORS))
def test_no_row_is_rejected_for_a_fault_of_the_machine(number: int) -> None:
    class Failing:
        name = "failing"

        def __call__(self, samples: Sequence[Sample]) -> list[str]:
            raise OSError(number, os.strerror(number))

    samples = [Sample(str(index), "", b"", "", {}) for index in range(3)]
    with pytest.raises(OSError, match=os.strerror(number)):
        apply(Failing(), samples, 2)
    with pytest.raises(OSError, match=os.strerror(number)):
        guarded("id", "place", lambda: Failing()([]))  # type: ignore[arg-type, return-value]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Files of this process cannot grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_size_limit_leaves_what_is_there(tmp_path: Path) -> None:
    rows = [{"id": str(index), "text": f"text {index}", "source": "a"} for index in range(20)]
    write_manifest(tmp_path, "text", [write_records(tmp_path, "data/part-00000.parquet", "text", rows)])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    large = [{"id": str(index), "text": os.urandom(20_000).hex(), "source": "a"} for index in range(20)]
    with largest_file(100_000):
        for write in (
            lambda: write_records(tmp_path, "data/part-00000.parquet", "text", large),
            lambda: write_text(tmp_path / "manifest.json", "x" * 200_000),
        ):
            with pytest.raises(DiskError, match="File too large; raise the limit"), told_in_a_sentence(tmp_path):
                write()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert len(RecordDataset(tmp_path)) == 20
