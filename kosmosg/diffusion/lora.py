"""LoRA support: Kosmos-G replaces CLIP's text encoder, so only the U-Net can hold a LoRA."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils.peft_utils import scale_lora_layers, unscale_lora_layers

logger = logging.getLogger(__name__)


class UnetLora(StableDiffusionLoraLoaderMixin):  # type: ignore[misc]
    """The LoRA methods of diffusers for a pipeline with a U-Net and no text encoder."""

    # Community LoRA files often contain weights for CLIP's text encoder as well, which cannot be used here.
    _lora_loadable_modules: ClassVar[list[str]] = ["unet"]
    text_encoder = None

    def fuse_lora(self, components: Sequence[str] = ("unet",), **kwargs: Any) -> None:
        """As in diffusers; the U-Net is the only part that can hold a LoRA."""
        super().fuse_lora(components=list(components), **kwargs)

    def unfuse_lora(self, components: Sequence[str] = ("unet",), **kwargs: Any) -> None:
        """As in diffusers; the inverse of `fuse_lora`."""
        super().unfuse_lora(components=list(components), **kwargs)

    @classmethod
    def load_lora_into_text_encoder(cls, state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Ignores a LoRA's weights for CLIP's text encoder, which Kosmos-G replaces, with a warning."""
        dropped = [name for name in state_dict if name.startswith("text_encoder")]
        if dropped:
            logger.warning(
                "%d weights of this LoRA are for CLIP's text encoder, which Kosmos-G replaces; "
                "only those for the U-Net are used",
                len(dropped),
            )


@contextmanager
def lora_scale(unet: UNet2DConditionModel, scale: float) -> Iterator[None]:
    """Scale the U-Net's LoRA weights by `scale` for the duration of the block.

    The stock pipeline would also scale its text encoder, and fails if it has none.
    """
    if scale == 1.0:
        yield
        return
    scale_lora_layers(unet, scale)
    try:
        yield
    finally:
        unscale_lora_layers(unet, scale)
