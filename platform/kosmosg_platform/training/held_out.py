"""Records that a run never trains on, to measure its loss on: chosen by a hash of their ids.

Which records are held out depends on their ids alone, not on seed, order, shards or number of workers; a run without
`data.validation` sees its sources as they are.
"""

import hashlib
import heapq
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from kosmosg.errors import ConfigError
from kosmosg_platform.datasets.dataset import RecordDataset
from kosmosg_platform.training.mixture import Mixture
from kosmosg_platform.training.recipe import RecordSource


def choose_held_out(ids: Iterable[str], count: int) -> tuple[int, ...]:
    """The indices, in order, of the `count` records whose hashed ids are smallest, and of all records of equal id."""
    hashed = [(hashlib.blake2b(one.encode(), digest_size=8).digest(), index) for index, one in enumerate(ids)]
    if count >= len(hashed):
        raise ConfigError(
            f"data.validation: {count} records would be held out of {len(hashed)}, so none would be left to train on; "
            "give a smaller number"
        )
    chosen = {digest for digest, _ in heapq.nsmallest(count, hashed)}
    return tuple(index for digest, index in hashed if digest in chosen)


def shares_of(count: int, weights: Mapping[str, float]) -> dict[str, int]:
    """How many of `count` validation rows each kind of sample gets: its share, and at least one."""
    total = sum(weights.values())
    return {name: max(1, round(count * weight / total)) for name, weight in weights.items()}


def find_held_out(mixture: Mixture, count: int, documents_per_row: int = 0) -> dict[str, tuple[int, ...]]:
    """The samples of each kind that are held out, by their index; empty for a count of 0.

    Kinds that read the same dataset hold out the same records, as many as the largest of them needs. A group of
    documents goes by the id of its first one.
    """
    if not count:
        return {}
    shares = shares_of(count, mixture.weights)
    most: dict[Path, int] = {}
    for name, folder in mixture.folders.items():
        most[folder] = max(most.get(folder, 0), shares[name])
    found = {}
    for name, folder in mixture.folders.items():
        ids: Iterable[str] = RecordDataset(folder).ids()
        if documents_per_row and name == "text":
            ids = islice(ids, 0, None, documents_per_row)
        found[name] = choose_held_out(ids, most[folder])
    return found


def training_rows(
    sources: Mapping[str, RecordSource], held_out: Mapping[str, Sequence[int]]
) -> dict[str, RecordSource]:
    """The sources without what is held out; those that hold out nothing as they are."""
    return {
        name: RemainingRows(source, held_out[name]) if held_out.get(name) else source
        for name, source in sources.items()
    }


class RemainingRows:
    """A source without the records that are held out; the others keep their order."""

    def __init__(self, source: Any, held_out: Sequence[int]) -> None:
        self.source = source
        # held_out[k] - k records stay before the k-th that is held out
        self._before = [index - count for count, index in enumerate(held_out)]

    def __len__(self) -> int:
        return len(self.source) - len(self._before)

    def __getitem__(self, index: int) -> Any:
        return self.source[self.place(index)]

    def place(self, index: int) -> int:
        """The index, in the whole source, of a record that is left."""
        return index + bisect_right(self._before, index)
