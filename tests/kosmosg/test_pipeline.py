"""The pipeline draws exactly what a stock Stable Diffusion draws from the model's condition, and nothing is silent."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

from kosmosg import (
    CheckpointError,
    ConfigError,
    KosmosG,
    KosmosGPipeline,
    KosmosGProcessor,
    Prompt,
    PromptError,
)
from kosmosg.diffusion.schedulers import SCHEDULERS, make_scheduler
from tests.kosmosg.pipeline_calls import BLUE, DRAW, PROMPT, RED, distance, seeded

# -- what is drawn ---------------------------------------------------------------------------------------------------


def test_it_is_the_stock_pipeline_with_our_condition(pipe: KosmosGPipeline, stock: StableDiffusionPipeline) -> None:
    ours = pipe(PROMPT, guidance_scale=4.0, generator=seeded(), **DRAW).images
    batch = pipe.processor([PROMPT])
    condition = pipe.model.encode(batch)
    theirs = stock(
        prompt_embeds=condition.positive,
        negative_prompt_embeds=condition.negative,
        guidance_scale=4.0,
        generator=seeded(),
        **DRAW,
    ).images
    assert ours.shape == (1, 16, 16, 3)
    assert distance(ours, theirs) < 1e-5


def test_prompt_images_and_negatives_are_heard(pipe: KosmosGPipeline) -> None:
    def draw(prompt: Prompt | str, **options: Any) -> Any:
        return pipe(prompt, generator=seeded(), output_type="latent", num_inference_steps=3, **options).images

    base = draw(PROMPT)
    assert distance(base, draw(PROMPT)) == 0
    for other in (
        draw("a cat"),
        draw(Prompt("<i> in the style of <i>", images=[BLUE, RED])),
        draw(PROMPT, negative_prompt="a dog"),
        draw(PROMPT, negative_prompt=Prompt("<i>", [RED])),
        draw(PROMPT, guidance_scale=1.0),
    ):
        assert distance(base, other) > 1e-4
    # The negative that nobody gave is the null prompt, which the empty negative is too.
    assert distance(base, draw(PROMPT, negative_prompt="")) == 0


def test_encode_is_what_the_model_says(pipe: KosmosGPipeline) -> None:
    condition = pipe.encode([PROMPT, "a cat"], negative_prompt=["a dog", ""])
    batch = pipe.processor([PROMPT, "a cat"])
    expected = pipe.model.encode(batch, negative=pipe.processor(["a dog", ""]))
    torch.testing.assert_close(condition.positive, expected.positive, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(condition.negative, expected.negative, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pipe.encode("a cat").negative, pipe.model.null_condition(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 0.0])
def test_without_guidance_nothing_is_doubled(
    pipe: KosmosGPipeline, stock: StableDiffusionPipeline, guidance: float
) -> None:
    rows: list[int] = []
    handle = pipe.unet.register_forward_pre_hook(lambda module, arguments: rows.append(len(arguments[0])))
    images = pipe(["a cat", "a dog"], guidance_scale=guidance, num_images_per_prompt=2, generator=seeded(), **DRAW)
    handle.remove()
    assert len(images.images) == 4  # the original returned twice as many
    assert set(rows) == {4}
    theirs = stock(
        prompt_embeds=pipe.encode(["a cat", "a dog"]).positive,
        guidance_scale=1.0,
        num_images_per_prompt=2,
        generator=seeded(),
        **DRAW,
    ).images
    assert distance(images.images, theirs) < 1e-5


def test_without_guidance_no_negative_is_computed(pipe: KosmosGPipeline) -> None:
    rows: list[int] = []
    pipe.encoder.clear()
    handle = pipe.model.aligner.register_forward_pre_hook(lambda module, arguments: rows.append(len(arguments[0])))
    pipe("a cat", guidance_scale=1.0, negative_prompt="a dog", **DRAW)
    assert rows == [1]
    pipe("a cat", guidance_scale=2.0, negative_prompt="a dog", **DRAW)
    pipe("a cat", guidance_scale=2.0, negative_prompt="a dog", **DRAW)
    handle.remove()
    assert rows == [1, 1]


def test_each_image_has_its_own_generator_whatever_the_batch(pipe: KosmosGPipeline) -> None:
    together = pipe(["a cat", PROMPT], num_images_per_prompt=2, generator=[seeded(i) for i in range(4)], **DRAW).images
    assert len(together) == 4
    for position, prompt in enumerate(["a cat", "a cat", PROMPT, PROMPT]):
        alone = pipe(prompt, generator=seeded(position), **DRAW).images[0]
        assert distance(together[position], alone) < 1e-4
    assert distance(together[0], together[1]) > 1e-3


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 32), (24, 16), (None, 32)])
def test_any_size(pipe: KosmosGPipeline, height: int | None, width: int) -> None:
    images = pipe("a cat", height=height, width=width, **DRAW).images
    assert images.shape == (1, height or 16, width, 3)


def test_output_types(pipe: KosmosGPipeline) -> None:
    assert isinstance(pipe("a cat", num_inference_steps=2).images[0], Image.Image)
    assert pipe("a cat", num_inference_steps=2, output_type="pt").images.shape == (1, 3, 16, 16)
    assert pipe("a cat", num_inference_steps=2, output_type="latent").images.shape == (1, 4, 8, 8)
    images, flagged = pipe("a cat", num_inference_steps=2, return_dict=False)
    assert len(images) == 1
    assert flagged is None


def test_given_latents_and_embeddings_are_used(pipe: KosmosGPipeline) -> None:
    latents = torch.randn(1, 4, 8, 8, generator=seeded(3))
    condition = pipe.encode(PROMPT)
    by_prompt = pipe(PROMPT, latents=latents, **DRAW).images
    by_embeds = pipe(
        prompt_embeds=condition.positive, negative_prompt_embeds=condition.negative, latents=latents, **DRAW
    ).images
    assert distance(by_prompt, by_embeds) == 0


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_schedulers_name_means_the_same_after_every_other(pipe: KosmosGPipeline, name: str) -> None:
    config = pipe.scheduler.config
    latents = torch.randn(1, 4, 8, 8, generator=seeded())

    def generate() -> Any:
        return pipe(PROMPT, latents=latents, num_inference_steps=4, output_type="np", generator=seeded()).images

    pipe.scheduler = make_scheduler(name, config)
    expected = generate()
    for before in SCHEDULERS:
        pipe.scheduler = make_scheduler(before, config)
        generate()
        pipe.scheduler = make_scheduler(name, pipe.scheduler.config)
        assert distance(generate(), expected) == 0, f"{name} after {before}"


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_sampler_draws(pipe: KosmosGPipeline, name: str) -> None:
    pipe.scheduler = make_scheduler(name, pipe.scheduler.config)
    images = pipe(PROMPT, num_inference_steps=4, output_type="np", generator=seeded()).images
    assert np.isfinite(images).all()
    assert pipe.decoder.scheduler is pipe.scheduler


def test_half_precision_draws_nearly_the_same(
    tiny_model: KosmosG, tiny_processor: KosmosGProcessor, stock: StableDiffusionPipeline, pipe: KosmosGPipeline
) -> None:
    exact = pipe(PROMPT, generator=seeded(), **DRAW).images
    half = KosmosGPipeline(copy.deepcopy(tiny_model), tiny_processor, decoder=stock).to(torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    # The start is drawn in the U-Net's precision, so both get the same one.
    latents = torch.randn(1, 4, 8, 8, generator=seeded())
    exact = KosmosGPipeline(tiny_model, tiny_processor, decoder=copy.deepcopy(stock).to(torch.float32))
    exact.set_progress_bar_config(disable=True)
    one = half(PROMPT, latents=latents.bfloat16(), **DRAW).images
    assert distance(one, exact(PROMPT, latents=latents, **DRAW).images) < 0.15


# -- callbacks -------------------------------------------------------------------------------------------------------


def test_callbacks_see_and_change_each_step(pipe: KosmosGPipeline) -> None:
    seen: list[tuple[int, int]] = []

    def callback(stock: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert stock is pipe.decoder
        assert set(tensors) == {"latents", "prompt_embeds"}
        seen.append((step, int(timestep)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    latents = pipe(
        "a cat",
        num_inference_steps=3,
        output_type="latent",
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
    ).images
    assert [step for step, _ in seen] == list(range(len(seen)))
    assert len(seen) >= 3
    assert latents.abs().max() == 0


def test_a_callback_can_stop_the_run(pipe: KosmosGPipeline) -> None:
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    calls: list[int] = []
    handle = pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))

    def stop(stock: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        stock._interrupt = step == 1
        return tensors

    pipe("a cat", num_inference_steps=10, callback_on_step_end=stop)
    handle.remove()
    assert len(calls) == 2


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"prompt": "a", "height": 20}, ConfigError, "height=20 is not a multiple of 8 pixels; take 16 or 24"),
        ({"prompt": "a", "width": 0}, ConfigError, "width=0 is not a multiple"),
        ({"prompt": "a", "num_inference_steps": 0}, ConfigError, "num_inference_steps=0"),
        ({"prompt": "a", "guidance_scale": float("nan")}, ConfigError, "guidance_scale=nan"),
        ({"prompt": "a", "num_images_per_prompt": 0}, ConfigError, "num_images_per_prompt=0"),
        ({"prompt": []}, PromptError, "empty list"),
        ({"prompt": [3]}, PromptError, "a Prompt or a str, got int"),
        ({"prompt": "<i>"}, PromptError, "1 places"),
        ({"prompt": ["a", "b", "c"], "negative_prompt": ["d", "e"]}, PromptError, "2 negative prompts for 3 prompts"),
        ({}, PromptError, "either prompt or prompt_embeds"),
        ({"prompt_embeds": torch.zeros(1, 77, 32)}, PromptError, "needs negative_prompt_embeds"),
        ({"prompt_embeds": torch.zeros(1, 77, 32), "negative_prompt": "a"}, PromptError, "goes with prompt"),
        ({"prompt_embeds": torch.zeros(1, 77, 31), "guidance_scale": 1}, PromptError, r"\(1, 77, 31\).*\(B, Q, 32\)"),
        ({"prompt_embeds": torch.full((1, 77, 32), torch.nan), "guidance_scale": 1}, CheckpointError, "not finite"),
        ({"prompt": "a", "negative_prompt_embeds": torch.zeros(1, 77, 32)}, PromptError, "goes with prompt_embeds"),
    ],
)
def test_wrong_calls(pipe: KosmosGPipeline, options: dict[str, Any], kind: type, said: str) -> None:
    with pytest.raises(kind, match=said):
        pipe(**options)


def test_a_mistyped_argument_is_not_swallowed(pipe: KosmosGPipeline) -> None:
    with pytest.raises(TypeError, match="guidence_scale"):
        pipe("a cat", guidence_scale=3)


def test_parts_that_do_not_fit_are_refused(
    tiny_model: KosmosG, tiny_processor: KosmosGProcessor, stock: StableDiffusionPipeline, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="has no unet and no vae and no scheduler; pass decoder="):
        KosmosGPipeline(tiny_model, tiny_processor)
    stock.unet.register_to_config(cross_attention_dim=24)
    with pytest.raises(CheckpointError, match=r"d_model is 32, the U-Net's counterpart is 24"):
        KosmosGPipeline(tiny_model, tiny_processor, decoder=stock)
    stock.unet.register_to_config(cross_attention_dim=32, in_channels=9)
    with pytest.raises(CheckpointError, match="takes 9 channels"):
        KosmosGPipeline(tiny_model, tiny_processor, decoder=stock)
    stock.unet.register_to_config(in_channels=4)
    other = KosmosGProcessor(tiny_processor.tokenizer, image_size=64, num_image_tokens=4)
    with pytest.raises(CheckpointError, match=r"image_size is 32, the processor's counterpart is 64"):
        KosmosGPipeline(tiny_model, other, decoder=stock)
    with pytest.raises(CheckpointError, match="has no usable scheduler/"):
        KosmosGPipeline(tiny_model, tiny_processor, decoder=tmp_path)
