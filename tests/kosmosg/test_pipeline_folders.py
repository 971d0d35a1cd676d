"""A pipeline is saved, loaded and shared with stock pipelines as any of diffusers' is."""

import copy
import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor

from kosmosg import (
    CheckpointError,
    ConfigError,
    KosmosG,
    KosmosGConfig,
    KosmosGPipeline,
    KosmosGProcessor,
    Prompt,
)
from kosmosg.checkpoint.export import save_export
from kosmosg.shapes import new_config
from kosmosg.toyworld.assets import toyworld_folder
from tests.kosmosg.pipeline_calls import DRAW, PROMPT, RED, distance, seeded


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
