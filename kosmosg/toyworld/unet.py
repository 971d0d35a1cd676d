"""The U-Net of the toy world, which generates images from CLIP's text states.

A stock `diffusers.UNet2DConditionModel` on 8 x 8 x 8 latents, trained on v-prediction. What makes a CPU hour enough:

* Timesteps are sampled where shapes and bindings are decided. With so few latents, the coarse image is determined at
  high noise, to which the plain epsilon loss gives little weight (it multiplies the image's error by the SNR).
* Latents and text states are kept in a pool of recent scenes. Each scene is rendered, captioned and encoded once and
  then used several times with fresh noise, so that a step costs little more than the U-Net.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from einops import rearrange
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from kosmosg.toyworld.contrastive import WIDTH, TextBatch, mix_colors, text_states, tokenize
from kosmosg.toyworld.scene import Bytes, caption, render, sample_scene, sample_words
from kosmosg.toyworld.tokenizers import TEXT_LENGTH
from kosmosg.toyworld.training_loop import FitConfig, Fitted, Report, fit, generator, half
from kosmosg.toyworld.vae import decode, encode

UNET_FIT = FitConfig(steps=6000, batch=64, lr=1e-3, warmup=200, decay=1500, ema=0.999, log_every=100)
LATENT = (8, 8, 8)
_FRESH = 8  # new scenes in a step
_KEPT = 4096  # steps for which a scene stays in the pool
_FIRST = 256  # steps' worth of scenes in the pool before the first step
_EMPTY = 0.1  # share of samples with the empty caption, for classifier-free guidance


def new_unet() -> UNet2DConditionModel:
    """4.3 M parameters; cross-attention at both resolutions."""
    return UNet2DConditionModel(
        sample_size=LATENT[1],
        in_channels=LATENT[0],
        out_channels=LATENT[0],
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 128),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=16,
    ).to(memory_format=torch.channels_last)


def scheduler() -> DPMSolverMultistepScheduler:
    """Stable Diffusion's betas, v-prediction, DPM-Solver++ (2M)."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        algorithm_type="dpmsolver++",
        solver_order=2,
        steps_offset=1,
    )


def sample_times(rng: np.random.Generator, count: int) -> Tensor:
    """Three in ten uniform in 0..999, the others normal around 600 with a spread of 170, where the scene is decided."""
    uniform = rng.integers(0, 1000, count)
    decisive = np.clip(np.round(rng.normal(600.0, 170.0, count)), 0, 999).astype(np.int64)
    return torch.from_numpy(np.where(rng.random(count) < 0.3, uniform, decisive))


class Teacher:
    """Frozen autoencoder and text tower, and a ring buffer of their outputs for the scenes of the last `kept` steps.

    The contents of the pool at a step depend only on that step, so a resumed run has the same pool.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        text_model: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        seed: int,
        kept: int = _KEPT,
        first: int = _FIRST,
    ) -> None:
        self.vae, self.text_model, self.tokenizer, self.seed = vae, text_model, tokenizer, seed
        self.kept, self.first = kept, first
        self.latents = torch.zeros(kept * _FRESH, *LATENT)
        self.states = torch.zeros(kept * _FRESH, TEXT_LENGTH, WIDTH)
        with torch.no_grad():
            self.null = text_model(tokenize(tokenizer, [""])).last_hidden_state[0]
        self._until = 0  # scenes of chunks below this one are in the pool

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """Latents and states of random scenes of the pool as it stands at this step."""
        end = step + 1 + self.first
        for begin in range(max(self._until, end - self.kept), end, 32):
            self._add(range(begin, min(begin + 32, end)))
        self._until = end
        rng = generator(self.seed, step, stream=4)
        rows = torch.from_numpy(rng.integers(0, min(end, self.kept) * _FRESH, size))
        states = self.states[rows]
        states[torch.from_numpy(rng.random(size) < _EMPTY)] = self.null
        return self.latents[rows], states

    @torch.no_grad()
    def _add(self, chunks: range) -> None:
        scenes, told = [], []
        for chunk in chunks:
            rng = generator(self.seed, chunk, stream=3)
            drawn = [sample_scene(rng) for _ in range(_FRESH)]
            words = [sample_words(rng, scene, color=0.88, pattern=0.85) for scene in drawn]
            texts = [caption(scene, some, rng.random() > 0.04).text for scene, some in zip(drawn, words, strict=True)]
            told.append(mix_colors(rng, self.tokenizer, texts, drawn, words, chance=0.5))
            scenes += drawn
        text = TextBatch(*(torch.cat(column) for column in zip(*told, strict=True)))
        rows = torch.cat([torch.arange(_FRESH) + chunk % self.kept * _FRESH for chunk in chunks])
        self.latents[rows] = encode(self.vae, render(scenes))
        self.states[rows] = text_states(self.text_model, text)


def train_unet(
    folder: Path,
    vae: AutoencoderKL,
    text_model: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    config: FitConfig = UNET_FIT,
    report: Report = print,
) -> tuple[UNet2DConditionModel, Fitted]:
    """Train on scenes without held-out subjects."""
    torch.manual_seed(config.seed)
    unet = new_unet()
    frozen = vae.eval().requires_grad_(False), text_model.eval().requires_grad_(False)
    teacher = Teacher(*frozen, tokenizer, config.seed, first=min(_FIRST, config.steps))
    cumulative = scheduler().alphas_cumprod

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = generator(config.seed, step)
        latents, states = teacher.batch(step, config.batch)
        times = sample_times(rng, config.batch)
        noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
        signal = cumulative[times].sqrt()[:, None, None, None]
        spread = (1.0 - cumulative[times]).sqrt()[:, None, None, None]
        noisy = (signal * latents + spread * noise).contiguous(memory_format=torch.channels_last)
        with half():
            velocity = unet(noisy, times, states).sample.float()
        error = (velocity - (signal * noise - spread * latents)).square().mean((1, 2, 3))
        return error.mean(), {"late": error[times > 600].mean().item()}

    with _fast_half(unet):
        fitted = fit(unet, loss, config, folder, report)
    return unet, fitted


@contextlib.contextmanager
def _fast_half(unet: UNet2DConditionModel) -> Iterator[None]:
    """Keep group norm and attention in float32 under autocast: torch 2.13's bfloat16 kernels for them are 5-10 times
    slower on a CPU. A step takes 0.56 s with all in bfloat16, 0.49 s with all in float32, 0.29 s this way.
    """
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))
        for module in unet.modules()
        if isinstance(module, torch.nn.GroupNorm)
    ]
    before = unet.attn_processors
    unet.set_attn_processor(_FloatAttention())
    try:
        yield
    finally:
        unet.set_attn_processor(before)
        for hook in hooks:
            hook.remove()


class _FloatAttention:
    """Attention of a transformer block with its softmax in float32 whatever autocast says."""

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            rearrange(states, "b n (h d) -> b h n d", h=attn.heads).float()
            for states in (attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source))
        )
        with torch.autocast(query.device.type, enabled=False):
            mixed = F.scaled_dot_product_attention(query, key, value)
        return attn.to_out[1](attn.to_out[0](rearrange(mixed, "b h n d -> b n (h d)")))  # type: ignore[no-any-return]


@torch.no_grad()
def generate(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    states: Tensor,
    null: Tensor,
    steps: int = 20,
    guidance: float = 3.0,
    seed: int = 0,
) -> Bytes:
    """Images (B, 32, 32, 3) from text states (B, 24, D) with classifier-free guidance against `null` (24, D)."""
    solver = scheduler()
    solver.set_timesteps(steps)
    latents = torch.randn(len(states), *LATENT, generator=torch.Generator().manual_seed(seed))
    both = torch.cat([null.expand_as(states), states])
    for time in solver.timesteps:
        without, told = unet(torch.cat([latents, latents]), time, both).sample.chunk(2)
        latents = solver.step(without + guidance * (told - without), time, latents).prev_sample
    return decode(vae, latents)
