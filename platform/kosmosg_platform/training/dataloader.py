"""Micro-batches of one worker, in the order of the run."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from kosmosg.stages import Batch
from kosmosg_platform.training.recipe import Record, RecordSource, TrainRun
from kosmosg_platform.training.sampler import MixtureSampler, SampleIndex


def micro_batches(job: TrainRun, start: int, micro: int, rank: int, world_size: int) -> Iterator[Batch]:
    """The micro-batches from optimizer step `start` to the end of the run, made by `scale.dataloader_workers`
    processes.

    A micro-batch is a slice of the sample order, and every sample is one row: the rows of a global batch do not depend
    on the number of workers or micro-batches.
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
        generator=torch.Generator(),  # otherwise it would advance the global generator, which the stage uses
    )
    return iter(loader)


class _Ordered(Dataset[tuple[SampleIndex, Record]]):
    """All sources as one dataset, in sample order."""

    def __init__(self, datasets: Mapping[str, RecordSource]) -> None:
        self._datasets = datasets

    def __getitem__(self, sample: SampleIndex) -> tuple[SampleIndex, Record]:
        return sample, self._datasets[sample.source][sample.index]


class _Slices:
    """The samples of every micro-batch, as a batch sampler for torch's DataLoader."""

    def __init__(self, order: MixtureSampler, *window: int) -> None:
        self._order = order
        self._window = window

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        return self._order.micro_batches(*self._window)
