"""The frozen models behind precomputed columns: the decoder's VAE and its text encoder.

Both compute in fp32 whatever precision training uses, and without TF32, so that only the rounding to fp16 separates a
stored value from the exact one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from kosmosg.data.collate.align import AlignCollate
from kosmosg.data.collate.instruct import target_pixels
from kosmosg.data.precomputed import pack
from kosmosg.data.records import record_kind
from kosmosg.data.templates.instruct import caption_of, record_image
from kosmosg.diffusion.decoder import FrozenDecoder, load_text_encoder
from kosmosg.errors import ConfigError
from kosmosg.processor import KosmosGProcessor


class PosteriorEncoder:
    """Mean and deviation of the VAE's posterior of a record's target image, (2, c, h, w).

    Args:
        decoder: whose VAE.
        kind: of the records, which says which image is the target.
        image_size: pixels per side, as stage 3 resizes and crops its targets.
    """

    def __init__(self, decoder: str, kind: str, image_size: int) -> None:
        self.field = record_kind(kind).target
        if not self.field:
            raise ConfigError(f"records of kind {kind!r} have no image that stage 3 generates")
        self.image_size = image_size
        self.decoder = FrozenDecoder.from_pretrained(decoder).to(_device())

    def prepare(self, record: Mapping[str, Any]) -> Tensor:
        """(3, H, W) pixels of the target."""
        image: Image.Image = record_image(record[self.field], self.field)
        return target_pixels(image, self.image_size)

    def encode(self, inputs: Sequence[Tensor]) -> list[bytes]:
        """One posterior for each image."""
        if not inputs:
            return []
        pixels = torch.stack(list(inputs)).to(self.decoder.vae.device)
        return [pack(one) for one in self.decoder.posterior(pixels).cpu()]

    def empty(self) -> None:
        """There is no empty image."""
        return None


class TextStatesEncoder:
    """States (Q, D) of the decoder's text encoder for a record's caption, shortened as stage 2 shortens it.

    Args:
        decoder: whose text encoder and tokenizer.
        processor: tokens of the language model, which limit the caption too.
        length: maximum row length of stage 2, in tokens of the language model.
    """

    def __init__(self, decoder: str, processor: KosmosGProcessor, length: int) -> None:
        encoder, tokenizer = load_text_encoder(decoder)
        self.encoder = encoder.to(_device())  # type: ignore[arg-type]
        self.collate = AlignCollate(processor, tokenizer, encoder.config.max_position_embeddings, length)

    def prepare(self, record: Mapping[str, Any]) -> str:
        """The caption."""
        return caption_of(record)

    @torch.no_grad()
    def encode(self, inputs: Sequence[str]) -> list[bytes]:
        """States of each caption."""
        if not inputs:
            return []
        # Tokenized here and not in `prepare`: a tokenizer's padding and truncation are state that threads would share.
        captions = [self.collate.shorten(caption) for caption in inputs]
        ids = self.collate.clip_input_ids(captions).to(self.encoder.device)
        return [pack(one) for one in self.encoder(input_ids=ids).last_hidden_state.cpu()]

    def empty(self) -> bytes:
        """States of the empty caption, which stage 2 puts in place of some."""
        return self.encode([""])[0]


def _device() -> torch.device:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
