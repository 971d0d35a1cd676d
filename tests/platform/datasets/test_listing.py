"""Listings: every item once, in shards that stay what they are when the source grows."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kosmosg.data.sources.base import Item, SourceRow
from kosmosg.errors import DataError
from kosmosg_platform.datasets import listing
from kosmosg_platform.datasets.chunks import chunks_of
from kosmosg_platform.datasets.listing import ListedShard, read_items, write_listing


class Names:
    """A source that is a list of names."""

    kind = "composition"
    annotated = True
    shard_rows = 0

    def __init__(self, names: Sequence[str], shuffled: bool = True, stamp: str = "1", rows: int = 1) -> None:
        self.names, self.shuffled, self.stamp, self.rows = names, shuffled, stamp, rows

    def describe(self) -> dict[str, Any]:
        return {"layout": "names"}

    def items(self) -> Iterator[Item]:
        for name in self.names:
            yield Item(name, name, 0, self.rows, self.rows, 10 * self.rows, self.stamp, '{"a": 1}')

    def read(self, items: Sequence[Item]) -> Iterator[SourceRow]:
        raise NotImplementedError


def names(count: int, first: int = 0) -> list[str]:
    return [f"folder/{number}.jpg" for number in range(first, first + count)]


def keys(folder: Path, shards: Sequence[ListedShard]) -> dict[str, list[str]]:
    return {shard.name: [item.key for item in read_items(folder, shard.name)] for shard in shards}


@pytest.mark.parametrize("spill", [4096, 5])
def test_every_item_is_in_one_shard(tmp_path: Path, spill: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "SPILL", spill)  # in memory, or through files
    shards = write_listing(tmp_path, Names(names(1000)), shard_rows=64, shard_bytes=10**9)
    found = keys(tmp_path, shards)
    assert sorted(key for of in found.values() for key in of) == sorted(names(1000))
    assert all(len(of) <= 64 for of in found.values())
    assert len(found) == 16
    (first, *_) = found.values()
    assert first != sorted(first), "rows of a folder are dealt over the shards"
    assert read_items(tmp_path, shards[0].name)[0][1:] == (first[0], 0, 1, 1, 10, "1", '{"a": 1}')
    assert not list(tmp_path.rglob(".buckets"))


def test_the_order_of_the_listing_does_not_matter(tmp_path: Path) -> None:
    one = write_listing(tmp_path / "a", Names(names(300)), 50, 10**9)
    other = write_listing(tmp_path / "b", Names(names(300)[::-1]), 50, 10**9)
    assert one == other


def test_bytes_bound_a_shard_as_well(tmp_path: Path) -> None:
    shards = write_listing(tmp_path, Names(names(100)), 10**6, shard_bytes=95)
    assert all(shard.bytes <= 95 for shard in shards)
    assert sum(shard.items for shard in shards) == 100


def test_what_is_larger_than_a_shard_is_one_shard(tmp_path: Path) -> None:
    shards = write_listing(tmp_path, Names(names(3), rows=500), 100, 1)
    assert [shard.rows for shard in shards] == [500, 500, 500]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    old=st.sets(st.integers(0, 400), min_size=1),
    new=st.sets(st.integers(0, 400), min_size=1),
)
def test_a_source_that_changes_leaves_items_where_they_were(
    tmp_path_factory: pytest.TempPathFactory, old: set[int], new: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("listing")
    before = keys(folder, write_listing(folder, Names([f"{n}" for n in old]), 16, 10**9))
    after = keys(folder, write_listing(folder, Names([f"{n}" for n in new]), 16, 10**9))
    assert sorted(key for of in after.values() for key in of) == sorted(f"{n}" for n in new)
    for name, of in before.items():
        assert after.get(name, []) == [key for key in of if int(key) in new]
    added = [of for name, of in after.items() if name not in before]
    assert sorted(key for of in added for key in of) == sorted(f"{n}" for n in new - old)


def test_a_changed_item_changes_its_shard_alone(tmp_path: Path) -> None:
    class Changed(Names):
        def items(self) -> Iterator[Item]:
            for item in super().items():
                yield item._replace(stamp="2") if item.key == "folder/7.jpg" else item

    before = {shard.name: shard for shard in write_listing(tmp_path, Names(names(200)), 20, 10**9)}
    after = {shard.name: shard for shard in write_listing(tmp_path, Changed(names(200)), 20, 10**9)}
    changed = [name for name, shard in after.items() if shard.digest != before[name].digest]
    (name,) = changed
    assert "folder/7.jpg" in keys(tmp_path, [after[name]])[name]


def test_what_keeps_its_order_keeps_it(tmp_path: Path) -> None:
    shards = write_listing(tmp_path, Names(names(50), shuffled=False), 20, 10**9)
    assert [key for of in keys(tmp_path, shards).values() for key in of] == names(50)
    assert [shard.items for shard in shards] == [20, 20, 10]


def test_a_limit_is_a_number_of_rows(tmp_path: Path) -> None:
    shards = write_listing(tmp_path, Names(names(9), shuffled=False, rows=10), 100, 10**9, limit=25)
    (shard,) = shards
    assert (shard.items, shard.rows) == (3, 25)
    assert read_items(tmp_path, shard.name)[-1].length == 5


def test_the_chunks_of_a_shard_cover_it(tmp_path: Path) -> None:
    (shard,) = write_listing(tmp_path, Names(names(10), rows=10), 1000, 10**9)
    chunks = list(chunks_of(tmp_path, shard, "key", 25))
    assert [(chunk.first, chunk.items) for chunk in chunks] == [(0, 2), (2, 2), (4, 2), (6, 2), (8, 2)]
    assert len({chunk.key for chunk in chunks}) == 5
    other = list(chunks_of(tmp_path, shard, "other key", 25))
    assert [chunk.content for chunk in other] == [chunk.content for chunk in chunks]
    assert other[0].key != chunks[0].key


def test_nothing_to_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to read"):
        write_listing(tmp_path, Names([]), 10, 10)


def test_a_damaged_index_is_made_anew(tmp_path: Path) -> None:
    shards = write_listing(tmp_path, Names(names(30)), 10, 10**9)
    (tmp_path / ".listing/index.json").write_text("{")
    assert write_listing(tmp_path, Names(names(30)), 10, 10**9) == shards
