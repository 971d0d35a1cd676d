"""The order of samples does not depend on who asks, when, or on how many workers."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kosmosg_platform.training.sampler import MixtureSampler, permute

weights = st.lists(st.one_of(st.integers(1, 9), st.floats(0.05, 5)), min_size=1, max_size=4)


def order_of(shares: list[float], seed: int = 0, batch: int = 12, size: int = 7) -> MixtureSampler:
    names = [f"s{i}" for i in range(len(shares))]
    return MixtureSampler(
        {n: size + i for i, n in enumerate(names)}, dict(zip(names, shares, strict=True)), seed, batch
    )


@given(size=st.integers(1, 600), key=st.integers(0, 2**64 - 1))
def test_permutation_hits_every_record_once(size: int, key: int) -> None:
    assert sorted(permute(i, size, key) for i in range(size)) == list(range(size))


@given(shares=weights, seed=st.integers(0, 9), batch_of=st.sampled_from([1, 2, 3, 4, 6, 12]))
@settings(max_examples=40)
def test_any_number_of_workers_takes_the_same_samples(shares: list[float], seed: int, batch_of: int) -> None:
    order = order_of(shares, seed)
    for step in (0, 1, 17, 10**9):
        whole = order.step(step)
        parts = [draw for rank in range(batch_of) for draw in order.step(step, rank, batch_of)]
        assert parts == whole


@given(shares=weights, stops=st.lists(st.integers(0, 30), min_size=1, max_size=4), micro=st.sampled_from([1, 2, 3, 6]))
@settings(max_examples=40)
def test_stopping_anywhere_and_going_on_with_other_workers_repeats_and_skips_nothing(
    shares: list[float], stops: list[int], micro: int
) -> None:
    order = order_of(shares)
    cuts = [0, *sorted(stops), 30]
    seen = []
    for attempt, (start, stop) in enumerate(pairwise(cuts)):
        workers = (1, 2)[attempt % 2]
        pieces = [list(order.micro_batches(start, stop, micro, rank, workers)) for rank in range(workers)]
        passes = order.global_batch // workers // micro
        for step in range(stop - start):
            for rank in range(workers):
                seen += [draw for piece in pieces[rank][step * passes : (step + 1) * passes] for draw in piece]
    assert seen == [order.sample_at(position) for position in range(30 * order.global_batch)]


@given(shares=weights)
@settings(max_examples=40)
def test_every_prefix_holds_the_mixture_within_one_sample(shares: list[float]) -> None:
    order = order_of(shares)
    counts: Counter[str] = Counter()
    for position in range(400):
        counts[order.sample_at(position).source] += 1
        for i, share in enumerate(shares):
            exact = (position + 1) * share / sum(shares)
            # 0.001 of the share is given away when awkward weights become integers.
            assert abs(counts[f"s{i}"] - exact) <= 1 + 0.002 * len(shares) * (position + 1)


def test_two_to_two_to_one_is_exact_in_every_batch() -> None:
    order = MixtureSampler({"a": 50, "b": 60, "c": 70}, {"a": 2, "b": 2, "c": 1}, seed=3, global_batch=40)
    for step in range(20):
        assert Counter(draw.source for draw in order.step(step)) == {"a": 16, "b": 16, "c": 8}


def test_each_epoch_sees_every_record_once_in_a_new_order() -> None:
    order = MixtureSampler({"a": 23}, {"a": 1}, seed=0, global_batch=1)
    epochs = [[order.sample_at(epoch * 23 + i) for i in range(23)] for epoch in range(3)]
    for number, epoch in enumerate(epochs):
        assert sorted(draw.index for draw in epoch) == list(range(23))
        assert {draw.epoch for draw in epoch} == {number}
    assert len({tuple(draw.index for draw in epoch) for epoch in epochs}) == 3


def test_seeds_differ_between_samples_epochs_and_runs_and_fit_in_int64() -> None:
    seeds = [order_of([1, 1], seed).sample_at(position).seed for seed in (0, 1) for position in range(300)]
    assert len(set(seeds)) == 600
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_order_is_the_same_in_every_release() -> None:
    """Recorded numbers: a change here would silently break the resuming of runs from earlier releases."""
    order = MixtureSampler({"a": 1000, "b": 10}, {"a": 3, "b": 1}, seed=7, global_batch=4)
    assert [(d.source, d.index, d.epoch) for d in order.step(2)] == GOLDEN


GOLDEN = [("a", 4, 0), ("a", 760, 0), ("b", 5, 0), ("a", 477, 0)]


def test_a_source_with_weight_needs_records() -> None:
    with pytest.raises(ValueError, match="'b' has weight 1 but no records"):
        MixtureSampler({"a": 3, "b": 0}, {"a": 1, "b": 1}, 0, 4)
    with pytest.raises(ValueError, match="cannot be shared equally by 5"):
        order_of([1]).step(0, 0, 5)


@pytest.mark.parametrize(("records", "shards", "seed"), [(9_000, 30, 0), (40_000, 1_000, 1), (5_000, 2, 2)])
def test_the_order_is_shuffled_over_all_shards(records: int, shards: int, seed: int) -> None:
    """Neighbours of a source, which lie in one shard, are not neighbours in the order: two samples in a row come from
    the same shard, and from neighbouring records, as often as chance has it."""
    order = MixtureSampler({"a": records}, {"a": 1}, seed, 1)
    count = min(records, 8_000)
    indices = np.array([order.sample_at(position).index for position in range(count)])
    shard = indices * shards // records
    same = np.mean(shard[1:] == shard[:-1])
    spread = np.sqrt((1 / shards) * (1 - 1 / shards) / count)
    assert abs(same - 1 / shards) < 5 * spread
    assert np.mean(np.abs(np.diff(indices)) == 1) < 10 / records + 5 * np.sqrt(2 / records / count)
    # Every stretch of the order draws from all shards alike: chi-squared, its mean is the number of shards - 1.
    for stretch in np.array_split(shard, 4):
        drawn = np.bincount(stretch, minlength=shards)
        expected = len(stretch) / shards
        assert ((drawn - expected) ** 2 / expected).sum() < (shards - 1) + 6 * np.sqrt(2 * (shards - 1)) + 6
