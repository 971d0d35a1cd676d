"""Results of jobs whose `output` or `dest` is in an object store.

The stages keep the folders of their runs themselves (`kosmosg_platform.training`). What other jobs write is sent while
they run, and what an earlier run of the same job left in the store is brought before.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kosmosg.data.files.store_file import store_patience
from kosmosg.errors import ConfigError
from kosmosg_platform.run_paths import RunPaths
from kosmosg_platform.stores.folder_sync import kept_in_step
from kosmosg_platform.stores.location import told, url_of

_SENT = ("generate", "evaluate", "export", "hash_list")
_ON_DISK = ("demo", "ablation", "toyworld")


@contextmanager
def stored_results(job: str, experiment: Any) -> Iterator[None]:
    """Keep what a job writes the same as in the store. Raises ConfigError for a job that writes to disks only."""
    given = {name: place for name in ("output", "dest") if (place := getattr(experiment, name)) is not None}
    stored = {name: place for name, place in given.items() if url_of(place) is not None}
    if job in _ON_DISK and stored:
        name, place = next(iter(stored.items()))
        raise ConfigError(f"{name}: `{job}` writes to a folder on a disk, not to {told(place)}; give a folder")
    with store_patience(experiment.scale.store_retry_s):
        if job not in _SENT:
            yield
            return
        folder: Path = experiment.dest or RunPaths(experiment.output).job(job)
        with kept_in_step(folder.absolute(), skip=(".lock",)):
            yield
