"""Every ZeRO stage learns the same, whichever ranks have images: real DeepSpeed in two processes.

One rank's micro-batch may have images where the other's has none. All ZeRO stages run one after another in the same two
processes, and are compared with ZeRO-0, which averages gradients only once all of them are there.
"""

import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray import cloudpickle
from torch import Tensor

from kosmosg import KosmosG, KosmosGConfig
from kosmosg.data.templates.pretrain import IGNORED
from kosmosg.diffusion.decoder import FrozenDecoder
from kosmosg.stages.instruct import InstructStage
from kosmosg.stages.pretrain import PretrainObjective, PretrainStage
from kosmosg_platform.training.engine import Engine
from kosmosg_platform.training.engine_config import EngineConfig
from kosmosg_platform.training.lr_schedule import TrainConfig, learning_rate

# Ray's workers cannot import test files: what is defined here travels by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

# Images of rank 0 and rank 1 in each micro-batch; an update takes two. All pairs of with and without occur, first and
# second, and both ranks are the one without.
IMAGES = ((1, 0), (0, 2), (0, 0), (2, 1), (0, 1), (0, 0), (1, 1), (1, 0), (0, 0), (0, 1))
PASSES, VOCABULARY, SLOTS, LENGTH, ROWS = 2, 50, 4, 16, 2
UPDATES = len(IMAGES) // PASSES
TRAIN = TrainConfig(steps=UPDATES, global_batch=2 * ROWS * PASSES, lr=2e-3, schedule="constant")
STAGES = ("pretrain", "instruct")
# With recomputed activations, the backward pass runs modules again: only where their order matters.
RUNS = [*product([0, 1, 2, 3], STAGES, [False]), *product([2, 3], STAGES, [True])]


def micro_batch(stage: str, index: int, rank: int) -> dict[str, Tensor]:
    """Rows of random tokens, and as many images as `IMAGES` says, one per row."""
    generator = torch.Generator().manual_seed(2 * index + rank)
    images = IMAGES[index][rank]
    ids = torch.randint(4, VOCABULARY, (ROWS, LENGTH), generator=generator)
    slots = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    slots[:images, 2 : 2 + SLOTS] = True
    batch = {"input_ids": ids}
    if images:
        batch["image_embeds_position_mask"] = slots
        batch["pixel_values"] = torch.randn(images, 3, 32, 32, generator=generator)
    if stage == "pretrain":
        batch["labels"] = torch.where(slots, IGNORED, ids.roll(-1, 1))
    else:
        batch["target_pixels"] = torch.randn(ROWS, 3, 16, 16, generator=generator)
        batch["seed"] = torch.arange(ROWS) + 2 * ROWS * index + ROWS * rank
    return batch


def build(stage: str, decoder: Path) -> Any:
    torch.manual_seed(0)
    model = KosmosG(KosmosGConfig.tiny(VOCABULARY))
    if stage == "pretrain":
        return PretrainStage(model, PretrainObjective(logit_slices=2))
    return InstructStage(model, FrozenDecoder.from_pretrained(decoder), [[0]])


def learn(stage: str, recompute: bool, zero: int, rank: int, decoder: Path) -> tuple[list[float], dict[str, Tensor]]:
    """This rank's loss of every micro-batch, and all weights after the last update."""
    module = build(stage, decoder)
    if recompute:
        module.checkpoint_activations()
    parameters = module.trainable()
    engine = Engine(module, parameters, TRAIN, EngineConfig(zero_stage=zero), ROWS, PASSES, 2)
    losses = []
    for index in range(len(IMAGES)):
        torch.manual_seed(2 * index + rank)  # of dropout
        out = engine(micro_batch(stage, index, rank))
        engine.backward(out.loss)
        engine.step(learning_rate(TRAIN, index // PASSES))
        losses.append(float(out.loss.detach()))
    state = dict(engine.full_state({name for name, _ in parameters}))
    engine.release()
    return losses, {name: tensor for name, tensor in state.items() if name.startswith("param.")}


def rank_process(rank: int, folder: Path, decoder: Path) -> None:
    """Everything that one rank does, in one process group. ZeRO-3 comes last: out of step, it ends the process."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for zero, stage, recompute in sorted(RUNS):
        torch.save(learn(stage, recompute, zero, rank, decoder), folder / f"{stage}-{zero}-{recompute}-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def learnt(ray_cluster: None, tiny_sd_parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what each rank learnt. A process group that gets out of step is ended after a while."""
    folder = tmp_path_factory.mktemp("learnt")
    environment = {"env_vars": {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1"}}
    run = ray.remote(num_cpus=1, max_calls=1, max_retries=0, runtime_env=environment)(rank_process)
    tasks = [run.remote(rank, folder, tiny_sd_parts) for rank in range(2)]
    _, late = ray.wait(tasks, num_returns=2, timeout=480)
    for task in late:
        ray.cancel(task, force=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("zero", "stage", "recompute"), [run for run in RUNS if run[0]])
def test_zero_stages_learn_the_same_whichever_ranks_have_images(
    learnt: Path, zero: int, stage: str, recompute: bool
) -> None:
    for rank in range(2):
        losses, weights = torch.load(learnt / f"{stage}-{zero}-{recompute}-{rank}.pt")
        expected, expected_weights = torch.load(learnt / f"{stage}-0-False-{rank}.pt")
        assert len(set(expected)) == len(IMAGES)
        assert losses == pytest.approx(expected, abs=5e-6)
        for name, weight in expected_weights.items():
            # AdamW divides by the gradient's size: where that is near 0, rounding can become a whole step.
            torch.testing.assert_close(
                weights[name], weight, atol=5e-5, rtol=0, msg=lambda text, n=name: f"{n}: {text}"
            )
