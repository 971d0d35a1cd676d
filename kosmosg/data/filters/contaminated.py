"""Keeps the images of an evaluation set out of training data, by their perceptual hashes."""

from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np

from kosmosg.data.annotators.base import Rejection, Sample
from kosmosg.data.hash_list import open_hash_list
from kosmosg.data.image_hash import FLAT, image_hash
from kosmosg.data.near_duplicates import HashIndex, bands
from kosmosg.errors import ConfigError, DataError


@dataclass(frozen=True)
class ContaminatedFilter:
    """By the distance to the nearest image of a hash list, such as one of DreamBench or COCO.

    The list and its index are loaded once in a process. Raises ConfigError where the list is missing.
    """

    needs: ClassVar[tuple[str, ...]] = ()

    hashes: str
    """Hash list (`kosmosg run hash_list`) of the images to keep out: file, folder or URL."""
    radius: int = 4
    """Bits of 64 that may differ. Other sizes and encodings differ by 0 to 2, a crop of 1 % at each side by up to 6,
    different photos by 15 and more."""

    def __post_init__(self) -> None:
        bands(self.radius)
        try:
            open_hash_list(self.hashes)
        except DataError as error:
            raise ConfigError(f"hashes: {error}") from error

    def __call__(self, sample: Sample) -> Rejection | None:
        index, keys = self._loaded
        found = image_hash(sample.image)
        nearest = index.nearest(found) if found != FLAT else None
        if nearest is None:
            return None
        row, distance = nearest
        return Rejection(
            "contaminated", f"the image is {keys[row].as_py()!r} of {self.hashes}, {distance} of 64 bits differ"
        )

    def identity(self) -> dict[str, str]:
        """What shapes the answers beside the settings."""
        return {"hashes_sha256": open_hash_list(self.hashes).sha256()}

    def __getstate__(self) -> dict[str, Any]:
        # The index does not travel between processes.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def _loaded(self) -> tuple[HashIndex, Any]:
        return _load(self.hashes, self.radius, open_hash_list(self.hashes).stamp())


@lru_cache(maxsize=4)
def _load(path: str, radius: int, stamp: str) -> tuple[HashIndex, Any]:
    """Index and keys of a list. `stamp` is there so that a list that was made anew is loaded anew."""
    listed = open_hash_list(path)
    hashes = listed.numbers("hash")
    rows = np.flatnonzero(hashes != FLAT)
    return HashIndex(hashes[rows], radius), listed.strings("key", rows)
