"""A tiny model whose answers vary, and prompts as the processor would arrange them."""

from typing import Any

import torch
from torch import Tensor

from kosmosg import KosmosG, KosmosGConfig

IMAGE, END, PAD = 196, 197, 1
Row = list[int | str]


def lively(config: KosmosGConfig) -> KosmosG:
    """A model whose next tokens vary: fresh ones with tied embeddings repeat the last token for ever."""
    torch.manual_seed(0)
    model = KosmosG(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layers" in name and parameter.ndim == 2:
                parameter.mul_(2)
    return model


def batch(rows: list[Row], side: str = "right") -> dict[str, Tensor]:
    """Rows of token ids and "image", as the processor would arrange them."""
    ids, slots = [], []
    for row in rows:
        tokens: list[int] = [0]
        mask = [False]
        for part in row:
            tokens += [part] if isinstance(part, int) else [IMAGE] * 5 + [END]
            mask += [False] if isinstance(part, int) else [False, True, True, True, True, False]
        ids.append(tokens)
        slots.append(mask)
    longest = max(map(len, ids))

    def pad(values: list[Any], fill: int) -> Tensor:
        fills = [[fill] * (longest - len(row)) for row in values]
        return torch.tensor([f + row if side == "left" else row + f for f, row in zip(fills, values, strict=True)])

    images = sum(row.count("image") for row in rows)
    torch.manual_seed(1)
    made = {
        "input_ids": pad(ids, PAD),
        "attention_mask": pad([[1] * len(row) for row in ids], 0),
        "image_embeds_position_mask": pad(slots, False).bool(),
    }
    return made | ({"pixel_values": torch.randn(images, 3, 32, 32)} if images else {})


ROWS: list[Row] = [[5, 6, "image", 7, "image"], [9, 10, "image", 11], [12]]
