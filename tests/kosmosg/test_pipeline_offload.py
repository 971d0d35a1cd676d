"""Weights that lie on another device or on disk are there when the pipeline needs them."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from diffusers import StableDiffusionPipeline

from kosmosg import (
    KosmosG,
    KosmosGPipeline,
    KosmosGProcessor,
)
from tests.kosmosg.pipeline_calls import DRAW, PROMPT, distance, seeded


def test_offload_hooks_move_the_model_although_no_forward_runs(pipe: KosmosGPipeline) -> None:
    expected = pipe(PROMPT, generator=seeded(), **DRAW).images
    pipe.encoder.clear()
    pipe.enable_model_cpu_offload(device="cpu")
    moved: list[str] = []
    hook = pipe.model._hf_hook
    original = hook.pre_forward
    hook.pre_forward = lambda module, *args, **kwargs: moved.append("model") or original(module, *args, **kwargs)
    assert distance(pipe(PROMPT, generator=seeded(), **DRAW).images, expected) < 1e-6
    assert moved
    pipe.remove_all_hooks()


def test_sequential_offload_brings_each_weight_when_it_is_needed(
    tiny_model: KosmosG, tiny_processor: KosmosGProcessor, stock: StableDiffusionPipeline
) -> None:
    pipe = KosmosGPipeline(copy.deepcopy(tiny_model), tiny_processor, decoder=stock)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(PROMPT, generator=seeded(), **DRAW).images
    pipe.encoder.clear()
    for part in (
        pipe.model,
        pipe.unet,
        pipe.vae,
    ):  # what enable_sequential_cpu_offload does, which wants an accelerator
        cpu_offload(part, torch.device("cpu"))
    assert {weight.device.type for weight in pipe.model.parameters()} == {"meta"}
    for _ in range(2):
        assert distance(pipe(PROMPT, generator=seeded(), **DRAW).images, expected) < 1e-5
    assert {weight.device.type for weight in pipe.model.parameters()} == {"meta"}


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloading_draws_the_same(
    way: str, tiny_model: KosmosG, tiny_processor: KosmosGProcessor, stock: StableDiffusionPipeline
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("offloading needs an accelerator")
    pipe = KosmosGPipeline(copy.deepcopy(tiny_model), tiny_processor, decoder=stock)
    latents = torch.randn(1, 4, 8, 8, generator=seeded())
    expected = pipe(PROMPT, latents=latents, **DRAW).images
    pipe.encoder.clear()
    getattr(pipe, way)()
    for _ in range(2):
        assert distance(pipe(PROMPT, latents=latents, **DRAW).images, expected) < 1e-3
