"""The published size, counted on the meta device: parameters and floating point operations."""

from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from kosmosg import KosmosG, KosmosGConfig
from kosmosg.conditioners.alignernet import AlignerDecoder
from kosmosg.diffusion.decoder import FrozenDecoder
from kosmosg.stages.align import AlignStage
from kosmosg.stages.instruct import InstructStage


@pytest.fixture(scope="module")
def parts() -> tuple[KosmosG, AlignerDecoder]:
    with torch.device("meta"):
        return (
            KosmosG(KosmosGConfig.paper()).eval().requires_grad_(False),
            AlignerDecoder(KosmosGConfig.paper()).eval().requires_grad_(False),
        )


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters_of_the_published_model(parts: tuple[KosmosG, AlignerDecoder]) -> None:
    model, decoder = parts
    assert count(model.mllm) == 1_662_375_936
    assert count(model.mllm.text_model) == 1_340_180_480
    assert count(model.mllm.vision_model) == 303_179_776
    assert count(model.mllm.image_to_text_projection) == 19_015_680
    assert count(model.aligner) == 225_461_760
    assert count(model.aligner) + count(decoder) == 476_031_488


@pytest.mark.parametrize(
    ("tokens", "language", "head", "m"), [(20, 48.4, 5.2, 19.6), (96, 233.7, 25.2, 35.4), (170, 416.4, 44.6, 51.3)]
)
def test_operations_of_a_prompt(
    parts: tuple[KosmosG, AlignerDecoder], tokens: int, language: float, head: float, m: float
) -> None:
    model, _ = parts
    embeddings = torch.empty(1, tokens, 2048, device="meta")
    rows = torch.empty(1, tokens, dtype=torch.long, device="meta")
    assert gigaflops(lambda: model.mllm.text_model.model(embeddings, rows)) == pytest.approx(language, rel=0.02)
    assert gigaflops(lambda: model.mllm.logits(embeddings)) == pytest.approx(head, rel=0.02)
    assert gigaflops(lambda: model.aligner(embeddings)) == pytest.approx(m, rel=0.02)


def test_operations_of_an_image_and_of_n(parts: tuple[KosmosG, AlignerDecoder]) -> None:
    model, decoder = parts
    pixels = torch.empty(1, 3, 224, 224, device="meta")
    tokens = torch.empty(1, 257, 1024, device="meta")
    assert gigaflops(lambda: model.mllm.vision_model(pixels)) == pytest.approx(162.0, rel=0.02)
    assert gigaflops(lambda: model.mllm.image_to_text_projection(tokens)) == pytest.approx(7.7, rel=0.02)
    assert gigaflops(lambda: decoder(torch.empty(1, 77, 768, device="meta"), 20)) == pytest.approx(9.7, rel=0.02)


def test_encoding_computes_no_logits(parts: tuple[KosmosG, AlignerDecoder]) -> None:
    model, _ = parts
    ids = torch.zeros(1, 20, dtype=torch.long, device="meta")
    states = gigaflops(lambda: model.mllm.states(ids))
    assert states == pytest.approx(48.4, rel=0.02)


@pytest.fixture(scope="module")
def stable_diffusion() -> FrozenDecoder:
    """Stable Diffusion 1.5's U-Net and autoencoder, without weights."""
    widths = (320, 640, 1280, 1280)
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            cross_attention_dim=768,
            block_out_channels=widths,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
    assert (count(unet), count(vae)) == (859_520_964, 83_653_863)
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    return FrozenDecoder(unet, vae, schedule)


@pytest.mark.slow
def test_operations_of_a_stage_2_sample() -> None:
    with torch.device("meta"):
        sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
        stage = AlignStage(KosmosG(KosmosGConfig.paper()), CLIPTextModel(CLIPTextConfig(**sizes)))
    batch = {"input_ids": tokens_of(20), "clip_input_ids": tokens_of(77)}
    found = training_teraflops(lambda: stage(batch).loss)
    # 0.155 in the original, which computes logits (5.2 GFLOP) and throws them away.
    assert found == pytest.approx(0.0484 + 0.0133 + 3 * (0.0196 + 0.0097), rel=0.02)


@pytest.mark.slow
def test_operations_of_a_stage_3_sample(stable_diffusion: FrozenDecoder) -> None:
    with torch.device("meta"):
        stage = InstructStage(KosmosG(KosmosGConfig.paper()), stable_diffusion, torch.zeros(1, 1, dtype=torch.long))
    stage.to("meta")  # the noise schedule came with values
    # Once a batch, so not a sample's: the null condition, and where no sample has images a blank one, so that all
    # ranks run the same modules.
    null = training_teraflops(lambda: stage.model.conditioning(tokens_of(1)))
    blank = training_teraflops(lambda: stage.model.mllm.image_tokens(torch.empty(1, 3, 224, 224, device="meta")))
    found = {"caption": sample_teraflops(stage, 20, images=0) - null - blank}
    found["edit"] = sample_teraflops(stage, 96, images=1) - null
    found["composition"] = sample_teraflops(stage, 170, images=2) - null
    assert found == {kind: pytest.approx(n, rel=0.035) for kind, n in zip(found, (2.9, 3.8, 4.6), strict=True)}
    mixture = (found["caption"] + 2 * found["edit"] + 2 * found["composition"]) / 5
    assert mixture == pytest.approx(3.9, rel=0.02)


def sample_teraflops(stage: InstructStage, tokens: int, images: int) -> float:
    batch = {
        "input_ids": tokens_of(tokens),
        "image_embeds_position_mask": torch.zeros(1, tokens, dtype=torch.bool, device="meta"),
        "target_pixels": torch.empty(1, 3, 512, 512, device="meta"),
        "seed": torch.zeros(1, dtype=torch.long),
    }
    if images:
        batch["pixel_values"] = torch.empty(images, 3, 224, 224, device="meta")
    return training_teraflops(lambda: stage(batch).loss)


def tokens_of(length: int) -> Tensor:
    return torch.zeros(1, length, dtype=torch.long, device="meta")


def training_teraflops(run: Callable[[], Tensor]) -> float:
    """Forward and backward."""
    with FlopCounterMode(display=False) as counter:
        run().sum().backward()
    return float(counter.get_total_flops()) / 1e12


def gigaflops(run: Callable[[], object]) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops()) / 1e9
