"""The tiny model of the tests of this folder."""

import pytest

from kosmosg import KosmosG, KosmosGConfig
from tests.kosmosg.model.prompt_batches import lively


@pytest.fixture(scope="module")
def model() -> KosmosG:
    return lively(KosmosGConfig.tiny(vocab_size=200))
