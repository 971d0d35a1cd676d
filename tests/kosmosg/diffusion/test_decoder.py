"""The frozen decoder agrees with diffusers' own schedule and lets a gradient through to the condition only."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, PNDMScheduler, UNet2DConditionModel

from kosmosg import CheckpointError, ConfigError
from kosmosg.diffusion.decoder import FrozenDecoder

GOLDEN = Path(__file__).parents[2] / "golden" / "diffusers_0_21_4_trajectories.pt"
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # Stable Diffusion 1.5


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def decoder(request: pytest.FixtureRequest, tiny_sd_parts: Path) -> FrozenDecoder:
    loaded = FrozenDecoder.from_pretrained(tiny_sd_parts)
    schedule = DDPMScheduler(**BETAS, prediction_type=request.param)
    return FrozenDecoder(loaded.unet, loaded.vae, dict(schedule.config), tiny_sd_parts)


@pytest.fixture
def inputs(decoder: FrozenDecoder) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (3, *decoder.latent_shape)
    return {
        "latents": torch.randn(shape, generator=generator),
        "noise": torch.randn(shape, generator=generator),
        "condition": torch.randn(3, 77, decoder.condition_dim, generator=generator),
        "timesteps": torch.tensor([0, 500, 999]),
    }


def test_shapes_are_read_from_the_parts(decoder: FrozenDecoder) -> None:
    assert decoder.latent_shape == (4, 8, 8)
    assert decoder.vae_factor == 2
    assert decoder.image_size == 16
    assert decoder.condition_dim == 32
    assert decoder.num_timesteps == 1000


def test_schedule_is_that_of_the_published_run(decoder: FrozenDecoder) -> None:
    recorded = torch.load(GOLDEN, weights_only=True)["ddpm_alphas_cumprod"]
    torch.testing.assert_close(decoder.alphas_cumprod, recorded, atol=1e-6, rtol=0)


def test_noise_and_velocity_agree_with_diffusers(decoder: FrozenDecoder, inputs: dict) -> None:
    peer = DDPMScheduler(**BETAS, prediction_type=decoder.prediction_type)
    latents, noise, timesteps = inputs["latents"], inputs["noise"], inputs["timesteps"]
    torch.testing.assert_close(
        decoder.noisy(latents, noise, timesteps), peer.add_noise(latents, noise, timesteps), atol=1e-6, rtol=1e-5
    )
    expected = noise if decoder.prediction_type == "epsilon" else peer.get_velocity(latents, noise, timesteps)
    torch.testing.assert_close(decoder.target(latents, noise, timesteps), expected, atol=1e-6, rtol=1e-5)


def test_loss_is_per_sample_and_independent_of_the_batch(decoder: FrozenDecoder, inputs: dict) -> None:
    together = decoder.loss(**inputs)
    alone = torch.cat([decoder.loss(**{name: value[i : i + 1] for name, value in inputs.items()}) for i in range(3)])
    assert together.shape == (3,)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_loss_is_the_error_of_the_unets_answer(decoder: FrozenDecoder, inputs: dict) -> None:
    peer = DDPMScheduler(**BETAS)
    sample = peer.add_noise(inputs["latents"], inputs["noise"], inputs["timesteps"])
    answer = decoder.unet(sample, inputs["timesteps"], inputs["condition"]).sample
    target = decoder.target(inputs["latents"], inputs["noise"], inputs["timesteps"])
    expected = torch.nn.functional.mse_loss(answer, target, reduction="none").flatten(1).mean(1)
    torch.testing.assert_close(decoder.loss(**inputs), expected, atol=1e-6, rtol=1e-5)


def test_gradient_reaches_the_condition_and_no_weight(decoder: FrozenDecoder, inputs: dict) -> None:
    inputs["condition"].requires_grad_()
    decoder.loss(**inputs).mean().backward()
    gradient = inputs["condition"].grad
    assert gradient is not None
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    assert all(not weight.requires_grad and weight.grad is None for weight in decoder.parameters())


def test_gradient_checkpointing_changes_no_number(decoder: FrozenDecoder, inputs: dict) -> None:
    gradients = []
    for switch in (decoder.unet.disable_gradient_checkpointing, decoder.unet.enable_gradient_checkpointing):
        switch()
        condition = inputs["condition"].clone().requires_grad_()
        decoder.loss(**{**inputs, "condition": condition}).sum().backward()
        gradients.append(condition.grad)
    decoder.unet.disable_gradient_checkpointing()
    torch.testing.assert_close(gradients[0], gradients[1])


def test_it_stays_in_eval_mode_inside_a_training_stage(decoder: FrozenDecoder) -> None:
    stage = torch.nn.Sequential(decoder, torch.nn.Dropout()).train()
    assert stage[1].training
    assert not any(module.training for module in decoder.modules())


def test_latents_are_reproducible_draws_of_the_posterior(decoder: FrozenDecoder) -> None:
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    posterior = decoder.vae.encode(pixels).latent_dist
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    scale = decoder.vae.config.scaling_factor
    torch.testing.assert_close(decoder.latents(pixels, torch.zeros_like(noise)), posterior.mean * scale)
    torch.testing.assert_close(
        decoder.latents(pixels, noise), (posterior.mean + posterior.std * noise) * scale, atol=1e-6, rtol=1e-5
    )
    torch.manual_seed(0)
    first = decoder.latents(pixels)
    assert not torch.equal(first, decoder.latents(pixels))
    assert not first.requires_grad


def test_half_precision_weights_still_give_a_float32_loss(tiny_sd_parts: Path) -> None:
    decoder = FrozenDecoder.from_pretrained(tiny_sd_parts, dtype=torch.bfloat16)
    exact = FrozenDecoder.from_pretrained(tiny_sd_parts)
    shape = (2, *decoder.latent_shape)
    latents, noise, condition = torch.randn(shape), torch.randn(shape), torch.randn(2, 77, 32, requires_grad=True)
    loss = decoder.loss(latents, condition, noise, torch.tensor([10, 900]))
    assert loss.dtype == torch.float32
    loss.sum().backward()
    assert condition.grad is not None
    torch.testing.assert_close(
        loss, exact.loss(latents, condition, noise, torch.tensor([10, 900])), rtol=0.05, atol=0.05
    )


def cast_as(way: str, decoder: FrozenDecoder) -> FrozenDecoder:
    stage = torch.nn.Sequential(decoder, torch.nn.Linear(1, 1))  # a training stage around it, as the engine casts it
    if way == "stage.to(bfloat16)":
        stage.to(torch.bfloat16)
    elif way == "to meta and back":
        decoder.to("meta").to_empty(device="cpu")
    else:
        getattr(decoder, way)()
    return decoder


@pytest.mark.parametrize("way", ["bfloat16", "half", "double", "stage.to(bfloat16)", "to meta and back"])
def test_no_cast_touches_the_noise_schedule(way: str, tiny_sd_parts: Path) -> None:
    exact = FrozenDecoder.from_pretrained(tiny_sd_parts)
    cast = cast_as(way, FrozenDecoder.from_pretrained(tiny_sd_parts))
    assert cast.alphas_cumprod.dtype == torch.float32
    assert torch.equal(cast.alphas_cumprod, exact.alphas_cumprod)
    assert "alphas_cumprod" in dict(cast.named_buffers())
    latents, noise = torch.randn(1000, 1, 1, 1), torch.randn(1000, 1, 1, 1)
    timesteps = torch.arange(1000)
    assert torch.equal(cast.noisy(latents, noise, timesteps), exact.noisy(latents, noise, timesteps))


@pytest.mark.parametrize("scheduler", [PNDMScheduler, DPMSolverMultistepScheduler, DDPMScheduler])
def test_any_saved_scheduler_gives_the_schedule(scheduler: type, tiny_sd_parts: Path) -> None:
    parts = FrozenDecoder.from_pretrained(tiny_sd_parts)
    decoder = FrozenDecoder(parts.unet, parts.vae, dict(scheduler(**BETAS, prediction_type="v_prediction").config))
    assert decoder.prediction_type == "v_prediction"
    torch.testing.assert_close(decoder.alphas_cumprod, parts.alphas_cumprod)


def test_text_encoder_comes_with_the_decoder_frozen(decoder: FrozenDecoder) -> None:
    ids = decoder.tokenizer("a cat", padding="max_length", return_tensors="pt").input_ids
    assert ids.shape == (1, 77)
    assert decoder.text_encoder(ids).last_hidden_state.shape == (1, 77, 32)
    assert not any(weight.requires_grad for weight in decoder.text_encoder.parameters())
    assert not any(name.startswith("text") for name, _ in decoder.named_parameters())


def test_the_world_decoder_ships_with_the_package() -> None:
    decoder = FrozenDecoder.from_pretrained("toyworld")
    assert decoder.image_size == 32
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = decoder.latents(pixels, torch.zeros(1, *decoder.latent_shape))
    assert latents.shape == (1, *decoder.latent_shape)
    states = decoder.text_encoder(decoder.tokenizer("a red ball", return_tensors="pt").input_ids).last_hidden_state
    assert states.shape[-1] == decoder.condition_dim


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_decoder_that_would_draw_black_pictures_is_refused(part: str, tiny_sd_parts: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_sd_parts, tmp_path / "sd")
    module = getattr(FrozenDecoder.from_pretrained(tiny_sd_parts), part)
    name, weight = next(iter(module.named_parameters()))
    with torch.no_grad():
        weight.view(-1)[0] = torch.nan
    module.save_pretrained(tmp_path / "sd" / part)
    with pytest.raises(CheckpointError, match=rf"{name} in {part}/ of the decoder .* not finite"):
        FrozenDecoder.from_pretrained(tmp_path / "sd")


def test_mistakes_are_told(decoder: FrozenDecoder, inputs: dict, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\(3, 77, 31\) for 3 latents.*\(B, Q, 32\).*d_model to 32"):
        decoder.loss(**{**inputs, "condition": inputs["condition"][..., :31]})
    with pytest.raises(ConfigError, match="divisible by 2"):
        decoder.latents(torch.zeros(1, 3, 15, 16))
    with pytest.raises(CheckpointError, match="has no usable unet/"):
        FrozenDecoder.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="neither a folder nor a reachable Hub id"):
        FrozenDecoder.from_pretrained(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="predicts 'sample'"):
        FrozenDecoder(decoder.unet, decoder.vae, dict(DDPMScheduler(prediction_type="sample").config))
    wide = UNet2DConditionModel(
        sample_size=8, in_channels=9, block_out_channels=(4,), norm_num_groups=2, down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",), cross_attention_dim=8, attention_head_dim=2,
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="takes 9 channels, the VAE gives 4"):
        FrozenDecoder(wide, decoder.vae, dict(DDPMScheduler().config))
    with pytest.raises(CheckpointError, match="has no text encoder"):
        _ = FrozenDecoder(decoder.unet, decoder.vae, dict(DDPMScheduler().config)).tokenizer
