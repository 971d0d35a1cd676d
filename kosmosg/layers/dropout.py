"""Dropout whose masks follow from the sample, not from the order in which a worker happens to draw random numbers.

    kept(sample, site, t, c) = hash(seed of the sample, site, t, c) >= p * 2^16

A mask depends on nothing else: not on the other rows of the batch or their padding, nor on micro-batch, worker or
device. So a sample is masked alike however a batch is split over workers and passes, and a layer that is recomputed in
the backward pass needs no saved state of a generator. The hash has 32 bits and the multipliers of lowbias32 (Wellons,
hash-prospector). Each of its values decides about two elements, by 16 bits each, which meets a probability to 2^-17.

Letters: B rows, T tokens, C width, H heads, S source length.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

EMBEDDINGS, RESAMPLER = 0, 1
"""Sites of the language model's embeddings and of the resampler's attention weights."""

_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B - (1 << 32)
_MIX = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))  # splitmix64's
_WORDS_PER_TOKEN = 1 << 16  # in the numbering of the hash, so that wider rows do not renumber narrow ones


def layer_site(index: int | None, place: int) -> int:
    """The site of one of four places in a layer of the language model."""
    return 4 * (1 + (index or 0)) + place


@dataclass(frozen=True)
class DropoutSeeds:
    """What the masks of the rows of a batch follow from: two int32 (B,), well mixed."""

    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, seeds: Tensor, numbers: Tensor | None = None) -> DropoutSeeds:
        """From the seeds of the samples, (B,) long; `numbers` (B,) tell rows of one seed apart, such as its images."""
        mixed = _mix64(seeds)
        if numbers is not None:
            mixed = _mix64(mixed + numbers + 1)
        return cls(mixed.to(torch.int32), (mixed >> 32).to(torch.int32))

    def for_heads(self, heads: int) -> DropoutSeeds:
        """B x H rows, those of a sample next to each other."""
        mixed = (self.first.long() << 32) | (self.second.long() & 0xFFFFFFFF)
        numbers = torch.arange(heads, device=mixed.device).repeat(len(mixed))
        return DropoutSeeds.of(mixed.repeat_interleave(heads), numbers)

    def kept(self, tokens: int, width: int, p: float, site: int) -> Tensor:
        """(B, T, C) bool: False where dropout with probability `p` puts a zero."""
        first, second = _site_words(site)
        # Tables of few lengths, so that batches of other lengths find theirs made.
        table = _table(1 << (tokens - 1).bit_length(), -(-width // 2), self.first.device)[:tokens]
        x = table + (self.first ^ first)[:, None, None]
        spare = torch.empty_like(x)
        _xor_shift(x, 15, spare).mul_(_FIRST).add_((self.second ^ second)[:, None, None])
        _xor_shift(x, 15, spare).mul_(_SECOND)
        halves = _xor_shift(x, 16, spare).view(torch.int16)
        return (halves >= round(p * (1 << 16)) - (1 << 15))[..., :width]


def dropout(x: Tensor, p: float, training: bool, seeds: DropoutSeeds | None, site: int) -> Tensor:
    """Dropout of (B, T, C) by the seeds of its rows; without seeds, torch's."""
    if not training or p == 0.0:
        return x
    if seeds is None:
        return nn.functional.dropout(x, p=p)
    kept = seeds.kept(x.shape[1], x.shape[2], p, site)
    # The kernel that torch's own dropout has for a mask that is known: one pass, and only the mask is kept.
    out: Tensor = torch.ops.aten.native_dropout_backward(x, kept, 1 / (1 - p) if p < 1 else 0.0)
    return out


def attention_dropout(weights: Tensor, p: float, training: bool, seeds: DropoutSeeds | None, site: int) -> Tensor:
    """The same for attention weights (B, H, T, S)."""
    if seeds is not None and training and p:
        seeds = seeds.for_heads(weights.shape[1])
    return dropout(weights.flatten(0, 1), p, training, seeds, site).view_as(weights)


def image_seeds(seeds: Tensor, slots: Tensor, images: int) -> DropoutSeeds:
    """One row for each of the `images` of a batch, in reading order, from the seeds (B,) of its samples.

    `slots` (B, T) is True on image slots. Images number those of their sample, so they do not depend on other samples.
    """
    counts = slots.sum(dim=1)
    # All images have equally many slots, so every share of them is a whole number of images.
    counts = torch.div(counts * images, counts.sum().clamp(min=1), rounding_mode="floor")
    row = torch.repeat_interleave(torch.arange(len(seeds), device=seeds.device), counts, output_size=images)
    before = counts.cumsum(0) - counts
    return DropoutSeeds.of(seeds[row], torch.arange(images, device=seeds.device) - before[row])


@lru_cache(maxsize=1024)
def _site_words(site: int) -> tuple[int, int]:
    with torch.inference_mode(False):
        first, second = _scrambled(torch.tensor([2 * site, 2 * site + 1], device="cpu")).tolist()
    return first, second


@lru_cache(maxsize=8)
def _table(tokens: int, words: int, device: torch.device) -> Tensor:
    """(T, W) int32: the hashed numbers of the words of a row."""
    with torch.inference_mode(False):
        number = torch.arange(tokens, device=device)[:, None] * _WORDS_PER_TOKEN + torch.arange(words, device=device)
        return _scrambled(number)


def _scrambled(values: Tensor) -> Tensor:
    return _mix64(values).to(torch.int32)


def _xor_shift(x: Tensor, bits: int, spare: Tensor) -> Tensor:
    """x ^= x >> bits in place, without sign: torch shifts int32 with it."""
    torch.bitwise_right_shift(x, bits, out=spare)
    return x.bitwise_xor_(spare.bitwise_and_((1 << (32 - bits)) - 1))


def _mix64(x: Tensor) -> Tensor:
    """splitmix64's finisher on long values."""
    x = x + (0x9E3779B97F4A7C15 - (1 << 64))
    for bits, factor in ((30, _MIX[0]), (27, _MIX[1])):
        x = (x ^ ((x >> bits) & ((1 << (64 - bits)) - 1))) * factor
    return x ^ ((x >> 31) & ((1 << 33) - 1))
