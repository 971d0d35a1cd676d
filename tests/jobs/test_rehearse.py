"""`kosmosg rehearse`: what it says of a run with many workers is what the run would do."""

from collections.abc import Sequence

import pytest

from jobs import rehearse
from kosmosg.config import KosmosGConfig
from kosmosg.errors import ConfigError
from kosmosg_platform.cluster.session import ScaleConfig
from kosmosg_platform.planning.flops import STABLE_DIFFUSION, stage_cost, trainable_sizes
from kosmosg_platform.planning.rehearsal import RehearseConfig, checkpoint_files, place, slices, traffic
from kosmosg_platform.training.engine_config import EngineConfig
from kosmosg_platform.training.lr_schedule import TrainConfig


def lines(*words: str) -> list[str]:
    return list(rehearse.rehearse([*words, "rehearse.nodes=0"]))


def test_the_papers_256_workers_are_told_stage_by_stage() -> None:
    told = "\n".join(lines("paper"))
    for stage in ("pretrain", "align", "instruct"):
        assert f"{stage}: " in told
    assert told.count("256 files") == 3
    assert "assuming 9,000,000 records each" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("paper", "scale.workers=255"), "train.global_batch: 6656 samples cannot be shared equally by 255 workers"),
        (("paper", "data.folder=/nowhere"), "no dataset folder|does not exist|no records|there is no"),
        (("paper", "evaluate.seed=1"), "a rehearsal does not depend on it"),
    ],
)
def test_what_would_not_work_is_one_sentence(words: Sequence[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lines(*words)


@pytest.mark.parametrize("stage", ["pretrain", "align", "instruct"])
def test_a_checkpoint_holds_every_trained_value_once(stage: str) -> None:
    config = KosmosGConfig.paper()
    sizes = trainable_sizes(stage, config)
    cost = stage_cost(stage, config, STABLE_DIFFUSION, {})
    files = checkpoint_files(sizes, 64, averaged=True)
    assert files.files == 64
    assert files.total == 16 * cost.trainable  # weight, two moments, average; fp32
    # Parameters are not split: the worker with the largest one writes nothing else, and no worker writes more.
    assert files.largest == 16 * max(sizes.values())
    assert files.smallest <= files.total / 64


def test_slices_are_the_batch_at_every_step_that_is_looked_at() -> None:
    train = TrainConfig(steps=7, global_batch=12, micro_batch=2)
    found = slices(train, 3, {"a": 5, "b": 1000}, {"a": 1.0, "b": 3.0})
    assert found.steps == (0, 1, 3, 6)
    assert (found.samples, found.passes) == (4, 2)
    assert found.epochs == {"a": pytest.approx(7 * 12 / 4 / 5), "b": pytest.approx(7 * 12 * 3 / 4 / 1000)}


def test_volumes_are_those_of_ring_algorithms() -> None:
    config = KosmosGConfig.paper()
    cost = stage_cost("instruct", config, STABLE_DIFFUSION, {})
    train = TrainConfig(global_batch=64, micro_batch=4)
    sent = {
        stage: traffic(cost, train, 8, EngineConfig(zero_stage=stage, precision="bf16"), ["loss"]).step
        for stage in range(4)
    }
    once = 2 * cost.trainable * 7 / 8  # two bytes a value
    assert sent[0] == pytest.approx(2 * once)
    assert sent[1] == pytest.approx(2 * once)
    assert sent[2] == pytest.approx((2 + 1) * once)  # gradients are reduced in each of two passes
    assert sent[3] == pytest.approx(2 * once + 4 * 2 * (cost.trainable + cost.frozen) * 7 / 8)


def test_workers_that_do_not_fit_are_refused_before_any_node_starts() -> None:
    with pytest.raises(ConfigError, match=r"48 workers .* 4 nodes of 8 CPUs and 8 GPUs, which hold 16; lower"):
        place(ScaleConfig(workers=48, use_gpu=True, cpus_per_worker=2), RehearseConfig(cpus_per_node=8, nodes=4))


@pytest.mark.slow
def test_ray_places_the_workers_on_simulated_nodes() -> None:
    """In a process of its own: the test run has a cluster already."""
    import subprocess
    import sys

    words = ["gpu", "scale.workers=4", "rehearse.gpus_per_node=2", "rehearse.cpus_per_node=64"]
    done = subprocess.run(
        [sys.executable, "-m", "jobs.rehearse", *words], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "placement: 4 workers on 2 simulated nodes" in done.stdout
    assert "2 on each of 2" in done.stdout
