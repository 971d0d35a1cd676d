"""Micro-batches of one worker, in the order of the run."""

import multiprocessing
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from kosmosg.errors import DataError, KosmosGError
from kosmosg.stages import Batch
from kosmosg_platform.training.heartbeat import end_with_parent
from kosmosg_platform.training.held_out import training_rows
from kosmosg_platform.training.notices import notify
from kosmosg_platform.training.recipe import Collate, RecordSource, TrainRun
from kosmosg_platform.training.replacement import Replacement, of_the_sample, record_id, usable
from kosmosg_platform.training.sampler import MixtureSampler, SampleIndex
from kosmosg_platform.training.skipped_data import SkippedData

# How torch tells of a dead process, with and without its signal handler; an exception of ours in it reads differently.
_DEATH = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:exited unexpectedly|is killed by signal)")


@dataclass(frozen=True)
class LoadedBatch:
    """One micro-batch, and which of its samples stand in for others."""

    batch: Batch
    replaced: tuple[Replacement, ...] = ()


def micro_batches(
    job: TrainRun, start: int, micro: int, rank: int, world_size: int, skipped: SkippedData | None = None
) -> Iterator[LoadedBatch]:
    """The micro-batches from optimizer step `start` to the end of the run, made by `scale.dataloader_workers`
    processes, without the data in `skipped`.

    A micro-batch is a slice of the sample order, and every sample is one row: the rows of a global batch do not depend
    on the number of workers or micro-batches.

    Raises:
        KosmosGError: what reading or collating raised, wherever it happened; and DataError, naming the samples that it
            was at, when a data loader process died.
    """
    datasets = training_rows(job.recipe.datasets(), job.held_out)
    sizes = {name: len(dataset) for name, dataset in datasets.items()}
    train, processes = job.experiment.train, job.experiment.scale.dataloader_workers
    order = MixtureSampler(sizes, job.recipe.weights(), train.seed, train.global_batch)
    batches = _Batches(datasets, job.recipe.build_collate(), processes, micro)
    loader: DataLoader[Any] = DataLoader(
        batches,
        batch_sampler=_Slices(order, skipped or SkippedData(), range(start, train.steps), micro, rank, world_size),
        collate_fn=_unchanged,
        num_workers=processes,
        worker_init_fn=end_with_parent,
        pin_memory=job.experiment.scale.use_gpu,
        generator=torch.Generator(),  # otherwise it would advance the global generator, which the stage uses
    )
    loaded = iter(loader)
    while True:
        try:
            found = next(loaded, None)
        except (RuntimeError, OSError, EOFError) as error:
            dead = _dead(error, batches.processes())
            if not dead:
                raise
            told = batches.death(dead, rank)
            notify(job.folder, told)  # now, because the run may go on from its last checkpoint
            raise DataError(told) from error
        if found is None:
            return
        batch, replaced, failure = found
        if failure is not None:
            raise failure
        yield LoadedBatch(batch, tuple(replaced))


class _Batches(Dataset[Any]):
    """All sources as one dataset, of which torch's DataLoader takes a micro-batch at a time.

    Errors of ours are returned, not raised: the DataLoader would make a traceback of their sentence.
    """

    def __init__(self, datasets: Mapping[str, RecordSource], collate: Collate, processes: int, micro: int) -> None:
        self._datasets, self._collate = datasets, collate
        self._names = list(datasets)
        # For each process its id, how many samples it is at, and which: source and index of each. In shared memory.
        self._at = torch.zeros(processes, 2 + 2 * micro, dtype=torch.long).share_memory_()

    def __getitems__(self, samples: list[SampleIndex]) -> tuple[Batch | None, list[Replacement], KosmosGError | None]:
        self._announce(samples)
        try:
            batch, replaced = self._batch(samples)
            return batch, replaced, None
        except KosmosGError as error:
            return None, [], error
        finally:
            self._announce([])

    def processes(self) -> list[int]:
        """The ids of the processes that have begun to work."""
        return [int(pid) for pid in self._at[:, 0].tolist() if pid]

    def death(self, pids: Sequence[int], rank: int) -> str:
        """One sentence about processes that died."""
        parts = []
        for pid in pids:
            rows = [row for row in self._at.tolist() if row[0] == pid]
            samples = ", ".join(self._name(row[2 + 2 * n], row[3 + 2 * n]) for row in rows for n in range(row[1]))
            parts.append(f"{pid} " + (f"at the samples {samples}" if samples else "between two micro-batches"))
        return (
            f"data loader process {' and '.join(parts)} of worker {rank} was killed or crashed, often for lack of "
            "memory; set scale.dataloader_workers or train.micro_batch lower, or look at these records"
        )

    def _name(self, source: int, index: int) -> str:
        name = self._names[source]
        try:
            return f"{name} {record_id(self._datasets[name][index], index)!r}"
        except KosmosGError:
            return f"{name} {index}"

    def _batch(self, samples: list[SampleIndex]) -> tuple[Batch, list[Replacement]]:
        records = [(sample, self._datasets[sample.source][sample.index]) for sample in samples]
        try:
            return self._collate(records), []
        except KosmosGError as error:
            if not of_the_sample(error):
                raise
            # One by one, to see which it is.
            found = [usable(one, self._datasets[one.source], lambda *pair: self._collate([pair])) for one in samples]
            replaced = [each for _, _, each in found if each is not None]
            if not replaced:
                raise
            return self._collate([pair for _, pair, _ in found]), replaced

    def _announce(self, samples: Sequence[SampleIndex]) -> None:
        info = get_worker_info()
        if info is None:
            return
        row = [number for one in samples for number in (self._names.index(one.source), one.index)]
        self._at[info.id, : 2 + len(row)] = torch.tensor([os.getpid(), len(samples), *row])


class _Slices:
    """The samples of every micro-batch, as a batch sampler for torch's DataLoader."""

    def __init__(self, order: MixtureSampler, skipped: SkippedData, steps: range, *part: int) -> None:
        self._order = order
        self._skipped = skipped
        self._steps = steps
        self._part = part

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        for step in self._steps:
            data_step = self._skipped.data_step(step)
            yield from self._order.micro_batches(data_step, data_step + 1, *self._part)


def _dead(error: Exception, processes: Sequence[int]) -> list[int]:
    """The data loader processes whose death is behind an error; empty if they live."""
    told = _DEATH.search(str(error))
    if told is not None:
        return [int(pid) for pid in told[1].split(",")]
    # A process that dies right after it has sent a batch is noticed when the batch's memory is asked for, which may be
    # a moment before it is seen to have ended.
    deadline = time.monotonic() + (0 if isinstance(error, RuntimeError) else 1)
    try:
        while True:
            alive = {child.pid for child in multiprocessing.active_children()}
            dead = [pid for pid in processes if pid not in alive]
            if dead or time.monotonic() > deadline:
                return dead
            time.sleep(0.05)
    except RuntimeError as later:  # torch's signal handler, which is there on the main thread
        return _dead(later, processes)


def _unchanged(batch: Any) -> Any:
    return batch


__all__ = ["LoadedBatch", "micro_batches"]
