"""Samples that cannot be used, such as an image that cannot be decoded, are replaced by the next of their kind.

The replacement of record i of a dataset is record i + 1, or the next one after it that can be used, read with the seed
of the sample that it stands in for. So it is a function of the sample order, like everything else about a sample: the
same after a restart and on any number of workers. `ReplacedSamples` counts, lists and limits them.

What cannot be read at all (a damaged or missing shard) is another matter, and ends the run: the records there are not
those that the run was started with.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from kosmosg.errors import CheckpointError, ConfigError, DataError, KosmosGError
from kosmosg_platform.console import read_metrics
from kosmosg_platform.storage import write_text
from kosmosg_platform.training.notices import notify
from kosmosg_platform.training.recipe import Record, RecordSource, TrainRun
from kosmosg_platform.training.sampler import SampleIndex

IN_A_ROW = 20  # records that are tried for one sample: more of them are no accident
ALLOWED = 10  # samples that may be replaced however short the run is
FILE = "replaced.jsonl"

Built = TypeVar("Built")


@dataclass(frozen=True)
class Replacement:
    """One sample that was replaced."""

    kind: str
    """Kind of sample, as in `data.weights`."""
    index: int
    """Of the record that could not be used."""
    id: str
    """Its id."""
    by: int
    """Index of the record that was read instead."""
    by_id: str
    """Its id."""
    seed: int
    """Seed of the sample, which tells it from others of the same record."""
    reason: str
    """One line."""


def record_id(record: Record, index: int) -> str:
    """The id of a record, of a group's documents, or the index of a record without one."""
    documents = record.get("documents")
    if documents:
        return ", ".join(str(one.get("id", "")) for one in documents)
    return str(record.get("id", f"record {index}"))


def usable(
    sample: SampleIndex, source: RecordSource, build: Callable[[SampleIndex, Record], Built]
) -> tuple[Built, tuple[SampleIndex, Record], Replacement | None]:
    """What `build` makes of a sample, or of the next record of its kind of which it can make something.

    Returns what was built, the sample and record that it was built of, and the replacement if there was one.

    Raises:
        DataError: none of `IN_A_ROW` records can be used.
    """
    tried = min(IN_A_ROW, len(source))
    first: tuple[str, str] | None = None
    for offset in range(tried):
        index = (sample.index + offset) % len(source)
        record = source[index]
        try:
            built = build(replace(sample, index=index), record)
        except KosmosGError as error:
            if not of_the_sample(error):
                raise
            first = first or (record_id(record, index), " ".join(str(error).split()))
            continue
        if first is None:
            return built, (sample, record), None
        found = Replacement(
            sample.source, sample.index, first[0], index, record_id(record, index), sample.seed, first[1]
        )
        return built, (replace(sample, index=index), record), found
    assert first is not None  # a source is never empty
    raise DataError(
        f"{tried} records of {sample.source} in a row cannot be used, from {first[0]!r} on: {first[1]}; look at the "
        "dataset, and build it again"
    )


def of_the_sample(error: KosmosGError) -> bool:
    """Whether an error can be mended by taking another record; settings and models are the same for all."""
    return not isinstance(error, (ConfigError, CheckpointError))


class ReplacedSamples:
    """Those of a whole run, in the file `replaced.jsonl` of its folder; every worker has one and notes its own.

    A resumed run repeats some steps, so their lines are removed first. A record is logged once, however often it is
    replaced. All methods but `note` are collective.
    """

    def __init__(self, job: TrainRun, start: int, device: torch.device) -> None:
        self._path, self._train, self._device = job.folder / FILE, job.experiment.train, device
        self._first = dist.get_rank() == 0
        self._pending: list[dict[str, Any]] = []
        kept: list[dict[str, Any]] = []
        if self._first and self._path.is_file():
            kept = [line for line in read_metrics(self._path) if line["step"] < start]
            write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._logged = {(line["kind"], line["index"]) for line in kept}
        count = [len(kept)]
        dist.broadcast_object_list(count, src=0)
        self.count = count[0]

    def note(self, step: int, replaced: Iterable[Replacement]) -> None:
        """What this worker replaced in optimizer step `step` (0-based)."""
        self._pending += [{"step": step, **asdict(one)} for one in replaced]

    def settle(self, step: int) -> int:
        """Write and log what all workers have noted up to and with `step`; returns how many there are in the run.

        Raises:
            DataError: on every worker, when there are more than `train.max_replaced` allows.
        """
        pending = torch.tensor(len(self._pending), device=self._device)
        dist.all_reduce(pending)
        if not int(pending):
            return self.count
        everyone: list[list[dict[str, Any]]] = [[]] * dist.get_world_size()
        dist.all_gather_object(everyone, self._pending)
        self._pending = []
        lines = sorted((line for one in everyone for line in one), key=lambda line: (line["step"], line["seed"]))
        self.count += len(lines)
        if self._first:
            self._write(lines)
        share, samples = self._train.max_replaced, (step + 1) * self._train.global_batch
        if self.count > (max(ALLOWED, share * samples) if share else 0):
            last = lines[-1]
            raise DataError(
                f"{self.count} of {samples} samples were replaced because they cannot be used, train.max_replaced="
                f"{share:g} allows fewer; the last was {last['id']!r} of {last['kind']}: {last['reason']}. All are "
                f"listed in {self._path}; build the dataset again without them, or raise train.max_replaced"
            )
        return self.count

    def _write(self, lines: list[dict[str, Any]]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        for line in lines:
            key = (line["kind"], line["index"])
            if key not in self._logged:
                self._logged.add(key)
                told = f"record {line['id']!r} of {line['kind']} cannot be used and is replaced by {line['by_id']!r}"
                notify(self._path.parent, f"{told}: {line['reason']}")


__all__ = ["FILE", "ReplacedSamples", "Replacement", "of_the_sample", "record_id", "usable"]
