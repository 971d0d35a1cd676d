"""Leaves out copies: all images but one of each group of near-duplicates that a job found beforehand."""

from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np

from kosmosg.data.annotators.base import Rejection, Sample
from kosmosg.data.hash_list import key_hash, open_duplicates
from kosmosg.data.image_hash import Hashes
from kosmosg.errors import ConfigError, DataError


@dataclass(frozen=True)
class DuplicateFilter:
    """By the sample's id, as the list of duplicates names it; the image is not decoded.

    The list is loaded once in a process, 8 bytes a name. Raises ConfigError where it is missing.
    """

    needs: ClassVar[tuple[str, ...]] = ()

    duplicates: str
    """List of the images to leave out (`kosmosg run hash_list`): file, folder or URL."""

    def __post_init__(self) -> None:
        try:
            open_duplicates(self.duplicates)
        except DataError as error:
            raise ConfigError(f"duplicates: {error}") from error

    def __call__(self, sample: Sample) -> Rejection | None:
        wanted = np.uint64(key_hash(sample.id))
        place = int(np.searchsorted(self._loaded, wanted))
        if place == len(self._loaded) or self._loaded[place] != wanted:
            return None
        return Rejection("duplicate", f"a copy of the image is kept under another name, told in {self.duplicates}")

    def identity(self) -> dict[str, str]:
        """What shapes the answers beside the settings."""
        return {"duplicates_sha256": open_duplicates(self.duplicates).sha256()}

    def __getstate__(self) -> dict[str, Any]:
        # The names do not travel between processes.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def _loaded(self) -> Hashes:
        return _load(self.duplicates, open_duplicates(self.duplicates).stamp())


@lru_cache(maxsize=4)
def _load(path: str, stamp: str) -> Hashes:
    """The sorted numbers of the names. `stamp` is there so that a list that was made anew is loaded anew."""
    return np.sort(open_duplicates(path).numbers("key_hash"))
