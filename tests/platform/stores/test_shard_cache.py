"""Datasets in an object store: the same records as from a folder, and a bounded cache on the node."""

import hashlib
import multiprocessing
from pathlib import Path

import pytest

from kosmosg.errors import ConfigError, DataError
from kosmosg_platform.datasets.dataset import RecordDataset
from kosmosg_platform.stores.location import local_copy
from kosmosg_platform.stores.shard_cache import LIMIT, limit_bytes
from tests.made_records import records as made
from tests.made_records import write_dataset
from tests.object_store import BUCKET, ObjectStore


@pytest.fixture
def dataset(object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A folder, and the local copy of the URL of the same dataset."""
    monkeypatch.setenv("KOSMOSG_CACHE", str(tmp_path / "cache"))
    folder = write_dataset(tmp_path / "set", "composition", made("composition", 12), shards=3)
    return folder, local_copy(object_store.upload(folder, f"{tmp_path.name}/set"))


def shards(cache: Path) -> list[Path]:
    return [path for path in cache.glob("shards/*") if not path.suffix]


def read(folder: Path, answers: "multiprocessing.Queue[str]") -> None:
    records = RecordDataset(folder)
    answers.put(hashlib.sha256(repr([records[index] for index in range(len(records))]).encode()).hexdigest())


def test_processes_of_a_node_read_the_records_of_the_folder(dataset: tuple[Path, Path], tmp_path: Path) -> None:
    folder, copy = dataset
    context = multiprocessing.get_context("spawn")
    answers: multiprocessing.Queue[str] = context.Queue()
    workers = [context.Process(target=read, args=(place, answers)) for place in (folder, copy, copy)]
    for worker in workers:
        worker.start()
    assert len({answers.get(timeout=60) for _ in workers}) == 1
    for worker in workers:
        worker.join()
    assert len(shards(tmp_path / "cache")) == 3


def test_the_cache_keeps_its_limit(dataset: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, copy = dataset
    largest = max(path.stat().st_size for path in folder.glob("data/*.parquet"))
    monkeypatch.setenv(LIMIT, str(largest * 1.5 / 1e9))
    records = RecordDataset(copy, cache_bytes=0)
    local = RecordDataset(folder)
    for index in (0, 11, 5, 0, 6, 11):  # shards come and go
        assert records[index] == local[index]
        assert sum(path.stat().st_size for path in shards(tmp_path / "cache")) <= largest * 1.5
    monkeypatch.setenv(LIMIT, "none")
    with pytest.raises(ConfigError, match=LIMIT):
        limit_bytes()


def test_a_damaged_shard_is_refused_by_name(
    object_store: ObjectStore, dataset: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, copy = dataset
    shard = sorted(folder.glob("data/*.parquet"))[1]
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    with object_store.files().open_output_stream(f"{BUCKET}/{tmp_path.name}/set/data/{shard.name}") as file:
        file.write(bytes(content))
    records = RecordDataset(copy)
    assert records[0]["id"]
    with pytest.raises(DataError, match=f"s3://{BUCKET}/{tmp_path.name}/set/data/{shard.name} has the sha256"):
        records[5]
    assert len(shards(tmp_path / "cache")) == 1
