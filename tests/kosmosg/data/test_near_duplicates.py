"""The search by bands finds what comparing every pair finds, and where it may not, it says so."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kosmosg.data import near_duplicates
from kosmosg.data.image_hash import Hashes
from kosmosg.data.near_duplicates import MAX_RADIUS, HashIndex, bands, groups, near
from kosmosg.errors import ConfigError


def hashes_with_copies(seed: int, count: int, flips: int, distinct: bool = False) -> Hashes:
    """Random hashes, half of them copies of others with up to `flips` bits changed."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 2**64, max(1, count // 2), dtype=np.uint64)
    copies = rng.choice(base, count - len(base))
    for _ in range(flips):
        copies ^= np.uint64(1) << rng.integers(0, 64, len(copies), dtype=np.uint64)
    found = rng.permutation(np.concatenate([base, copies]))
    return np.unique(found) if distinct else found


def all_pairs(hashes: Hashes, radius: int) -> set[tuple[int, int]]:
    distances = np.bitwise_count(hashes[:, None] ^ hashes[None])
    return {(int(i), int(j)) for i, j in zip(*np.nonzero(distances <= radius), strict=True) if i < j}


def found_pairs(hashes: Hashes, radius: int, cap: int = 1000) -> list[tuple[int, int]]:
    return [
        (min(i, j), max(i, j))
        for chunk in near(hashes, radius, cap)
        for i, j in zip(chunk.left.tolist(), chunk.right.tolist(), strict=True)
    ]


def partition(labels: list[int]) -> set[frozenset[int]]:
    return {frozenset(row for row, label in enumerate(labels) if label == wanted) for wanted in labels}


def chained(count: int, pairs: set[tuple[int, int]]) -> set[frozenset[int]]:
    """Connected components, one edge at a time."""
    group = {row: {row} for row in range(count)}
    for left, right in pairs:
        if group[left] is not group[right]:
            group[left] |= group[right]
            for row in group[right]:
                group[row] = group[left]
    return {frozenset(rows) for rows in group.values()}


@given(
    seed=st.integers(0, 2**32), count=st.integers(1, 120), flips=st.integers(0, 6), radius=st.integers(0, MAX_RADIUS)
)
def test_every_near_pair_is_found_once(seed: int, count: int, flips: int, radius: int) -> None:
    hashes = hashes_with_copies(seed, count, flips)
    found = found_pairs(hashes, radius)
    assert set(found) == all_pairs(hashes, radius)
    assert len(found) == len(set(found))


@given(seed=st.integers(0, 2**32), count=st.integers(1, 120), flips=st.integers(0, 4), radius=st.integers(0, 6))
def test_groups_are_what_chains_of_near_pairs_connect(seed: int, count: int, flips: int, radius: int) -> None:
    hashes = hashes_with_copies(seed, count, flips)
    labels, crowded = groups(hashes, radius)
    assert partition(labels.tolist()) == chained(count, all_pairs(hashes, radius))
    assert crowded == 0


@given(seed=st.integers(0, 2**32), count=st.integers(1, 60), flips=st.integers(0, 8), radius=st.integers(0, MAX_RADIUS))
def test_the_index_gives_the_nearest_or_none(seed: int, count: int, flips: int, radius: int) -> None:
    hashes = hashes_with_copies(seed, count, flips)
    index = HashIndex(hashes, radius)
    strangers = np.random.default_rng(seed).integers(0, 2**64, 5, dtype=np.uint64)
    for wanted in [*hashes[:10], *(hashes[:10] ^ np.uint64(0b11)), *strangers]:
        distances = np.bitwise_count(hashes ^ wanted)
        row = int(np.argmin(distances))
        expected = (row, int(distances[row])) if distances[row] <= radius else None
        assert index.nearest(int(wanted)) == expected


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = hashes_with_copies(3, 500, 2)
    whole = set(found_pairs(hashes, 2))
    monkeypatch.setattr(near_duplicates, "CHUNK", 7)
    assert set(found_pairs(hashes, 2)) == whole == all_pairs(hashes, 2)


def test_a_long_chain_is_one_group() -> None:
    """Each differs by one bit from the one before: the ends are far apart."""
    flipped = np.cumsum(np.uint64(1) << np.arange(64, dtype=np.uint64), dtype=np.uint64)
    shuffled = np.random.default_rng(0).permutation(flipped)
    labels, _ = groups(shuffled, 1)
    assert len(set(labels.tolist())) == 1


def test_crowded_buckets_are_told_and_never_give_a_wrong_pair() -> None:
    """All hashes agree in the first half, as images on white backgrounds do."""
    rng = np.random.default_rng(0)
    hashes = np.unique(rng.integers(0, 2**12, 400, dtype=np.uint64))
    cap = 20
    found = found_pairs(hashes, 2, cap)
    assert sum(chunk.crowded for chunk in near(hashes, 2, cap)) >= len(hashes)
    assert set(found) < all_pairs(hashes, 2)
    assert len(found) == len(set(found))
    assert len(found) <= 3 * len(hashes) * cap


def test_equal_hashes_are_one_group_however_many() -> None:
    hashes = np.concatenate([np.full(5000, 7, np.uint64), np.array([2**40, 2**50 + 2**33], np.uint64)])
    labels, crowded = groups(hashes, 0, cap=10)
    assert len(set(labels[:5000].tolist())) == 1
    assert len(set(labels.tolist())) == 3
    assert crowded == 0


def test_no_hashes_have_no_groups() -> None:
    labels, crowded = groups(np.array([], np.uint64))
    assert (len(labels), crowded) == (0, 0)
    assert HashIndex(np.array([], np.uint64), 3).nearest(5) is None


@pytest.mark.parametrize("radius", range(MAX_RADIUS + 1))
def test_bands_share_the_bits_among_them(radius: int) -> None:
    found = bands(radius)
    assert len(found) == radius + 1
    assert [start for start, _ in found] == np.cumsum([0, *(width for _, width in found[:-1])]).tolist()
    assert sum(width for _, width in found) == 64
    assert max(width for _, width in found) - min(width for _, width in found) <= 1


@pytest.mark.parametrize("radius", [-1, MAX_RADIUS + 1, 64])
def test_a_radius_without_sense_is_refused(radius: int) -> None:
    with pytest.raises(ConfigError, match=str(radius)):
        list(near(np.array([1, 2], np.uint64), radius))
