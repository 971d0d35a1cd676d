"""Batches of stage 2: captions alone, for the language model and for CLIP's text encoder."""

import bisect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kosmosg.data.collate.base import Batch, BatchRow, KeyedRecord, numbers, pad_rows
from kosmosg.data.precomputed import TEXT_STATES, unpack
from kosmosg.data.templates.instruct import caption_of
from kosmosg.errors import ConfigError
from kosmosg.processor import KosmosGProcessor


class AlignCollate:
    """Returns `input_ids` (B, T), `image_embeds_position_mask` (B, T) all False, `clip_input_ids` (B, Q), `seed` (B,),
    `shortened` (B,) 1 where a caption was too long, and `weight` () the number of rows. With `empty_states` there is
    `text_states` (B, Q, D) in place of `clip_input_ids`.

    A caption that is too long for either model is shortened for both, so that CLIP's target and the states that M sees
    describe the same text.

    Args:
        processor: the MLLM's tokens.
        clip_tokenizer: the tokenizer of the decoder's text encoder (transformers).
        clip_length: Q, length of the text encoder's input and the aligner's output; 77 for Stable Diffusion.
        length: maximum row length in tokens. The original skips captions over 85; here they are shortened.
        empty: probability that the caption is replaced by the empty one, so that the null condition is aligned too.
        pad_to_length: pad every batch to `length` instead of to its longest caption. The reconstruction loss counts
            pads, as in the original, so without this it depends on how samples are split over workers.
        empty_states: (Q, D) the text encoder's states of the empty caption; if given, records have the precomputed
            column `text_states`, made of captions that are shortened by the same rule.
    """

    def __init__(
        self,
        processor: KosmosGProcessor,
        clip_tokenizer: Callable[..., Mapping[str, Any]],
        clip_length: int = 77,
        length: int = 86,
        empty: float = 0.0,
        pad_to_length: bool = False,
        empty_states: Tensor | None = None,
    ) -> None:
        if not 0.0 <= empty <= 1.0:
            raise ConfigError(f"data.empty_captions is {empty}; a probability lies between 0 and 1")
        if length < 2:
            raise ConfigError(f"data.max_seq_len is {length} tokens; captions need at least 2, <s> among them")
        self.processor = processor
        self.clip_tokenizer = clip_tokenizer
        self.clip_length = clip_length
        self.length = length
        self.empty = empty
        self.pad_to_length = pad_to_length
        self.empty_states = empty_states

    def __call__(self, samples: Sequence[KeyedRecord]) -> Batch:
        rows, captions, shortened, states = [], [], [], []
        for key, record in samples:
            emptied = numbers(key.seed)() < self.empty
            whole = "" if emptied else caption_of(record)
            caption = self.shorten(whole)
            ids, slots, _ = self.processor.sequence([caption])
            rows.append(BatchRow(ids, slots, key.seed))
            captions.append(caption)
            shortened.append(float(caption != whole))
            if self.empty_states is not None:
                shape = self.empty_states.shape
                states.append(self.empty_states if emptied else unpack(record, TEXT_STATES, shape))
        batch = pad_rows(rows, self.processor, self.length if self.pad_to_length else 0)
        if states:
            batch[TEXT_STATES] = torch.stack(states)
        else:
            batch["clip_input_ids"] = self.clip_input_ids(captions)
        batch["shortened"] = torch.tensor(shortened)
        batch["weight"] = torch.tensor(float(len(rows)))
        return batch

    def shorten(self, caption: str) -> str:
        """As much of a caption as fits both models."""
        return longest_start(caption, self._fits)

    def clip_input_ids(self, captions: Sequence[str]) -> Tensor:
        """(B, Q) tokens of captions for the text encoder."""
        clip = self.clip_tokenizer(
            list(captions), padding="max_length", max_length=self.clip_length, truncation=True, return_tensors="pt"
        )
        ids: Tensor = clip["input_ids"]
        return ids

    def _fits(self, caption: str) -> bool:
        if len(self.processor.tokenize(caption)) + 1 > self.length:  # <s>
            return False
        ids = self.clip_tokenizer([caption], max_length=self.clip_length + 1, truncation=True)["input_ids"][0]
        return len(ids) <= self.clip_length


def longest_start(text: str, fits: Callable[[str], bool]) -> str:
    """The text, or as many of its first words as fit; of a first word that is too long, as many characters."""
    if fits(text):
        return text
    ends = [match.start() for match in re.finditer(r"(?<=\S)\s", text)]
    if not ends or not fits(text[: ends[0]]):
        ends = list(range(ends[0] if ends else len(text)))
    kept = bisect.bisect_left(ends, True, key=lambda end: not fits(text[:end]))  # longer ones do not fit
    return text[: ends[kept - 1]] if kept else ""
