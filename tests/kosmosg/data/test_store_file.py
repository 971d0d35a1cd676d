"""Files of an object store that is away for a while, refuses, or was never there."""

import copy
import gzip
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kosmosg.data.annotators.apply import refusal
from kosmosg.data.files.line_ranges import read_lines
from kosmosg.data.files.parquet_ranges import read_rows
from kosmosg.data.files.source_files import SourceFiles
from kosmosg.data.files.store_file import StoreError, store_patience
from kosmosg.data.sources.image_rows import guarded
from kosmosg.errors import DataError
from tests.object_store import BUCKET, ObjectStore

LINES = [b"line %d " % number + b"x" * (number % 90) for number in range(20_000)]


@pytest.fixture
def url(object_store: ObjectStore, tmp_path: Path) -> str:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/lines.jsonl").write_bytes(b"\n".join(LINES))
    (tmp_path / "source/lines.jsonl.gz").write_bytes(gzip.compress(b"\n".join(LINES)))
    pq.write_table(pa.table({"line": LINES}), tmp_path / "source/lines.parquet")
    (tmp_path / "source/random").write_bytes(np.random.default_rng(0).bytes(6 << 20))
    return object_store.upload(tmp_path / "source", tmp_path.name)


@contextmanager
def away(store: ObjectStore, seconds: float) -> Iterator[None]:
    """The store answers nothing for a while, from now on."""
    store.pause()
    back = threading.Timer(seconds, store.resume)
    back.start()
    try:
        yield
    finally:
        back.join()


READS: dict[str, Callable[[SourceFiles], object]] = {
    "lines": lambda files: [line.data for line in read_lines(files, "lines.jsonl")],
    "compressed lines": lambda files: [line.data for line in read_lines(files, "lines.jsonl.gz")],
    "rows": lambda files: [row.values for row in read_rows(files, "lines.parquet", 0, 0, 0, len(LINES), ["line"])],
    "list": lambda files: [entry.path for entry in files.walk()],
    "entry": lambda files: files.entry("random"),
    "no entry": lambda files: files.entry("nothing"),
}


@pytest.mark.slow
def test_what_is_asked_while_a_store_is_away_is_answered_when_it_is_back(
    object_store: ObjectStore, url: str, subtests: pytest.Subtests
) -> None:
    with store_patience(60):
        files = SourceFiles(url)
    expected = {name: read(files) for name, read in READS.items()}
    assert expected["lines"] == expected["compressed lines"] == LINES
    assert expected["no entry"] is None
    found: dict[str, object] = {}

    def ask(name: str) -> None:
        found[name] = READS[name](copy.deepcopy(files))  # as Ray sends them

    asking = [threading.Thread(target=ask, args=(name,)) for name in READS]
    with away(object_store, 8):
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
    for name in READS:
        with subtests.test(name):
            assert found[name] == expected[name]


@pytest.mark.slow
def test_reading_goes_on_in_the_middle_after_the_server_was_killed(
    object_store: ObjectStore, url: str, tmp_path: Path
) -> None:
    with store_patience(60):
        files = SourceFiles(url)
    with files.open("random") as file:
        first = file.read(1 << 20)
        object_store.kill()
        back = threading.Timer(1, object_store.start)
        back.start()
        rest = file.read()
        back.join()
        assert file.tell() == 6 << 20
    assert first + rest == (tmp_path / "source/random").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 4])
def test_a_store_that_stays_away_is_named_with_the_remedy(object_store: ObjectStore, url: str, seconds: int) -> None:
    with store_patience(seconds):
        files = SourceFiles(url)
    files.read("random", 0, 10)
    object_store.kill()
    try:
        began = time.monotonic()
        with pytest.raises(StoreError) as told:
            files.read("random")
        assert seconds <= time.monotonic() - began < seconds + 30  # Arrow itself asks for some seconds
    finally:
        object_store.start()
    assert url in str(told.value)
    assert object_store.url in str(told.value)
    assert "run the same command again" in str(told.value)
    with pytest.raises(StoreError):
        guarded("id", "place", lambda: refusal(told.value))  # type: ignore[arg-type, return-value]


@pytest.mark.slow
def test_an_address_that_never_answered_is_not_waited_for(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with store_patience(3600), pytest.raises(StoreError, match=r"127.0.0.1:9\) did not answer"):
        list(SourceFiles(f"s3://{BUCKET}/x").walk())


def test_a_refusal_is_told_at_once(object_store: ObjectStore, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with store_patience(3600), pytest.raises(StoreError, match=r"refuses to give .*; check its credentials"):
        list(SourceFiles(url).walk())
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with store_patience(3600), pytest.raises(StoreError, match=r"refuses to give .*; check its credentials"):
        SourceFiles(url).read("random")


def test_what_a_store_does_not_have_is_said_as_of_a_folder(object_store: ObjectStore, url: str) -> None:
    files = SourceFiles(url)
    assert files.entry("nothing") is None
    assert not files.exists("nothing/at/all")
    with pytest.raises(FileNotFoundError):
        files.read("nothing")
    for missing in (f"{url}/nothing", "s3://no-such-bucket-of-ours/x"):
        with pytest.raises(DataError, match="there is nothing at"):
            list(SourceFiles(missing).walk())


def test_a_url_takes_no_password_and_options_are_no_name() -> None:
    with pytest.raises(DataError, match="takes no password; set AWS_ACCESS_KEY_ID") as told:
        SourceFiles("s3://someone:hidden-word@bucket/photos")
    assert "hidden-word" not in str(told.value)
    files = SourceFiles("s3://anonymous@bucket/photos?region=eu-central-1")
    assert files.name == "photos"
    assert files.above.root == "s3://anonymous@bucket"
