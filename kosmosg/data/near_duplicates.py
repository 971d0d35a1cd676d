"""Which of ten million hashes are near each other, in bounded memory.

Two hashes that differ in at most R bits agree in at least one of R + 1 bands of bits. So the hashes are sorted once for
each band, and only those in one bucket (of equal bits in that band) are compared: complete, not approximate, while no
bucket is larger than `cap`. Real images crowd (white backgrounds): in a larger bucket each hash is compared with the
`cap` that follow it in the order of all its bits, and how many were in such buckets is told.

N hashes, R radius. Memory is about 50 bytes a hash; the time grows with N^2 / 2^(64 / (R + 1)), so a radius of 2 is for
ten million, one of 4 for some hundred thousand.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kosmosg.data.image_hash import Hashes, hamming
from kosmosg.errors import ConfigError

RADIUS = 2
CAP = 1000
MAX_RADIUS = 15
CHUNK = 1 << 20

Rows = NDArray[np.int64]


class NearPairs(NamedTuple):
    """Pairs of rows whose hashes are near; a pair comes once."""

    left: Rows
    right: Rows
    crowded: int
    """Rows in buckets larger than the cap, since the pairs before; a row may count once for each band."""


def near(hashes: Hashes, radius: int = RADIUS, cap: int = CAP) -> Iterator[NearPairs]:
    """The pairs (i, j) with at most `radius` different bits, in chunks. Raises ConfigError for a radius without sense.

    Made for distinct hashes; of equal ones every pair is given, so those are better put together before (`groups`).
    """
    earlier: list[tuple[int, int]] = []
    for start, width in bands(radius):
        turned = _turn(hashes, start)
        order = np.argsort(turned)
        turned = turned[order]
        bucket = turned >> np.uint64(64 - width)
        # Pairs that agree in an earlier band came with that one.
        masks = [_turn(_mask(*band), start) for band in earlier]
        for begin in range(0, len(hashes), CHUNK):
            first = np.arange(begin, min(begin + CHUNK, len(hashes)))
            end = np.searchsorted(bucket, bucket[first], side="right")
            size = end - np.searchsorted(bucket, bucket[first], side="left")
            crowded = int((size > cap).sum())
            end = np.minimum(end, first + cap + 1)
            step = 0
            while first.size:
                step += 1
                open_ = first + step < end
                first, end = first[open_], end[open_]
                bits = turned[first] ^ turned[first + step]
                found = np.flatnonzero(np.bitwise_count(bits) <= radius)
                for mask in masks:
                    found = found[(bits[found] & mask) != 0]
                if found.size or crowded:
                    yield NearPairs(order[first[found]], order[first[found] + step], crowded)
                    crowded = 0
        earlier.append((start, width))


def groups(hashes: Hashes, radius: int = RADIUS, cap: int = CAP) -> tuple[NDArray[np.int64], int]:
    """A label for each hash, (N,): equal for those that a chain of near ones connects. And how many were crowded.

    Equal hashes are always together, however many there are.
    """
    distinct, place = np.unique(hashes, return_inverse=True)
    parent = np.arange(len(distinct))
    crowded = 0
    for pairs in near(distinct, radius, cap):
        crowded += pairs.crowded
        unite(parent, pairs.left, pairs.right)
    return roots(parent, np.arange(len(distinct)))[place], crowded


def unite(parent: Rows, left: Rows, right: Rows) -> None:
    """Join the groups of `left[i]` and `right[i]`, in place. A group's root is its smallest row."""
    while left.size:
        left, right = roots(parent, left), roots(parent, right)
        apart = left != right
        left, right = left[apart], right[apart]
        # Of several that want the same root only the smallest gets it; the others try again.
        np.minimum.at(parent, np.maximum(left, right), np.minimum(left, right))


def roots(parent: Rows, rows: Rows) -> Rows:
    """The roots of the groups of some rows; shortens their ways on the way."""
    found = parent[rows]
    while True:
        above = parent[found]
        if np.array_equal(above, found):
            parent[rows] = found
            return found
        found = parent[above]


class HashIndex:
    """Hashes sorted by each band, for questions of the kind: is any of them near this one?

    Args:
        hashes: (N,); 8 bytes x (radius + 2) are kept of each, and another 8 for its row.
        radius: bits that may differ.
    """

    def __init__(self, hashes: Hashes, radius: int) -> None:
        self.radius = radius
        self.order = np.argsort(hashes, kind="stable")
        self.hashes = hashes[self.order]
        self.bands = [(start, width, np.sort(_turn(hashes, start))) for start, width in bands(radius)]

    def nearest(self, wanted: int) -> tuple[int, int] | None:
        """Row and distance of the nearest hash within the radius (the first row of several), or None."""
        best: tuple[int, int] | None = None
        for start, width, turned in self.bands:
            own = _turn(np.uint64(wanted), start)
            low = own >> np.uint64(64 - width) << np.uint64(64 - width)
            high = low | np.uint64((1 << (64 - width)) - 1)
            bucket = turned[np.searchsorted(turned, low) : np.searchsorted(turned, high, side="right")]
            distances = hamming(bucket, own)
            if not distances.size or distances.min() > self.radius:
                continue
            for found in np.unique(bucket[distances == distances.min()]):
                row = int(self.order[np.searchsorted(self.hashes, _turn(found, (64 - start) % 64))])
                best = min(best or (65, row), (int(distances.min()), row))
        return (best[1], best[0]) if best else None


def bands(radius: int) -> list[tuple[int, int]]:
    """First bit (from the left) and width of the radius + 1 bands of 64 bits: 21, 21 and 22 bits for a radius of 2."""
    if not 0 <= radius <= MAX_RADIUS:
        raise ConfigError(f"radius is {radius}; hashes of 64 bits are searched within 0 to {MAX_RADIUS} bits")
    ends = [64 * band // (radius + 1) for band in range(radius + 2)]
    return [(start, end - start) for start, end in pairwise(ends)]


def _turn(hashes: Hashes | np.uint64, bits: int) -> Hashes:
    """Rotated to the left, so that the band that begins at `bits` comes first."""
    if bits == 0:
        return np.asarray(hashes)
    return np.asarray(hashes << np.uint64(bits) | hashes >> np.uint64(64 - bits))


def _mask(start: int, width: int) -> np.uint64:
    return np.uint64(((1 << width) - 1) << (64 - start - width))
