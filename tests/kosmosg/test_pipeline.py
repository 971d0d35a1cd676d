"""The pipeline draws exactly what a stock Stable Diffusion draws from the model's condition, and nothing is silent."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor

from kosmosg import (
    CheckpointError,
    ConfigError,
    KosmosG,
    KosmosGConfig,
    KosmosGPipeline,
    KosmosGProcessor,
    Prompt,
    PromptError,
)
from kosmosg.checkpoint.export import save_export
from kosmosg.diffusion.schedulers import SCHEDULERS, make_scheduler
from kosmosg.shapes import new_config
from kosmosg.toyworld.assets import toyworld_folder

RED, BLUE = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (30, 40), "blue")
PROMPT = Prompt("<i> in the style of <i>", images=[RED, BLUE])
DRAW: dict[str, Any] = {"num_inference_steps": 3, "output_type": "np"}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    diffusers_logging.disable_progress_bar()
    yield
    diffusers_logging.enable_progress_bar()


@pytest.fixture
def stock(tiny_sd_parts: Path) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd_parts, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(tiny_model: KosmosG, tiny_processor: KosmosGProcessor, stock: StableDiffusionPipeline) -> KosmosGPipeline:
    made = KosmosGPipeline(model=tiny_model, processor=tiny_processor, decoder=stock)
    made.set_progress_bar_config(disable=True)
    return made


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distance(one: Any, other: Any) -> float:
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())


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


# -- saving, loading, sharing ----------------------------------------------------------------------------------------


def test_save_and_load_draw_the_same(pipe: KosmosGPipeline, tmp_path: Path) -> None:
    expected = pipe(PROMPT, generator=seeded(), **DRAW).images
    pipe.save_pretrained(tmp_path / "pipeline")
    assert {path.name for path in (tmp_path / "pipeline").iterdir()} == {
        "model_index.json", "model", "processor", "unet", "vae", "scheduler",
    }  # fmt: skip
    loaded = KosmosGPipeline.from_pretrained(tmp_path / "pipeline")
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded.scheduler, PNDMScheduler)
    assert distance(loaded(PROMPT, generator=seeded(), **DRAW).images, expected) < 1e-5
    loaded.save_pretrained(tmp_path / "again")
    written = [json.loads((tmp_path / name / "model_index.json").read_text()) for name in ("pipeline", "again")]
    written[1].pop("_name_or_path")
    assert written[0] == written[1]
    half = KosmosGPipeline.from_pretrained(tmp_path / "pipeline", dtype=torch.bfloat16)
    assert half.model.dtype == half.unet.dtype == half.vae.dtype == torch.bfloat16


def test_a_replaced_model_still_saves(pipe: KosmosGPipeline, tmp_path: Path, tiny_processor: KosmosGProcessor) -> None:
    torch.manual_seed(5)
    before = pipe.encode("a cat").positive
    pipe.model = KosmosG(KosmosGConfig.tiny(tiny_processor.vocab_size)).eval()
    assert distance(pipe.encode("a cat").positive, before) > 1e-3
    pipe.save_pretrained(tmp_path)
    again = KosmosGPipeline.from_pretrained(tmp_path)
    assert distance(again.encode("a cat").positive, pipe.encode("a cat").positive) < 1e-6


def test_from_an_export_and_any_decoder(
    tiny_model: KosmosG, tiny_processor: KosmosGProcessor, tiny_sd_parts: Path, tmp_path: Path,
    stock: StableDiffusionPipeline,
) -> None:  # fmt: skip
    save_export(tiny_model, tiny_processor, tmp_path / "export", experiment={}, card="")
    named = KosmosGPipeline.from_pretrained(tmp_path / "export", decoder=tiny_sd_parts)
    assert isinstance(named.scheduler, DPMSolverMultistepScheduler)
    assert named.scheduler.config.final_sigmas_type == "sigma_min"
    assert (named.config.default_steps, named.config.default_guidance) == (50, 6.0)
    given = KosmosGPipeline.from_pretrained(tmp_path / "export", decoder=stock)
    assert given.scheduler is stock.scheduler
    given.save_pretrained(tmp_path / "pipeline")
    other = KosmosGPipeline.from_pretrained(tmp_path / "pipeline", decoder=tiny_sd_parts)
    assert isinstance(other.scheduler, DPMSolverMultistepScheduler)
    # What callers of diffusers are used to say works for exports as well.
    scheduler = DDIMScheduler.from_config(stock.scheduler.config)
    said = {"torch_dtype": torch.bfloat16, "scheduler": scheduler, "safety_checker": None, "local_files_only": True}
    custom = KosmosGPipeline.from_pretrained(tmp_path / "export", decoder=tiny_sd_parts, **said)
    assert custom.scheduler is scheduler
    assert custom.model.dtype == custom.unet.dtype == torch.bfloat16
    with pytest.raises(CheckpointError, match=r"holds a StableDiffusionPipeline, not a KosmosGPipeline; pass it"):
        KosmosGPipeline.from_pretrained(tiny_sd_parts)
    with pytest.raises(ConfigError, match="option 'guidance' is for pipeline folders"):
        KosmosGPipeline.from_pretrained(tmp_path / "export", decoder=tiny_sd_parts, guidance=3)
    with pytest.raises(CheckpointError, match=r"not a pipeline folder.*pass decoder="):
        KosmosGPipeline.from_pretrained(tmp_path / "export")
    with pytest.raises(CheckpointError, match=r"there is no model .*absent"):
        KosmosGPipeline.from_pretrained(tmp_path / "absent", local_files_only=True)


def test_a_hub_id_loads_from_the_cache(pipe: KosmosGPipeline, tmp_path: Path) -> None:
    """The cache of huggingface_hub, laid out as a download leaves it: no network is needed."""
    snapshot = tmp_path / "models--someone--pipe" / "snapshots" / ("0" * 40)
    pipe.save_pretrained(snapshot)
    reference = tmp_path / "models--someone--pipe" / "refs" / "main"
    reference.parent.mkdir()
    reference.write_text("0" * 40)
    loaded = KosmosGPipeline.from_pretrained("someone/pipe", cache_dir=tmp_path, local_files_only=True)
    assert distance(loaded.encode("a cat").positive, pipe.encode("a cat").positive) < 1e-6


def test_a_decoders_safety_checker_stays_at_work(
    tiny_model: KosmosG, tiny_processor: KosmosGProcessor, stock: StableDiffusionPipeline, tmp_path: Path
) -> None:
    part = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(text_config=part, vision_config={**part, "image_size": 32, "patch_size": 16}, projection_dim=8)
    ).eval()
    checker.concept_embeds_weights.data.fill_(-2.0)  # similarity is above the threshold for everything
    stock.safety_checker = checker
    stock.feature_extractor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    made = KosmosGPipeline(tiny_model, tiny_processor, decoder=stock)
    made.save_pretrained(tmp_path)
    loaded = KosmosGPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded.safety_checker, StableDiffusionSafetyChecker)
    loaded.set_progress_bar_config(disable=True)
    output = loaded("a cat", num_inference_steps=2, output_type="np")
    assert output.nsfw_content_detected == [True]
    assert output.images.max() == 0


def test_the_world_decoder_by_its_name() -> None:
    processor = KosmosGProcessor.from_sentencepiece(
        toyworld_folder() / "sentencepiece.bpe.model", image_size=32, num_image_tokens=16, max_length=254
    )
    pipe = KosmosGPipeline(KosmosG(new_config("toyworld", processor.vocab_size)), processor, decoder="toyworld")
    pipe.set_progress_bar_config(disable=True)
    assert (pipe.config.default_steps, pipe.config.default_guidance) == (20, 3.0)
    assert pipe.scheduler.config.final_sigmas_type == "zero"  # as it was saved, not as the published runs had it
    image = pipe(Prompt("<i> in the snow", [RED]), num_inference_steps=2).images[0]
    assert image.size == (32, 32)


def test_defaults_travel_with_the_pipeline(
    tiny_model: KosmosG, tiny_processor: KosmosGProcessor, stock: StableDiffusionPipeline, tmp_path: Path
) -> None:
    made = KosmosGPipeline(tiny_model, tiny_processor, decoder=stock, default_steps=2, default_guidance=0.0)
    made.save_pretrained(tmp_path)
    loaded = KosmosGPipeline.from_pretrained(tmp_path)
    assert (loaded.config.default_steps, loaded.config.default_guidance) == (2, 0.0)
    steps: list[int] = []
    loaded("a cat", callback_on_step_end=lambda pipe, i, t, tensors: steps.append(i) or tensors)
    assert loaded.decoder.guidance_scale == 0.0
    assert len(steps) == 3  # PNDM takes one more than asked


def test_stock_pipelines_share_the_weights(pipe: KosmosGPipeline, stock: StableDiffusionPipeline) -> None:
    assert pipe.decoder is pipe.decoder
    assert pipe.decoder.unet is stock.unet
    fine_tune = copy.deepcopy(stock.unet)
    pipe.unet = fine_tune
    assert pipe.decoder.unet is fine_tune


# -- offloading ------------------------------------------------------------------------------------------------------


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
