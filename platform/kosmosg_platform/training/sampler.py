"""The order of training samples, computed without state, so that restarts and the number of workers cannot change it.

The training run consumes positions 0, 1, 2, ... Step s of a run with global batch G takes the positions [sG, (s+1)G);
each worker takes a contiguous slice of them. The sample at a position is a pure function of the seed:

    position --mixture--> (source, how many of this source came before)
             --epochs-->  (epoch, place in the epoch)
             --keyed permutation--> index of the record

The whole state of data loading is therefore one integer, the step; and every record of a source is seen once before any
is seen twice.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

_MASK = (1 << 64) - 1
_LONGEST_PATTERN = 1 << 16


@dataclass(frozen=True, slots=True)
class SampleIndex:
    """One sample in the order."""

    source: str
    """Name of the source, as in the weights."""
    index: int
    """Record of the source's dataset."""
    epoch: int
    """How many complete passes over the source came before."""
    seed: int
    """Seed in [0, 2^63) of everything random about this sample; differs between epochs."""


class MixtureSampler:
    """The order of all samples of a run.

    sizes: records of each source. weights: share of each source in the mixture, any non-negative numbers; sources
    with weight 0 are ignored. After any number of samples, each source is within one sample of its exact share.
    """

    def __init__(self, sizes: Mapping[str, int], weights: Mapping[str, float], seed: int, global_batch: int) -> None:
        if global_batch < 1:
            raise ValueError(f"global batch must be at least 1, not {global_batch}")
        self.global_batch = global_batch
        self._names = [name for name, weight in weights.items() if weight > 0]
        if not self._names:
            raise ValueError(f"at least one source needs a weight above 0; given: {dict(weights)}")
        for name in self._names:
            if sizes.get(name, 0) < 1:
                raise ValueError(f"source {name!r} has weight {weights[name]} but no records")
        self._sizes = [sizes[name] for name in self._names]
        self._shares = _integers([weights[name] for name in self._names])
        self._pattern, self._before = _interleave(self._shares)
        self._keys = [mix(seed, *name.encode()) for name in self._names]

    def sample_at(self, position: int) -> SampleIndex:
        """The sample at a position (0-based) of the whole run."""
        period, offset = divmod(position, len(self._pattern))
        source = self._pattern[offset]
        count = period * self._shares[source] + self._before[offset]
        epoch, place = divmod(count, self._sizes[source])
        key = self._keys[source]
        index = permute(place, self._sizes[source], mix(key, epoch))
        return SampleIndex(self._names[source], index, epoch, mix(key, count, 1) >> 1)

    def step(self, step: int, rank: int = 0, world_size: int = 1) -> list[SampleIndex]:
        """The slice of one worker at an optimizer step; slices of all ranks in order are the whole batch."""
        share, rest = divmod(self.global_batch, world_size)
        if rest:
            raise ValueError(f"{self.global_batch} samples cannot be shared equally by {world_size} workers")
        start = step * self.global_batch + rank * share
        return [self.sample_at(position) for position in range(start, start + share)]

    def micro_batches(
        self, start: int, stop: int, micro: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[list[SampleIndex]]:
        """The slices of one worker for the steps [start, stop), cut into pieces of `micro` samples."""
        for step in range(start, stop):
            samples = self.step(step, rank, world_size)
            for first in range(0, len(samples), micro):
                yield samples[first : first + micro]


def permute(place: int, size: int, key: int) -> int:
    """A keyed permutation of range(size), one element at a time, without a table.

    Four Feistel rounds on the next even number of bits; values beyond `size` are permuted again until one falls inside
    (fewer than four times on average).
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    value = place
    while True:
        left, right = value >> half, value & mask
        for turn in range(4):
            left, right = right, left ^ (mix(key, turn, right) & mask)
        value = (left << half) | right
        if value < size:
            return value


def _integers(weights: list[float]) -> list[int]:
    """The weights as the smallest integers with the same ratio (to one part in a thousand)."""
    total = sum(weights)
    shares = [Fraction(weight / total).limit_denominator(1000) for weight in weights]
    shares = [max(share, Fraction(1, 1000)) for share in shares]
    common = lcm(*(share.denominator for share in shares))
    integers = [int(share * common) for share in shares]
    if sum(integers) > _LONGEST_PATTERN:
        # Awkward fractions: round to fractions of the longest pattern that is worth a table.
        integers = [max(1, round(share * _LONGEST_PATTERN)) for share in shares]
    return integers


def _interleave(shares: list[int]) -> tuple[list[int], list[int]]:
    """One period of the mixture: the source at each offset, and how often it occurred earlier in the period.

    Each offset goes to the source that is furthest behind its share (ties to the first), which keeps every prefix
    within one sample of the exact ratio.
    """
    total = sum(shares)
    counts = [0] * len(shares)
    pattern, before = [], []
    for offset in range(total):
        behind = [share * (offset + 1) - count * total for share, count in zip(shares, counts, strict=True)]
        source = behind.index(max(behind))
        pattern.append(source)
        before.append(counts[source])
        counts[source] += 1
    return pattern, before


def mix(*words: int) -> int:
    """64 well mixed bits of any integers (the finisher of splitmix64, chained)."""
    state = 0x9E3779B97F4A7C15
    for word in words:
        state = (state ^ (word & _MASK)) & _MASK
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state
