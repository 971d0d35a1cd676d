"""Positions of tokens in a padded batch, and moving pads to the side that a layer needs.

Letters: B batch, T tokens, C width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def readable(values: Tensor) -> bool:
    """Whether values can be read: not while a graph is compiled, and not on the meta device, which has none."""
    return not (torch.compiler.is_compiling() or values.is_meta)


def position_rows(real: Tensor) -> Tensor:
    """(B, T) bool, True for tokens, to rows of the position table: 2, 3, ... for tokens, 1 for pads."""
    return real.long().cumsum(dim=1) * real + 1


def token_slots(attention_mask: Tensor, left_padded: bool = False) -> Tensor:
    """Where each token goes so that all pads are on one side: a permutation of each row, (B, T).

    Right-padded (the default) or left-padded; the order of tokens is kept. No value is read back from the device.
    """
    real = attention_mask.bool()
    rank = real.long().cumsum(dim=1) - 1
    if left_padded:
        pad_rank = (~real).long().cumsum(dim=1) - 1
        return torch.where(real, rank + (~real).sum(dim=1, keepdim=True), pad_rank)
    # Pads that follow the last token stay next to it, so that pads on the left change no value there either.
    behind = real.flip(1).long().cumsum(dim=1).flip(1) == 0
    before = ~(real | behind)
    pad_rank = torch.where(
        behind, behind.long().cumsum(dim=1), before.long().cumsum(dim=1) + behind.sum(dim=1, keepdim=True)
    )
    return torch.where(real, rank, pad_rank - 1 + real.sum(dim=1, keepdim=True))


def move(values: Tensor, slots: Tensor) -> Tensor:
    """Put token t of each row at `slots[:, t]`; values are (B, T) or (B, T, C)."""
    index = slots if values.ndim == 2 else slots.unsqueeze(-1).expand_as(values)
    return torch.zeros_like(values).scatter(1, index, values)


def move_back(values: Tensor, slots: Tensor) -> Tensor:
    """The inverse of `move`."""
    index = slots if values.ndim == 2 else slots.unsqueeze(-1).expand_as(values)
    return values.gather(1, index)


def move_back_attention(weights: Tensor, slots: Tensor) -> Tensor:
    """`move_back` for attention weights (B, H, T, T), along both of their axes of tokens."""
    rows = weights.gather(2, slots[:, None, :, None].expand_as(weights))
    return rows.gather(3, slots[:, None, None, :].expand_as(weights))
