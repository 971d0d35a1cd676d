"""Dropout is on, and a stage still learns the same however its batches are split over workers and passes.

Steps, DeepSpeed and data are real; only what comes between steps is left out, so that three processes run all splits.
"""

import os
import sys
from pathlib import Path

import pytest
import ray
import torch
from ray import cloudpickle

from jobs import align, build_dataset, instruct, pretrain
from jobs.experiment import load
from kosmosg_platform.tracking import Run
from kosmosg_platform.training.dataloader import micro_batches
from kosmosg_platform.training.loop import Worker
from kosmosg_platform.training.metrics import Meter
from kosmosg_platform.training.recipe import TrainRun

# Ray's workers cannot import test files: what is defined here travels by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

JOBS = {"pretrain": pretrain, "align": align, "instruct": instruct}
SPLITS = ((1, 4), (2, 2), (2, 1))  # workers, samples of a pass; the last has two passes
STEPS = 5


def training_run(stage: str, data: Path, output: Path, workers: int, micro: int) -> TrainRun:
    settings = {
        "output": output / f"{workers}-{micro}",
        "parent": "new",
        "data.folder": data,
        "data.pad_captions": True,  # the loss of stage 2 counts pads
        "scale.workers": workers,
        "train.micro_batch": micro,
        "train.steps": STEPS,
        "train.global_batch": 4,
        "train.lr": 1e-3,
        "engine.checkpoint_activations": micro == 1,
    }
    experiment = load(stage, "tiny", [f"{name}={value}" for name, value in settings.items()])
    return TrainRun(JOBS[stage].recipe(experiment), experiment, "key", Run("", ""))


def learn(job: TrainRun, rank: int, workers: int) -> list[float]:
    """The loss of every step, over all workers."""
    worker, losses = Worker(job), []
    batches = micro_batches(job, 0, worker.micro, rank, workers)
    for step in range(STEPS):
        batch = [next(batches).batch for _ in range(worker.passes)]
        weights = [float(one.pop("weight")) for one in batch]
        meter = Meter()
        assert worker._step(step, batch, weights, worker._sum(sum(weights))[0], meter)
        losses.append(meter.mean()["loss"])
    worker.engine.release()
    return losses


def rank_process(rank: int, workers: int, data: Path, output: Path) -> dict[tuple[str, int], list[float]]:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(workers)}
    store = f"file://{output}/store-{workers}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=workers)
    curves = {
        (stage, micro): learn(training_run(stage, data, output, workers, micro), rank, workers)
        for _, micro in (split for split in SPLITS if split[0] == workers)
        for stage in JOBS
    }
    torch.distributed.destroy_process_group()
    return curves


@pytest.fixture(scope="module")
def learnt(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str, int], list[float]]:
    """The curves by workers, stage and samples of a pass."""
    folder = tmp_path_factory.mktemp("split")
    build_dataset.run(load("build_dataset", "tiny", [f"output={folder}"]))
    environment = {"env_vars": {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1"}}
    run = ray.remote(num_cpus=0, max_calls=1, max_retries=0, runtime_env=environment)(rank_process)
    ranks = [(rank, workers) for workers in {workers for workers, _ in SPLITS} for rank in range(workers)]
    tasks = [run.remote(rank, workers, folder / "build_dataset", folder) for rank, workers in ranks]
    found: list[dict[tuple[str, int], list[float]]] = ray.get(tasks, timeout=480)
    return {
        (workers, *key): curve for (_, workers), one in zip(ranks, found, strict=True) for key, curve in one.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("stage", JOBS)
def test_the_loss_curve_does_not_depend_on_the_split(
    stage: str, learnt: dict[tuple[int, str, int], list[float]]
) -> None:
    curves = [learnt[workers, stage, micro] for workers, micro in SPLITS]
    assert len(set(curves[0])) == STEPS
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], abs=2e-5)
