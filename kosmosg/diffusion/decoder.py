"""`FrozenDecoder`: the frozen Stable Diffusion of training, which turns a condition into a denoising loss.

The U-Net and the VAE keep their weights and stay in eval mode; the gradient passes *through* the U-Net to the
condition (stage 3). Any Stable Diffusion of the 1.x family works: a folder in the diffusers layout, a URL, a Hub id, or
a shipped one such as `"toyworld"` (kosmosg/hub.py). To *generate* images, use `KosmosGPipeline`.

Shape legend: B samples, H x W pixels, c x h x w latents, Q x D condition (77 x 768 for Stable Diffusion 1.5).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from kosmosg.errors import CheckpointError, ConfigError
from kosmosg.hub import decoder_choices, decoder_folder


def load_part(kind: Any, source: str | Path, subfolder: str, loader: str = "from_pretrained", **options: Any) -> Any:
    """`kind.from_pretrained(source, subfolder)`, with failures reported in one sentence about the folder.

    Weights that are not finite are a failure too: they would silently produce black images.
    """
    place = decoder_folder(source)
    try:
        part = getattr(kind, loader)(place, subfolder=subfolder, **options)
    except (OSError, ValueError) as error:
        known = Path(place).is_dir()
        reason = f"has no usable {subfolder}/" if known else "is neither a folder nor a reachable Hub id"
        raise CheckpointError(
            f"decoder {place} {reason}; pass {decoder_choices()} ({str(error).splitlines()[0]})"
        ) from error
    for name, weight in part.named_parameters() if isinstance(part, nn.Module) else ():
        if not weight.is_meta and not bool(torch.isfinite(weight).all()):
            raise CheckpointError(
                f"{name} in {subfolder}/ of the decoder {place} holds values that are not finite; copy it again"
            )
    return part


def load_text_encoder(source: str | Path, dtype: torch.dtype | None = None) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """The decoder's own CLIP text encoder, frozen in eval mode, and its tokenizer: the target of stage 2."""
    encoder = load_part(CLIPTextModel, source, "text_encoder", dtype=dtype or torch.float32)
    tokenizer = load_part(CLIPTokenizer, source, "tokenizer")
    return encoder.eval().requires_grad_(False), tokenizer


@dataclass(frozen=True)
class DecoderSizes:
    """What a decoder was trained on."""

    image: int
    """Pixels per side."""
    latent: tuple[int, int, int]
    """(c, h, w) of an image's latent."""


def decoder_sizes(source: str | Path) -> DecoderSizes:
    """The sizes of a decoder, from its configuration alone. Raises CheckpointError if that cannot be read."""
    unet = load_part(UNet2DConditionModel, source, "unet", "load_config")
    vae = load_part(AutoencoderKL, source, "vae", "load_config")
    side, factor = int(unet["sample_size"]), int(2 ** (len(vae["block_out_channels"]) - 1))
    return DecoderSizes(side * factor, (int(vae["latent_channels"]), side, side))


def text_sizes(source: str | Path) -> tuple[int, int]:
    """(Q, D): tokens of a caption and width of a decoder's text encoder, from its configuration alone.

    Raises CheckpointError if that cannot be read.
    """
    config = load_part(CLIPTextConfig, source, "text_encoder")
    return int(config.max_position_embeddings), int(config.hidden_size)


def check_channels(unet: UNet2DConditionModel, vae: AutoencoderKL) -> None:
    """Raises `CheckpointError` if a U-Net needs more than noisy latents."""
    if unet.config.in_channels != vae.config.latent_channels:
        raise CheckpointError(
            f"the U-Net takes {unet.config.in_channels} channels, the VAE gives {vae.config.latent_channels}; "
            "use a text-to-image decoder (inpainting and depth variants take extra channels)"
        )


class FrozenDecoder(nn.Module):
    """A frozen U-Net and VAE with their noise schedule.

    Args:
        unet: the denoiser; epsilon or v prediction, text cross-attention of width D.
        vae: the image codec.
        schedule: any scheduler config of diffusers that holds the betas and the prediction type.
        source: where stage 2 can load the text encoder and tokenizer from.
    """

    alphas_cumprod: Tensor  # (1000,) float32: squared share of the signal that remains at each timestep

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        schedule: dict[str, Any],
        source: str | Path | None = None,
    ) -> None:
        super().__init__()
        noise_schedule = DDPMScheduler.from_config(schedule)
        prediction = noise_schedule.config.prediction_type
        if prediction not in ("epsilon", "v_prediction"):
            raise CheckpointError(
                f"the decoder predicts {prediction!r}, this loss supports 'epsilon' and 'v_prediction'; use another one"
            )
        check_channels(unet, vae)
        self.unet = unet
        self.vae = vae
        self.source = source
        self.prediction_type: str = prediction
        self._schedule: Tensor = noise_schedule.alphas_cumprod.float()
        self.register_buffer("alphas_cumprod", self._schedule, persistent=False)
        self.requires_grad_(False)
        super().train(False)

    @classmethod
    def from_pretrained(cls, source: str | Path, dtype: torch.dtype | None = None) -> Self:
        """Loads `unet/`, `vae/` and `scheduler/` of a decoder, named as in kosmosg/hub.py.

        `dtype` is the precision of the weights (default: float32); the loss is always computed in float32.
        """
        unet = load_part(UNet2DConditionModel, source, "unet", dtype=dtype or torch.float32)
        vae = load_part(AutoencoderKL, source, "vae", dtype=dtype or torch.float32)
        schedule = load_part(DDPMScheduler, source, "scheduler")
        return cls(unet, vae, dict(schedule.config), source)

    # -- what it is --------------------------------------------------------------------------------------------------

    @property
    def condition_dim(self) -> int:
        """D, the width of one condition vector that the U-Net attends to."""
        return int(self.unet.config.cross_attention_dim)

    @property
    def vae_factor(self) -> int:
        """Pixels per latent along one side (8 for Stable Diffusion)."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of one latent at the size that the U-Net was trained on."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return int(self.unet.config.in_channels), int(height), int(width)

    @property
    def image_size(self) -> int:
        """Pixels per side that the U-Net was trained on (512 for Stable Diffusion 1.5)."""
        return self.latent_shape[1] * self.vae_factor

    @property
    def num_timesteps(self) -> int:
        """Length of the noise schedule; timesteps are 0 .. this - 1."""
        return len(self.alphas_cumprod)

    @cached_property
    def _text(self) -> tuple[CLIPTextModel, CLIPTokenizer]:
        if self.source is None:
            raise CheckpointError("this decoder was built from parts and has no text encoder; use from_pretrained")
        return load_text_encoder(self.source)

    @property
    def text_encoder(self) -> CLIPTextModel:
        """The decoder's CLIP text encoder, loaded on first use and never part of this module's parameters."""
        return self._text[0]

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The tokenizer of `text_encoder`."""
        return self._text[1]

    def train(self, mode: bool = True) -> Self:
        """Does nothing: the decoder stays in eval mode."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """`to`, `half` and the like: the noise schedule moves with the weights and stays float32.

        In bfloat16 many neighbouring timesteps would share one noise level, and the first would have none.
        """
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.alphas_cumprod = self._schedule.to(self.alphas_cumprod.device)
        return self

    # -- what it does ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """`pixels (B, 3, H, W)` in [-1, 1] to scaled latents `(B, c, h, w)`, sampled from the VAE's posterior.

        `noise (B, c, h, w)`, standard normal, makes the sample reproducible; without it the global generator is used.
        The original trains on samples too, not on the mean.
        """
        return self.sample(self.posterior(pixels), noise)

    @torch.no_grad()
    def posterior(self, pixels: Tensor) -> Tensor:
        """`pixels (B, 3, H, W)` in [-1, 1] to mean and deviation of the VAE's posterior, `(B, 2, c, h, w)`, unscaled.

        Raises ConfigError for pixels of another shape.
        """
        factor = self.vae_factor
        if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] % factor or pixels.shape[3] % factor:
            raise ConfigError(
                f"pixels have shape {tuple(pixels.shape)}, expected (B, 3, H, W) with sides divisible by {factor}; "
                "resize and crop them"
            )
        found = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist
        return torch.stack([found.mean, found.std], dim=1)

    def sample(self, posterior: Tensor, noise: Tensor | None = None) -> Tensor:
        """Scaled latents `(B, c, h, w)` from `posterior (B, 2, c, h, w)`, in its precision; `noise` as in `latents`."""
        mean, deviation = posterior.unbind(dim=1)
        if noise is None:
            noise = torch.randn_like(mean)
        drawn = mean + deviation * noise.to(mean.dtype)
        scaled: Tensor = (drawn - (self.vae.config.shift_factor or 0.0)) * self.vae.config.scaling_factor
        return scaled

    def noisy(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents noised to `timesteps (B,)`: sqrt(a) x + sqrt(1 - a) n, in the latents' precision."""
        signal, spread = self._mixture(timesteps)
        return (signal * latents.float() + spread * noise.float()).to(latents.dtype)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the U-Net should predict, float32: the noise, or the velocity sqrt(a) n - sqrt(1 - a) x."""
        if self.prediction_type == "epsilon":
            return noise.float()
        signal, spread = self._mixture(timesteps)
        return signal * noise.float() - spread * latents.float()

    def loss(self, latents: Tensor, condition: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Mean squared denoising error of each sample under `condition`, `(B,)` float32.

        Args:
            latents: `(B, c, h, w)` clean, scaled.
            condition: `(B, Q, D)`; the only input that receives a gradient.
            noise: `(B, c, h, w)` standard normal.
            timesteps: `(B,)` long, 0 .. num_timesteps - 1.
        """
        if condition.ndim != 3 or condition.shape[-1] != self.condition_dim or len(condition) != len(latents):
            raise ConfigError(
                f"condition has shape {tuple(condition.shape)} for {len(latents)} latents, the U-Net expects "
                f"(B, Q, {self.condition_dim}); set aligner_config.d_model to {self.condition_dim}"
            )
        dtype = self.unet.dtype
        sample = self.noisy(latents, noise, timesteps).to(dtype)
        answer = self.unet(sample, timesteps, encoder_hidden_states=condition.to(dtype), return_dict=False)[0]
        squared: Tensor = (answer.float() - self.target(latents, noise, timesteps)) ** 2
        return squared.mean(dim=(1, 2, 3))

    def _mixture(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of signal and noise at each timestep, `(B, 1, 1, 1)` float32."""
        kept = self.alphas_cumprod[timesteps].float()[:, None, None, None]
        return kept.sqrt(), (1 - kept).sqrt()
