"""Hash lists come back as they were written, and the duplicates in them do not depend on the order of work."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kosmosg.data.hash_list import (
    HASH_SCHEMA,
    find_duplicates,
    hash_table,
    key_hash,
    open_duplicates,
    open_hash_list,
    write_duplicates,
    write_hash_list,
)
from kosmosg.data.image_hash import FLAT, HashedImage
from kosmosg.errors import DataError


def image(key: str, number: int, content: str = "") -> HashedImage:
    return HashedImage(key, number, hashlib.sha256((content or key).encode()).digest())


def images(seed: int, count: int) -> list[HashedImage]:
    """A third are copies with one bit changed, a few are flat."""
    rng = np.random.default_rng(seed)
    numbers = rng.integers(1, 2**64, count, dtype=np.uint64)
    for row in range(0, count, 3):
        numbers[row] = rng.choice(numbers) ^ np.uint64(1 << int(rng.integers(64)))
    numbers[rng.integers(0, count, 3)] = FLAT
    return [image(f"images/{row:06d}.jpg", int(number)) for row, number in enumerate(numbers)]


def listed(path: Path, rows: list[HashedImage]) -> Path:
    assert write_hash_list(path, iter(rows)) == len(rows)
    return path


def dropped(path: Path, radius: int = 2) -> dict[str, str]:
    table = find_duplicates(open_hash_list(path), radius).table
    return dict(zip(table["key"].to_pylist(), table["kept"].to_pylist(), strict=True))


def test_a_list_comes_back_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kosmosg.data.hash_list.ROW_GROUP", 7)
    rows = images(0, 50)
    found = open_hash_list(listed(tmp_path / "list.parquet", rows))
    assert found.rows == 50
    assert found.numbers("hash").tolist() == [row.hash for row in rows]
    assert found.numbers("sha256").tolist() == [int.from_bytes(row.sha256[:8], "little") for row in rows]
    some = np.array([0, 6, 7, 8, 30, 49])
    assert found.strings("key", some).to_pylist() == [rows[row].key for row in some]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.parquet"]


def test_parts_in_a_folder_are_one_list(tmp_path: Path) -> None:
    rows = images(1, 60)
    (tmp_path / "parts").mkdir()
    for number, start in enumerate(range(0, 60, 20)):
        pq.write_table(hash_table(rows[start : start + 20]), tmp_path / "parts" / f"part-{number}.parquet")
    found = open_hash_list(tmp_path / "parts")
    assert found.numbers("hash").tolist() == [row.hash for row in rows]
    assert dropped(tmp_path / "parts") == dropped(listed(tmp_path / "one.parquet", rows))


def test_the_order_of_the_rows_changes_nothing(tmp_path: Path) -> None:
    rows = images(2, 300)
    one = listed(tmp_path / "one.parquet", rows)
    first = find_duplicates(open_hash_list(one))
    shuffled = [rows[row] for row in np.random.default_rng(0).permutation(300)]
    second = find_duplicates(open_hash_list(listed(tmp_path / "other.parquet", shuffled)))
    assert first.table.equals(second.table)
    assert first[1:] == second[1:]


@pytest.mark.parametrize("seed", range(5))
def test_of_each_group_the_first_key_is_kept(tmp_path: Path, seed: int) -> None:
    rows = images(seed, 200)
    found = find_duplicates(open_hash_list(listed(tmp_path / "list.parquet", rows)))
    pairs = dict(zip(found.table["key"].to_pylist(), found.table["kept"].to_pylist(), strict=True))
    assert found.images == 200
    assert len(pairs) > 20
    assert found.groups == len(set(pairs.values()))
    assert not set(pairs) & set(pairs.values())
    assert all(kept < key for key, kept in pairs.items())
    # What is left has no near pair.
    left = [row for row in rows if row.key not in pairs and row.hash != FLAT]
    numbers = np.array([row.hash for row in left], np.uint64)
    distances = np.bitwise_count(numbers[:, None] ^ numbers[None])
    assert (distances <= 2).sum() == len(left)


def test_a_chain_of_copies_is_one_group(tmp_path: Path) -> None:
    rows = [image(name, 0b1010 ^ (1 << 20) - (1 << step)) for step, name in enumerate("dacb")]
    assert dropped(listed(tmp_path / "list.parquet", rows), radius=1) == {"b": "a", "c": "a", "d": "a"}


def test_flat_images_are_copies_only_when_their_bytes_are(tmp_path: Path) -> None:
    rows = [
        image("white", FLAT), image("black", FLAT), image("white again", FLAT, "white"), image("one bit", 1),
    ]  # fmt: skip
    assert dropped(listed(tmp_path / "list.parquet", rows)) == {"white again": "white"}


def test_equal_bytes_are_told_from_copies_that_look_alike(tmp_path: Path) -> None:
    rows = [image("a", 12345), image("b", 12345, "a"), image("c", 12345), image("d", 12344)]
    table = find_duplicates(open_hash_list(listed(tmp_path / "list.parquet", rows))).table
    assert dict(zip(table["key"].to_pylist(), table["exact"].to_pylist(), strict=True)) == {
        "b": True, "c": False, "d": False,
    }  # fmt: skip


def test_an_image_that_was_hashed_twice_is_no_copy_of_itself(tmp_path: Path) -> None:
    rows = [image("a", 99), image("a", 99), image("b", 98)]
    assert dropped(listed(tmp_path / "list.parquet", rows)) == {"b": "a"}


def test_one_key_for_two_images_is_refused(tmp_path: Path) -> None:
    far = 2**40 - 1
    rows = [image("a", 99), image("b", 99), image("b", far), image("c", far)]
    with pytest.raises(DataError, match="'b' stands for several images"):
        dropped(listed(tmp_path / "list.parquet", rows))


@pytest.mark.parametrize("rows", [[], [image("a", 5)]])
def test_a_list_without_copies_has_no_duplicates(tmp_path: Path, rows: list[HashedImage]) -> None:
    found = find_duplicates(open_hash_list(listed(tmp_path / "list.parquet", rows)))
    assert (found.table.num_rows, found.images, found.groups, found.crowded) == (0, len(rows), 0, 0)
    write_duplicates(tmp_path / "duplicates.parquet", found)
    assert open_duplicates(tmp_path / "duplicates.parquet").rows == 0


def test_duplicates_are_written_sorted_by_the_number_of_their_key(tmp_path: Path) -> None:
    found = find_duplicates(open_hash_list(listed(tmp_path / "list.parquet", images(4, 200))))
    write_duplicates(tmp_path / "duplicates.parquet", found)
    numbers = open_duplicates(tmp_path / "duplicates.parquet").numbers("key_hash").tolist()
    assert numbers == sorted(key_hash(key) for key in found.table["key"].to_pylist())


def test_numbers_of_keys_are_spread() -> None:
    numbers = [key_hash(f"images/{row}.jpg") for row in range(20_000)]
    assert len(set(numbers)) == len(numbers)
    tops = Counter(number >> 60 for number in numbers)
    assert min(tops.values()) > 1000


def test_another_file_is_refused_with_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        open_hash_list(tmp_path / "missing.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.parquet file"):
        open_hash_list(tmp_path / "empty")
    (tmp_path / "page.parquet").write_text("<html>")
    with pytest.raises(DataError, match="is no Parquet file"):
        open_hash_list(tmp_path / "page.parquet")
    pq.write_table(pa.table({"url": ["a"]}), tmp_path / "table.parquet")
    with pytest.raises(DataError, match=r"no list of dct-sign-64/1.*columns url"):
        open_hash_list(tmp_path / "table.parquet")
    older = HASH_SCHEMA.with_metadata({b"kosmosg.image_hash": b"dct-sign-64/0"})
    pq.write_table(hash_table([image("a", 1)]).cast(older), tmp_path / "older.parquet")
    with pytest.raises(DataError, match=r"dct-sign-64/1, but dct-sign-64/0"):
        open_hash_list(tmp_path / "older.parquet")
    found = find_duplicates(open_hash_list(listed(tmp_path / "list.parquet", images(0, 9))))
    write_duplicates(tmp_path / "duplicates.parquet", found)
    with pytest.raises(DataError, match="no list of dct-sign-64/1"):
        open_hash_list(tmp_path / "duplicates.parquet")


def test_empty_values_are_refused(tmp_path: Path) -> None:
    rows = pa.table([pa.array(["a", None]), pa.array([1, 2], pa.uint64()), pa.array([b"x" * 32] * 2, pa.binary(32))],
                    schema=HASH_SCHEMA)  # fmt: skip
    pq.write_table(rows, tmp_path / "list.parquet")
    with pytest.raises(DataError, match="rows without key"):
        open_hash_list(tmp_path / "list.parquet").strings("key", np.array([0]))


def test_the_digest_changes_with_the_content(tmp_path: Path) -> None:
    one = open_hash_list(listed(tmp_path / "one.parquet", images(0, 9)))
    same = open_hash_list(listed(tmp_path / "same.parquet", images(0, 9)))
    other = open_hash_list(listed(tmp_path / "other.parquet", images(1, 9)))
    assert one.sha256() == same.sha256() != other.sha256()
