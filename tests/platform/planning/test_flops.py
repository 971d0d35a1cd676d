"""Counts of parameters and FLOPs against the published ones, and against torch's own counter."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kosmosg import KosmosG, KosmosGConfig
from kosmosg_platform.cluster.session import ScaleConfig
from kosmosg_platform.planning.flops import (
    STABLE_DIFFUSION,
    aligner,
    aligner_decoder,
    decoder_cost,
    language_model,
    logits,
    perceiver,
    stage_cost,
    vision,
)
from kosmosg_platform.planning.memory import worker_memory
from kosmosg_platform.planning.plan import plan_stage, render
from kosmosg_platform.training.engine_config import EngineConfig
from kosmosg_platform.training.lr_schedule import TrainConfig


@pytest.fixture(scope="module")
def paper() -> KosmosGConfig:
    return KosmosGConfig.paper()


@pytest.mark.parametrize(
    ("tokens", "lm", "words", "m"), [(20, 48.4, 5.2, 19.6), (96, 233.7, 25.2, 35.4), (170, 416.4, 44.6, 51.3)]
)
def test_flops_of_the_language_side_are_the_published(
    paper: KosmosGConfig, tokens: int, lm: float, words: float, m: float
) -> None:
    assert language_model(paper, tokens) / 1e9 == pytest.approx(lm, abs=0.06)
    assert logits(paper, tokens) / 1e9 == pytest.approx(words, abs=0.06)
    assert aligner(paper, tokens) / 1e9 == pytest.approx(m, abs=0.06)


def test_flops_of_an_image_are_the_published(paper: KosmosGConfig) -> None:
    assert vision(paper) / 1e9 == pytest.approx(162.0, abs=0.06)
    assert perceiver(paper) / 1e9 == pytest.approx(7.7, abs=0.06)
    assert aligner_decoder(paper, 20) / 1e9 == pytest.approx(9.7, abs=0.06)


def test_flops_are_those_that_torch_counts() -> None:
    config = KosmosGConfig.tiny()
    with torch.device("meta"):
        model = KosmosG(config).eval()
        states = torch.randn(1, 9, config.text_config.embed_dim)
        with FlopCounterMode(display=False) as count:
            model.aligner(states, None)
    assert aligner(config, 9) == count.get_total_flops()


def test_stages_cost_what_the_reference_counts(paper: KosmosGConfig) -> None:
    align = stage_cost("align", paper, STABLE_DIFFUSION, {})
    assert align.trainable == 476_031_488
    assert align.flops / 1e12 == pytest.approx(0.15, abs=0.01), "0.155 with the logits that upstream throws away"
    instruct = stage_cost("instruct", paper, STABLE_DIFFUSION, {})
    assert instruct.trainable == 1_597_256_192
    assert instruct.flops / 1e12 == pytest.approx(3.9, abs=0.1)
    text = stage_cost("instruct", paper, STABLE_DIFFUSION, {"t2i": 1})
    assert text.flops / 1e12 == pytest.approx(2.9, abs=0.05)


def test_a_decoder_folder_is_counted(tiny_sd_parts) -> None:
    cost = decoder_cost(str(tiny_sd_parts))
    assert cost.encode_flops > 0
    assert 0 < cost.unet_flops < 1e9
    assert 10_000 < cost.parameters < 1_000_000
    assert cost.kept > 1000
    assert decoder_cost("somebody/stable-diffusion-v1-5") == STABLE_DIFFUSION


def paper_like(**changes: object) -> tuple[TrainConfig, ScaleConfig, EngineConfig]:
    train = TrainConfig(steps=200_000, global_batch=1024)
    return train, ScaleConfig(workers=256, use_gpu=True), EngineConfig(precision="fp16").model_copy(update=changes)


def test_sharding_saves_what_it_promises(paper: KosmosGConfig) -> None:
    cost = replace(stage_cost("instruct", paper, STABLE_DIFFUSION, {}), kept=0.0, kept_checkpointed=0.0)
    sizes = [worker_memory(cost, 1, 1, 8, EngineConfig(precision="bf16", zero_stage=stage)) for stage in range(4)]
    trained, frozen = cost.trainable, cost.frozen
    assert sizes[0].weights + sizes[0].optimizer == 14 * trained + 2 * frozen
    for sharded in sizes[1:3]:
        assert sharded.weights + sharded.optimizer == (2 + 12 / 8) * trained + 2 * frozen
    assert math.isclose(sizes[3].weights + sizes[3].optimizer, (14 * trained + 2 * frozen) / 8)
    assert [size.peak for size in sizes] == sorted((size.peak for size in sizes), reverse=True)


def test_what_a_device_cannot_do_is_refused_with_its_remedy(paper: KosmosGConfig) -> None:
    cost = stage_cost("instruct", paper, STABLE_DIFFUSION, {})
    train, scale, engine = paper_like(precision="bf16")
    page = "\n".join(render([plan_stage(cost, train, scale, engine)], scale, engine))
    assert "V100 32 GB   REFUSED: has no bf16; use engine.precision=fp16" in page
    assert "A100 80 GB   REFUSED" not in page

    large = plan_stage(cost, TrainConfig(steps=1, global_batch=64), ScaleConfig(use_gpu=True), engine)
    assert not large.possible
    assert "engine.checkpoint_activations=true" in large.rows[0].refused[1]

    uneven = plan_stage(cost, TrainConfig(steps=1, global_batch=100), scale, engine)
    assert "choose a multiple of 256" in uneven.refused[0]
    slow = plan_stage(cost, train, ScaleConfig(workers=256), EngineConfig(precision="fp16"))
    assert "fp16 needs a GPU" in slow.refused[0]
    assert not slow.possible


def test_days_follow_from_flops(paper: KosmosGConfig) -> None:
    cost = stage_cost("instruct", paper, STABLE_DIFFUSION, {})
    plan = plan_stage(cost, *paper_like())
    assert plan.flops == pytest.approx(8e20, rel=0.03), "reference: 3.9 TFLOP x 2.05e8 samples"
    v100 = plan.rows[0]
    assert v100.days == pytest.approx(plan.flops / (256 * 125e12 * 0.35) / 86400)
