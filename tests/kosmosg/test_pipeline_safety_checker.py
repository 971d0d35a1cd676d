"""A decoder's safety checker stays at work, wherever the decoder comes from, and can be left out."""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor

from kosmosg import CheckpointError, KosmosG, KosmosGPipeline, KosmosGProcessor
from kosmosg.checkpoint.export import save_export
from kosmosg.diffusion.components import NEEDED, decoder_parts

PROMPTS = ["a cat", "a dog", "a tree", "a fish"]


def make_checker() -> StableDiffusionSafetyChecker:
    torch.manual_seed(0)
    part = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return StableDiffusionSafetyChecker(
        CLIPConfig(text_config=part, vision_config={**part, "image_size": 32, "patch_size": 16}, projection_dim=8)
    ).eval()


@pytest.fixture
def stock(tiny_sd_parts: Path) -> StableDiffusionPipeline:
    """A stock pipeline whose checker flags some of the images of `PROMPTS`, but not all."""
    extractor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pipe = StableDiffusionPipeline.from_pretrained(
        tiny_sd_parts, safety_checker=make_checker(), feature_extractor=extractor
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def checked(stock: StableDiffusionPipeline, tiny_model: KosmosG, tiny_processor: KosmosGProcessor) -> KosmosGPipeline:
    """Ours on the same components, with a threshold between the images of `PROMPTS`."""
    pipe = KosmosGPipeline(tiny_model, tiny_processor, decoder=stock)
    pipe.set_progress_bar_config(disable=True)
    plain = KosmosGPipeline(tiny_model, tiny_processor, decoder=stock, safety_checker=None)
    plain.set_progress_bar_config(disable=True)
    seen = stock.feature_extractor(stock.numpy_to_pil(generate(plain).images), return_tensors="pt").pixel_values
    with torch.no_grad():
        embeds = stock.safety_checker.visual_projection(stock.safety_checker.vision_model(seen)[1])
        concepts = torch.nn.functional.normalize(stock.safety_checker.concept_embeds)
        nearest = (torch.nn.functional.normalize(embeds) @ concepts.T).max(1).values
        stock.safety_checker.concept_embeds_weights.fill_(float(nearest.sort().values[1:3].mean()))
        stock.safety_checker.special_care_embeds_weights.fill_(1.0)
    return pipe


def generate(pipe: KosmosGPipeline) -> Any:
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    return pipe(PROMPTS, num_inference_steps=2, generator=generators, output_type="np")


def test_it_flags_and_replaces_what_the_stock_pipeline_would(
    checked: KosmosGPipeline, stock: StableDiffusionPipeline
) -> None:
    ours = generate(checked)
    condition = checked.encode(PROMPTS)
    theirs = stock(
        prompt_embeds=condition.positive,
        negative_prompt_embeds=condition.negative,
        guidance_scale=checked.config.default_guidance,
        num_inference_steps=2,
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))],
        output_type="np",
    )
    assert sorted(ours.nsfw_content_detected) == [False, False, True, True]
    assert ours.nsfw_content_detected == theirs.nsfw_content_detected
    assert np.abs(ours.images - theirs.images).max() < 1e-5
    for image, flagged in zip(ours.images, ours.nsfw_content_detected, strict=True):
        assert (image.max() == 0) == flagged


def test_it_comes_with_a_folder_and_can_be_left_out(
    checked: KosmosGPipeline, stock: StableDiffusionPipeline, tmp_path: Path
) -> None:
    stock.save_pretrained(tmp_path / "decoder")
    model, processor = checked.model, checked.processor
    save_export(model, processor, tmp_path / "export")
    expected = generate(checked)
    checked.save_pretrained(tmp_path / "pipeline")
    named = {"decoder": tmp_path / "decoder", "scheduler": stock.scheduler}
    with_checker = [
        KosmosGPipeline(model, processor, **named),
        KosmosGPipeline.from_pretrained(tmp_path / "export", **named),
        KosmosGPipeline.from_pretrained(tmp_path / "pipeline"),
        KosmosGPipeline.from_pretrained(tmp_path / "pipeline", **named),
    ]
    without = [
        KosmosGPipeline(model, processor, **named, safety_checker=None),
        KosmosGPipeline.from_pretrained(tmp_path / "export", **named, safety_checker=None),
        KosmosGPipeline.from_pretrained(tmp_path / "pipeline", safety_checker=None),
        KosmosGPipeline.from_pretrained(tmp_path / "pipeline", **named, safety_checker=None),
    ]
    for pipe in (*with_checker, *without):
        pipe.set_progress_bar_config(disable=True)
    for pipe in with_checker:
        output = generate(pipe)
        assert output.nsfw_content_detected == expected.nsfw_content_detected
        assert np.abs(output.images - expected.images).max() < 1e-5
    for pipe in without:
        output = generate(pipe)
        assert output.nsfw_content_detected is None
        assert all(image.max() > 0 for image in output.images)


def test_a_checker_saved_in_half_precision_checks_images_of_any(
    checked: KosmosGPipeline, stock: StableDiffusionPipeline, tmp_path: Path
) -> None:
    stock.save_pretrained(tmp_path)
    stock.safety_checker.half().save_pretrained(tmp_path / "safety_checker")
    pipe = KosmosGPipeline(checked.model, checked.processor, decoder=tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert len(generate(pipe).nsfw_content_detected) == len(PROMPTS)


def test_a_decoder_without_one_is_not_checked(
    tiny_model: KosmosG, tiny_processor: KosmosGProcessor, tiny_sd_parts: Path
) -> None:
    pipe = KosmosGPipeline(tiny_model, tiny_processor, decoder=tiny_sd_parts)
    assert pipe.safety_checker is pipe.feature_extractor is None


def test_only_what_is_wanted_is_loaded(stock: StableDiffusionPipeline, tmp_path: Path) -> None:
    stock.save_pretrained(tmp_path)
    assert set(decoder_parts(tmp_path, NEEDED)) == set(NEEDED)
    shutil.rmtree(tmp_path / "unet")
    assert set(decoder_parts(tmp_path, ["vae", "feature_extractor"])) == {"vae", "feature_extractor"}


def test_a_checker_that_is_named_but_absent_is_said(
    stock: StableDiffusionPipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stock.save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "safety_checker")
    with caplog.at_level(logging.WARNING):
        assert "safety_checker" not in decoder_parts(tmp_path)
    assert f"{tmp_path} names a safety_checker but has none: generated images are not checked" in caplog.text


def test_a_checker_without_its_feature_extractor_is_refused(
    tiny_model: KosmosG, tiny_processor: KosmosGProcessor, tiny_sd_parts: Path
) -> None:
    with pytest.raises(CheckpointError, match="has no feature_extractor; pass one, or safety_checker=None"):
        KosmosGPipeline(tiny_model, tiny_processor, decoder=tiny_sd_parts, safety_checker=make_checker())
