"""A tiny model on disk, as users have one, for all tests of the endpoint."""

from pathlib import Path

import pytest

from kosmosg import KosmosG, KosmosGProcessor
from kosmosg.checkpoint.export import save_export


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory, tiny_model: KosmosG, tiny_processor: KosmosGProcessor) -> Path:
    """An export folder with random weights."""
    return save_export(tiny_model, tiny_processor, tmp_path_factory.mktemp("model") / "export")


@pytest.fixture(scope="session")
def decoder(tiny_sd_parts: Path) -> Path:
    """A decoder in diffusers' layout with random weights: 16x16 pixels, sizes in multiples of 4."""
    return tiny_sd_parts
