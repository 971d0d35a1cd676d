"""An engine whose U-Net and VAE take no time."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from serving.engine.step_engine import StepEngine


class InstantUNet(nn.Module):
    """Predicts no noise, at once: the shortest steps, so that threads meet as often as they can."""

    config = SimpleNamespace(sample_size=1, in_channels=4, block_out_channels=(1,))
    dtype, device = torch.float32, torch.device("cpu")

    def forward(self, latents: Tensor, *inputs: Tensor, **options: object) -> tuple[Tensor]:
        return (torch.zeros_like(latents),)


class InstantVAE(nn.Module):
    """One pixel per latent."""

    config = SimpleNamespace(block_out_channels=(1,), scaling_factor=1.0)
    dtype = torch.float32

    def decode(self, latents: Tensor, return_dict: bool) -> tuple[Tensor]:
        return (latents[:, :3],)


@pytest.fixture
def instant_engine() -> StepEngine:
    return StepEngine(InstantUNet(), InstantVAE(), DDIMScheduler(), max_batch_rows=4)
