"""Reading records costs about their own bytes and little memory, and only what the manifest describes is read."""

import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kosmosg import node_cache
from kosmosg.errors import DataError
from kosmosg_platform.datasets import shard_files
from kosmosg_platform.datasets.dataset import RecordDataset, write_manifest, write_records
from kosmosg_platform.datasets.parquet_footer import FooterIndex, read_footer_index

random = np.random.default_rng(0)


def caption(index: int, image_bytes: int) -> dict[str, Any]:
    return {
        "id": f"row-{index:06d}",
        "text": f"a red ball number {index}",
        "image": random.bytes(image_bytes),
        "width": 8,
        "height": 8,
        "source": "made here",
        "provenance": None,
    }


def publish(folder: Path, sizes: list[int], image_bytes: int) -> list[dict[str, Any]]:
    rows, shards = [], []
    for number, size in enumerate(sizes):
        part = [caption(len(rows) + i, image_bytes) for i in range(size)]
        shards.append(write_records(folder, f"data/part-{number:05d}.parquet", "caption", part))
        rows += part
    write_manifest(folder, "caption", shards)
    return rows


def bytes_read() -> int:
    """Of all read calls of this process."""
    return int(Path("/proc/self/io").read_text().split()[1])


def own_bytes(record: dict[str, Any]) -> int:
    return sum(len(value) for value in record.values() if isinstance(value, (bytes, str)))


@pytest.mark.parametrize("image_bytes", [20_000, 133_000, 400_000])
def test_a_random_read_takes_at_most_twice_the_bytes_of_the_record(tmp_path: Path, image_bytes: int) -> None:
    rows = publish(tmp_path, [20, 20, 20], image_bytes)
    found = RecordDataset(tmp_path, cache_bytes=1)
    for first in (0, 20, 40):
        _ = found[first]  # once per node each shard is read and compared with the manifest
    order = np.random.default_rng(1).permutation(60)
    before = bytes_read()
    for index in order:
        assert found[int(index)] == rows[index]
    assert bytes_read() - before < 2 * sum(map(own_bytes, rows))


def test_captions_are_read_without_their_images(tmp_path: Path) -> None:
    rows = publish(tmp_path, [30], 100_000)
    found = RecordDataset(tmp_path, cache_bytes=1, columns=["text", "caption"])
    assert found[29] == {"text": rows[29]["text"]}
    before = bytes_read()
    assert [record["text"] for record in found] == [row["text"] for row in rows]
    assert bytes_read() - before < 0.1 * sum(map(own_bytes, rows))


def test_few_files_are_open_and_memory_does_not_grow_with_their_footers(tmp_path: Path) -> None:
    """Shards with 300 row groups each: their footers, decoded, would be tens of megabytes."""
    names = [f"data/part-{number:05d}.parquet" for number in range(100)]
    rows = [caption(i, 20_000) for i in range(300)]
    first = write_records(tmp_path, names[0], "caption", rows)
    for name in names[1:]:
        os.link(tmp_path / names[0], tmp_path / name)
    write_manifest(tmp_path, "caption", [type(first)(name, first.rows, first.bytes, first.sha256) for name in names])
    assert pq.read_metadata(tmp_path / names[0]).num_row_groups == 300
    found = RecordDataset(tmp_path, cache_bytes=1)
    for index in range(0, len(found), 100):
        assert found[index] == rows[index % 300]
    assert found._files.open_files() <= shard_files.OPEN_FILES
    kept = [index for _, index in found._files._known.values()]
    assert len(kept) == 100
    assert sum(index.starts.nbytes + index.ends.nbytes for index in kept) <= 100 * 8 * 301
    assert len({id(index.tail) for index in kept}) == 1


@pytest.mark.parametrize("columns", [1, 14, 15, 40])
def test_a_group_read_alone_is_that_of_the_file(tmp_path: Path, columns: int) -> None:
    """Of any file that pyarrow writes: many columns, long names, dictionaries, statistics, more than 15 groups."""

    data = {
        f"column {'x' * (n % 200)} {n}": [f"{n}-{row}" * (n % 3) or None for row in range(50)] for n in range(columns)
    }
    table = pa.table(data, metadata={"note": "x" * 300})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3, write_page_index=True)
    index = FooterIndex.from_bytes(read_footer_index(tmp_path / "a.parquet").to_bytes())
    assert index.rows == 50
    with (tmp_path / "a.parquet").open("rb") as file:
        for row in (0, 2, 3, 48, 49):
            group, place = index.group_of(row)
            metadata = index.metadata(group, file.fileno())
            alone = pq.ParquetFile(tmp_path / "a.parquet", metadata=metadata).read_row_group(0)
            assert alone.slice(place, 1).to_pylist() == table.slice(row, 1).to_pylist()


def flip(path: Path, at: int) -> None:
    """One byte changed in place, with the file's times put back."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("where", [0.1, 0.5, 0.999])
@pytest.mark.parametrize("seen", [False, True])
def test_a_flipped_byte_is_refused_by_name(tmp_path: Path, where: float, seen: bool) -> None:
    publish(tmp_path, [5, 5], 30_000)
    if seen:
        assert len(list(RecordDataset(tmp_path))) == 10
    path = tmp_path / "data/part-00001.parquet"
    flip(path, int(path.stat().st_size * where))
    found = RecordDataset(tmp_path)
    assert len([found[index] for index in range(5)]) == 5
    told = found.manifest["shards"][1]["sha256"]
    with pytest.raises(DataError, match=rf"part-00001.parquet has the sha256 [0-9a-f]{{64}}, its manifest says {told}"):
        _ = found[7]  # not the damaged record itself


@pytest.mark.parametrize("same_size", [True, False])
def test_a_shard_of_other_records_is_refused(tmp_path: Path, same_size: bool) -> None:
    rows = publish(tmp_path, [4], 100)
    size = (tmp_path / "data/part-00000.parquet").stat().st_size
    for _ in range(100):  # a checksum that happens to be small takes a byte less
        other = [row | {"image": random.bytes(100 if same_size else 120)} for row in rows]
        if (write_records(tmp_path, "data/part-00000.parquet", "caption", other).bytes == size) == same_size:
            break
    else:
        raise AssertionError("no file of that size came out")
    with pytest.raises(DataError, match=r"(has the sha256|bytes, its manifest) .* delete it and run the same build"):
        _ = RecordDataset(tmp_path)[0]


def test_a_shard_that_changes_while_it_is_in_use_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_files, "OPEN_FILES", 1)
    publish(tmp_path, [2, 2], 100)
    found = RecordDataset(tmp_path, cache_bytes=1)
    assert found[0]["id"] == "row-000000"
    assert found[2]["id"] == "row-000002"
    flip(tmp_path / "data/part-00000.parquet", 50)
    with pytest.raises(DataError, match="part-00000"):
        _ = found[0]


def _count(path: Path, told: Path) -> None:
    def compute(one: Path) -> bytes:
        with told.open("a") as file:
            file.write("x")
        time.sleep(0.3)
        return one.read_bytes()

    assert node_cache.once_per_node(path, "test", compute) == path.read_bytes()


def test_processes_of_a_node_share_one_look_at_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    fork = multiprocessing.get_context("fork")
    for expected in ("x", "x", "xx"):
        some = [fork.Process(target=_count, args=(tmp_path / "file", tmp_path / "told")) for _ in range(3)]
        for process in some:
            process.start()
        for process in some:
            process.join()
        assert [process.exitcode for process in some] == [0, 0, 0]
        assert (tmp_path / "told").read_text() == expected
        if len(expected) == 1 and (tmp_path / "seen").exists():
            (tmp_path / "file").write_bytes(b"CONTENT")
        (tmp_path / "seen").touch()


def test_a_cache_that_cannot_be_written_or_is_damaged_only_costs_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = publish(tmp_path / "data set", [3], 2_000_000)
    monkeypatch.setenv("KOSMOSG_CACHE", str(tmp_path / "cache"))
    assert RecordDataset(tmp_path / "data set")[1] == rows[1]
    records = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size]
    assert len(records) == 2  # digest, row groups
    for path in records:
        flip(path, path.stat().st_size - 10)
    monkeypatch.setattr(node_cache, "_DIGESTS", {})
    assert RecordDataset(tmp_path / "data set")[1] == rows[1]
    (tmp_path / "a file").touch()
    monkeypatch.setenv("KOSMOSG_CACHE", str(tmp_path / "a file"))
    monkeypatch.setattr(node_cache, "_DIGESTS", {})
    assert RecordDataset(tmp_path / "data set")[1] == rows[1]


def test_a_manifest_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    publish(tmp_path, [2], 100)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"manifest.json .*sha256"):
        RecordDataset(tmp_path)
