"""What the Stable Diffusion community owns works with our condition: stock classes, real files, no fork.

ControlNet (one and several), LoRA (several with weights, fused, community file formats), image to image, inpainting and
fine-tuned decoders, all on tiny random parts that are saved to disk and loaded again.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    MultiControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file

from kosmosg import KosmosG, KosmosGPipeline, KosmosGProcessor, Prompt

CAT = Image.new("RGB", (40, 30), "orange")
PROMPT = Prompt("<i> in the snow", images=[CAT])
DRAW: dict[str, Any] = {"num_inference_steps": 3, "output_type": "np"}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    diffusers_logging.disable_progress_bar()
    yield
    diffusers_logging.enable_progress_bar()


@pytest.fixture
def pipe(tiny_model: KosmosG, tiny_processor: KosmosGProcessor, tiny_sd_parts: Path) -> KosmosGPipeline:
    made = KosmosGPipeline(model=tiny_model, processor=tiny_processor, decoder=tiny_sd_parts)
    made.set_progress_bar_config(disable=True)
    return made


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distance(one: Any, other: Any) -> float:
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


# -- ControlNet ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def controlnets(tiny_sd_parts: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two saved ControlNets that do something (a fresh one adds nothing)."""
    unet = UNet2DConditionModel.from_pretrained(tiny_sd_parts, subfolder="unet")
    folders = []
    for seed in range(2):
        torch.manual_seed(seed)
        # The hint is shrunk once per step of these channels, as often as the tiny VAE shrinks an image.
        net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8))
        with torch.no_grad():
            for weight in net.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
        folders.append(tmp_path_factory.mktemp("controlnet") / str(seed))
        net.save_pretrained(folders[-1])
    return folders


def test_controlnet_hears_the_condition_and_the_hint(pipe: KosmosGPipeline, controlnets: list[Path]) -> None:
    control = StableDiffusionControlNetPipeline.from_pipe(
        pipe.decoder, controlnet=ControlNetModel.from_pretrained(controlnets[0])
    )
    control.set_progress_bar_config(disable=True)
    assert control.unet is pipe.unet
    condition = pipe.encode(PROMPT, negative_prompt="a dog")

    def draw(hint: Image.Image, scale: float = 1.0, other: Any = condition) -> Any:
        return control(
            prompt_embeds=other.positive,
            negative_prompt_embeds=other.negative,
            image=hint,
            controlnet_conditioning_scale=scale,
            guidance_scale=4.0,
            generator=seeded(),
            **DRAW,
        ).images

    base = draw(picture())
    assert base.shape == (1, 16, 16, 3)
    assert distance(base, draw(picture(1))) > 1e-4
    assert distance(base, draw(picture(), other=pipe.encode("a cat"))) > 1e-4
    without = pipe(PROMPT, negative_prompt="a dog", guidance_scale=4.0, generator=seeded(), **DRAW).images
    assert distance(draw(picture(), scale=0.0), without) < 1e-5
    assert distance(base, without) > 1e-4


def test_several_controlnets_with_their_own_scales(pipe: KosmosGPipeline, controlnets: list[Path]) -> None:
    nets = [ControlNetModel.from_pretrained(folder) for folder in controlnets]
    both = StableDiffusionControlNetPipeline.from_pipe(pipe.decoder, controlnet=MultiControlNetModel(nets))
    one = StableDiffusionControlNetPipeline.from_pipe(pipe.decoder, controlnet=nets[0])
    for each in (both, one):
        each.set_progress_bar_config(disable=True)
    condition = pipe.encode([PROMPT, "a dog"])
    options = {
        "prompt_embeds": condition.positive,
        "negative_prompt_embeds": condition.negative,
        "num_images_per_prompt": 2,
        **DRAW,
    }

    def draw_both(scales: list[float]) -> Any:
        hints = [picture(0), picture(1)]
        return both(image=hints, controlnet_conditioning_scale=scales, generator=seeded(), **options).images

    single = one(image=picture(0), controlnet_conditioning_scale=0.7, generator=seeded(), **options).images
    assert len(single) == 4
    assert distance(draw_both([0.7, 0.0]), single) < 1e-5
    assert distance(draw_both([0.7, 0.7]), single) > 1e-4


# -- LoRA ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loras(tiny_sd_parts: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two saved LoRAs of the U-Net, in diffusers' own file format, strong enough to be seen."""
    folders = []
    for seed in range(2):
        torch.manual_seed(10 + seed)
        unet = UNet2DConditionModel.from_pretrained(tiny_sd_parts, subfolder="unet")
        unet.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
        with torch.no_grad():
            for name, weight in unet.named_parameters():
                if "lora" in name:
                    weight.normal_(std=0.5)
        folders.append(tmp_path_factory.mktemp("lora"))
        StableDiffusionPipeline.save_lora_weights(folders[-1], unet_lora_layers=get_peft_model_state_dict(unet))
    return folders


@pytest.fixture
def draw(pipe: KosmosGPipeline) -> Callable[..., Any]:
    return lambda **options: pipe(PROMPT, guidance_scale=3.0, generator=seeded(), **DRAW, **options).images


def test_a_lora_loads_scales_and_leaves(pipe: KosmosGPipeline, loras: list[Path], draw: Callable[..., Any]) -> None:
    plain = draw()
    pipe.load_lora_weights(loras[0], adapter_name="one")
    full = draw()
    assert distance(full, plain) > 1e-3
    assert distance(draw(cross_attention_kwargs={"scale": 0.0}), plain) < 1e-5
    half = draw(cross_attention_kwargs={"scale": 0.5})
    assert min(distance(half, plain), distance(half, full)) > 1e-4
    assert distance(draw(), full) < 1e-6
    pipe.set_adapters("one", 0.5)
    assert distance(draw(), half) < 1e-5
    pipe.disable_lora()
    assert distance(draw(), plain) < 1e-5
    pipe.enable_lora()
    pipe.unload_lora_weights()
    assert distance(draw(), plain) < 1e-5


def test_several_loras_with_weights(pipe: KosmosGPipeline, loras: list[Path], draw: Callable[..., Any]) -> None:
    pipe.load_lora_weights(loras[0], adapter_name="one")
    only_one = draw()
    pipe.load_lora_weights(loras[1], adapter_name="two")
    assert pipe.get_list_adapters() == {"unet": ["one", "two"]}
    pipe.set_adapters(["one", "two"], [1.0, 0.0])
    assert distance(draw(), only_one) < 1e-5
    pipe.set_adapters(["one", "two"], [0.6, 0.8])
    mixed = draw()
    assert distance(mixed, only_one) > 1e-4
    # The stock pipeline on the same weights hears the same mixture.
    condition = pipe.encode(PROMPT)
    stock = pipe.decoder(
        prompt_embeds=condition.positive,
        negative_prompt_embeds=condition.negative,
        guidance_scale=3.0,
        generator=seeded(),
        **DRAW,
    ).images
    assert distance(mixed, stock) < 1e-6
    pipe.delete_adapters("two")
    pipe.set_adapters("one")
    assert distance(draw(), only_one) < 1e-5


def test_a_fused_lora_is_the_same_picture_in_plain_weights(
    pipe: KosmosGPipeline, loras: list[Path], draw: Callable[..., Any], tmp_path: Path
) -> None:
    plain = draw()
    pipe.load_lora_weights(loras[0], adapter_name="one")
    expected = draw()
    pipe.fuse_lora()
    assert distance(draw(), expected) < 1e-4
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert distance(draw(), plain) < 1e-4

    pipe.load_lora_weights(loras[0])
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path)
    loaded = KosmosGPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    images = loaded(PROMPT, guidance_scale=3.0, generator=seeded(), **DRAW).images
    assert distance(images, expected) < 1e-4


def to_kohya(folder: Path, target: Path, text_encoder: bool) -> Path:
    """The same LoRA in the file format of kohya's trainer, the one that most community files have."""
    written: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(folder / "pytorch_lora_weights.safetensors").items():
        path, _, rest = name.removeprefix("unet.").partition(".lora_")
        layer = "lora_unet_" + path.replace(".", "_")
        written[f"{layer}.lora_{'down' if rest.startswith('A') else 'up'}.weight"] = tensor
        written[f"{layer}.alpha"] = torch.tensor(8.0)
    if text_encoder:
        layer = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
        written[f"{layer}.lora_down.weight"] = torch.randn(4, 32)
        written[f"{layer}.lora_up.weight"] = torch.randn(32, 4)
        written[f"{layer}.alpha"] = torch.tensor(8.0)
    save_file(written, target)
    return target


@pytest.mark.parametrize("text_encoder", [False, True], ids=["unet only", "with text encoder"])
def test_community_files_give_the_same_picture(
    pipe: KosmosGPipeline, loras: list[Path], draw: Callable[..., Any], tmp_path: Path, text_encoder: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    # Diffusers' format holds no alpha without its metadata, so both are loaded as rank 4, alpha 8.
    pipe.load_lora_weights(loras[0], adapter_name="diffusers")
    expected = draw()
    pipe.unload_lora_weights()
    file = to_kohya(loras[0], tmp_path / "style.safetensors", text_encoder)
    pipe.load_lora_weights(tmp_path, weight_name=file.name, adapter_name="kohya")
    alpha = pipe.unet.peft_config["kohya"].lora_alpha
    pipe.set_adapters("kohya", 4 / alpha)  # diffusers' file counts as alpha = rank
    assert distance(draw(), expected) < 1e-5
    assert ("are for CLIP's text encoder" in caplog.text) == text_encoder


# -- image to image, inpainting, other decoders ----------------------------------------------------------------------


def test_image_to_image_by_condition(pipe: KosmosGPipeline) -> None:
    stock = StableDiffusionImg2ImgPipeline.from_pipe(pipe.decoder)
    stock.set_progress_bar_config(disable=True)
    condition = pipe.encode(PROMPT)

    def draw(strength: float, other: Any = condition) -> Any:
        return stock(
            prompt_embeds=other.positive,
            negative_prompt_embeds=other.negative,
            image=picture(),
            strength=strength,
            num_inference_steps=4,
            generator=seeded(),
            output_type="np",
        ).images

    assert draw(0.5).shape == (1, 16, 16, 3)
    assert distance(draw(0.5), draw(1.0)) > 1e-3
    assert distance(draw(1.0), draw(1.0, pipe.encode("a dog"))) > 1e-4


def test_inpainting_by_condition_keeps_what_is_not_masked(pipe: KosmosGPipeline) -> None:
    stock = StableDiffusionInpaintPipeline.from_pipe(pipe.decoder)
    stock.set_progress_bar_config(disable=True)
    condition = pipe.encode(PROMPT)
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[:, 8:] = 255

    def draw(other: Any) -> Any:
        return stock(
            prompt_embeds=other.positive,
            negative_prompt_embeds=other.negative,
            image=picture(),
            mask_image=Image.fromarray(mask),
            height=16,
            width=16,
            strength=1.0,
            num_inference_steps=4,
            generator=seeded(),
            output_type="latent",
        ).images

    one, other = draw(condition), draw(pipe.encode("a dog"))
    assert distance(one[..., :4], other[..., :4]) < 1e-5
    assert distance(one[..., 4:], other[..., 4:]) > 1e-4


def test_a_fine_tuned_decoder_from_disk(
    tiny_model: KosmosG, tiny_processor: KosmosGProcessor, tiny_sd_parts: Path, tmp_path: Path, pipe: KosmosGPipeline
) -> None:
    stock = StableDiffusionPipeline.from_pretrained(tiny_sd_parts, safety_checker=None)
    with torch.no_grad():
        for weight in stock.unet.parameters():
            weight.mul_(1.05)
    stock.scheduler.register_to_config(prediction_type="v_prediction")
    stock.save_pretrained(tmp_path / "fine-tune")
    other = KosmosGPipeline(model=tiny_model, processor=tiny_processor, decoder=str(tmp_path / "fine-tune"))
    other.set_progress_bar_config(disable=True)
    assert other.scheduler.config.prediction_type == "v_prediction"
    one = pipe(PROMPT, generator=seeded(), **DRAW).images
    assert distance(one, other(PROMPT, generator=seeded(), **DRAW).images) > 1e-3
    # One set of MLLM weights serves both decoders.
    assert other.model is pipe.model


def test_from_pipe_copies_nothing(pipe: KosmosGPipeline) -> None:
    other = KosmosGPipeline.from_pipe(pipe)
    assert other.model is pipe.model
    assert other.unet is pipe.unet
    assert other.config.default_steps == pipe.config.default_steps
    assert copy.deepcopy(pipe.encoder).conditions.capacity == pipe.encoder.conditions.capacity
