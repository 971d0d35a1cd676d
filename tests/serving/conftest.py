"""A tiny model on disk, as users have one, and an engine whose U-Net and VAE take no time."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from kosmosg import KosmosG, KosmosGProcessor
from kosmosg.checkpoint.export import save_export
from serving.engine.step_engine import StepEngine


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory, tiny_model: KosmosG, tiny_processor: KosmosGProcessor) -> Path:
    """An export folder with random weights."""
    return save_export(tiny_model, tiny_processor, tmp_path_factory.mktemp("model") / "export")


@pytest.fixture(scope="session")
def decoder(tiny_sd_parts: Path) -> Path:
    """A decoder in diffusers' layout with random weights: 16x16 pixels, sizes in multiples of 4."""
    return tiny_sd_parts


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
