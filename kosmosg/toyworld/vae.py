"""The autoencoder of the toy world: 32 x 32 x 3 pixels to 8 x 8 x 8 latents and back.

A stock `diffusers.AutoencoderKL`. Two differences from the usual recipe: no adversarial loss (L1 alone learns the
world's hard edges), and the latents' mean and spread are folded into the two 1 x 1 convolutions around the bottleneck,
so that each channel has zero mean and unit variance and `scaling_factor` is 1.
"""

import math
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from kosmosg.toyworld.scene import Bytes, render, sample_scene
from kosmosg.toyworld.training_loop import FitConfig, Fitted, Report, fit, generator, half

VAE_FIT = FitConfig(steps=1800, batch=32, lr=2e-3, warmup=50, decay=1000, ema=0.99)
_KL = 5e-4  # weight of the KL term per latent value, against pixels in -1..1


def new_vae() -> AutoencoderKL:
    """1.6 M parameters, downsampling 4, 8 latent channels, convolutions only."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=32,
        scaling_factor=1.0,
    )
    # Begin with almost noiseless latents: with unit noise on untrained means the decoder learns to ignore its input.
    torch.nn.init.constant_(vae.quant_conv.bias[8:], -6.0)
    return vae.to(memory_format=torch.channels_last)


def train_vae(folder: Path, config: FitConfig = VAE_FIT, report: Report = print) -> tuple[AutoencoderKL, Fitted]:
    """Train on scenes without held-out subjects; returns the normalised autoencoder."""
    torch.manual_seed(config.seed)
    vae = new_vae()

    # Not compiled: inductor's CPU code for this network trains to a constant image (torch 2.13), eager does not.
    def forward(pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        posterior = vae.encode(pixels).latent_dist
        return vae.decode(posterior.mean + posterior.std * noise).sample, posterior.mean, posterior.logvar

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = generator(config.seed, step)
        pixels = to_signed(render([sample_scene(rng) for _ in range(config.batch)]))
        noise = torch.from_numpy(rng.standard_normal((config.batch, 8, 8, 8), dtype=np.float32))
        with half():
            drawn, mean, logvar = forward(pixels, noise)
        error = drawn.float() - pixels
        kl = 0.5 * (mean.float() ** 2 + logvar.float().exp() - 1.0 - logvar.float()).mean()
        absolute, squared = error.abs().mean(), (error**2).mean()
        return absolute + squared + _KL * kl, {"l1": absolute.item(), "psnr": psnr(squared.item()), "kl": kl.item()}

    fitted = fit(vae, loss, config, folder, report)
    normalise(vae, seed=config.seed)
    return vae, fitted


@torch.no_grad()
def normalise(vae: AutoencoderKL, seed: int, scenes: int = 1024) -> None:
    """Fold the per-channel mean and standard deviation of the latents into the convolutions beside the bottleneck."""
    rng = generator(seed, 0, stream=1)
    mean = encode(vae, render([sample_scene(rng) for _ in range(scenes)]))
    shift, spread = mean.mean((0, 2, 3)), mean.std((0, 2, 3))
    channels = len(shift)
    before, after = vae.quant_conv, vae.post_quant_conv
    # In: mean' = (mean - shift) / spread, logvar' = logvar - 2 log spread. Out: z = z' * spread + shift.
    before.weight[:channels] /= spread[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - shift) / spread
    before.bias[channels:] -= 2.0 * spread.log()
    after.bias += torch.einsum("oi,i->o", after.weight[:, :, 0, 0], shift)
    after.weight *= spread[None, :, None, None]


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Bytes) -> Tensor:
    """Means of the latents: (B, 32, 32, 3) bytes to (B, 8, 8, 8)."""
    return torch.cat(
        [vae.encode(to_signed(part)).latent_dist.mean for part in np.array_split(pixels, -(-len(pixels) // 128))]
    )


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Bytes:
    """Latents (B, 8, 8, 8) to images (B, 32, 32, 3) in 0..255."""
    parts = [vae.decode(part).sample for part in latents.split(128)]
    signed = torch.cat(parts).clamp(-1.0, 1.0).permute(0, 2, 3, 1)
    pixels: Bytes = ((signed + 1.0) * 127.5).round().to(torch.uint8).numpy()
    return pixels


def to_signed(pixels: Bytes) -> Tensor:
    """(B, H, W, 3) bytes to (B, 3, H, W) floats in -1..1, channels last in memory."""
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1.0).contiguous(
        memory_format=torch.channels_last
    )


def psnr(squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB of pixels in -1..1 from their mean squared error."""
    return 10.0 * math.log10(4.0 / max(squared_error, 1e-12))


def reconstruction_psnr(vae: AutoencoderKL, scenes: int = 128, seed: int = 7, held_out: bool = True) -> float:
    """Quality of encode-decode in dB on fresh scenes, of held-out subjects by default."""
    rng = generator(seed, 0, stream=2)
    pixels = render([sample_scene(rng, held_out) for _ in range(scenes)])
    error = decode(vae, encode(vae, pixels)).astype(np.float64) - pixels
    return psnr(float((error**2).mean()) / 127.5**2)
