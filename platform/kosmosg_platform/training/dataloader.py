"""Micro-batches of one worker, in the order of the run."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from kosmosg.stages import Batch
from kosmosg_platform.training.recipe import Record, RecordSource, TrainRun
from kosmosg_platform.training.sampler import MixtureSampler, SampleIndex


def micro_batches(job: TrainRun, start: int, micro: int, rank: int, world_size: int) -> Iterator[Batch]:
    """From optimizer step `start` to the end of the run; made by other processes if `scale.dataloader_workers` says so.

    A micro-batch is a slice of the sample order, and every sample one row of its own: neither workers nor micro-batches
    change what the rows of a global batch are.
    """
    datasets = job.recipe.datasets()
    sizes = {name: len(dataset) for name, dataset in datasets.items()}
    train = job.experiment.train
    order = MixtureSampler(sizes, job.recipe.weights(), train.seed, train.global_batch)
    loader: DataLoader[Any] = DataLoader(
        _Ordered(datasets),
        batch_sampler=_Slices(order, start, train.steps, micro, rank, world_size),
        collate_fn=job.recipe.build_collate(),
        num_workers=job.experiment.scale.dataloader_workers,
        pin_memory=job.experiment.scale.use_gpu,
        generator=torch.Generator(),  # else it would advance the global one, which belongs to the stage
    )
    return iter(loader)


class _Ordered(Dataset[tuple[SampleIndex, Record]]):
    """All sources as one dataset, in the order of the run."""

    def __init__(self, datasets: Mapping[str, RecordSource]) -> None:
        self._datasets = datasets

    def __getitem__(self, sample: SampleIndex) -> tuple[SampleIndex, Record]:
        return sample, self._datasets[sample.source][sample.index]


class _Slices:
    """The samples of every micro-batch, as torch's loader wants them."""

    def __init__(self, order: MixtureSampler, *window: int) -> None:
        self._order = order
        self._window = window

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        return self._order.micro_batches(*self._window)
