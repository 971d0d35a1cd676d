"""Configurations of models that can be created from scratch: a registry, like those of sources and benchmarks.

`MODEL_SHAPES` maps a value of the setting `model.init` to a function of the vocabulary size. Plug-ins can add more
(`kosmosg.plugins`). The functions import what they need when they are called, so that listing shapes costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kosmosg.plugins import find_entry

if TYPE_CHECKING:
    from kosmosg.config import KosmosGConfig


def _paper(vocab_size: int) -> KosmosGConfig:
    """The published model always has the vocabulary of the published tokenizer."""
    from kosmosg.config import KosmosGConfig

    return KosmosGConfig.paper()


def _tiny(vocab_size: int) -> KosmosGConfig:
    from kosmosg.config import KosmosGConfig

    return KosmosGConfig.tiny(vocab_size)


MODEL_SHAPES: dict[str, Callable[[int], KosmosGConfig]] = {"tiny": _tiny, "paper": _paper}


def new_config(shape: str, vocab_size: int) -> KosmosGConfig:
    """The configuration of a new model.

    Args:
        shape: a key of `MODEL_SHAPES`, including those of plug-ins.
        vocab_size: tokens of the processor, specials included; `paper` has its own number, 64,007.

    Raises:
        ConfigError: there is no such shape.
    """
    return find_entry(MODEL_SHAPES, shape, "model.init")(vocab_size)
