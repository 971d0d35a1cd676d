"""Dropout follows from the sample: a row is masked alike in every batch, by masks as random as dropout needs."""

from itertools import combinations
from typing import Any

import pytest
import torch

from kosmosg.layers.dropout import DropoutSeeds, attention_dropout, dropout, image_seeds
from kosmosg.model import KosmosG
from kosmosg.model.mllm import KosmosGForConditionalGeneration

SEEDS = torch.tensor([0, 1, 2, 2**62 + 5])


def zeros(x: torch.Tensor, p: float, seeds: torch.Tensor, site: int) -> torch.Tensor:
    return dropout(x, p, True, DropoutSeeds.of(seeds), site) == 0


@pytest.mark.parametrize("rows", [[0], [3, 1], [2, 2, 0]])
@pytest.mark.parametrize("tokens", [1, 7, 64, 100])
def test_a_row_is_masked_alike_in_every_batch(rows: list[int], tokens: int) -> None:
    x = torch.ones(4, 100, 33)
    whole = dropout(x, 0.3, True, DropoutSeeds.of(SEEDS), 5)
    part = dropout(x[: len(rows), :tokens], 0.3, True, DropoutSeeds.of(SEEDS[rows]), 5)
    assert torch.equal(part, whole[rows, :tokens])


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.999])
def test_masks_are_as_many_zeros_as_asked_and_the_rest_is_scaled(p: float) -> None:
    x = torch.randn(4, 200, 500)
    out = dropout(x, p, True, DropoutSeeds.of(SEEDS), 3)
    kept = out != 0
    torch.testing.assert_close(out[kept], x[kept] / (1 - p))
    for share in (1 - kept.float()).mean(dim=(1, 2)).tolist():
        assert share == pytest.approx(p, abs=5 * (p * (1 - p) / x[0].numel()) ** 0.5 + 2**-17)


def test_masks_of_rows_sites_tokens_and_channels_do_not_go_together() -> None:
    shape, p = (4, 300, 400), 0.2
    found = {site: zeros(torch.ones(shape), p, SEEDS, site).float() - p for site in (0, 1, 4, 5)}
    pairs = [(found[one], found[other]) for one, other in combinations(found, 2)]
    for one in found.values():
        pairs += [(one[a], one[b]) for a, b in combinations(range(4), 2)]
        pairs += [(one[:, lag:], one[:, :-lag]) for lag in (1, 2, 64)]
        pairs += [(one[..., lag:], one[..., :-lag]) for lag in (1, 2, 16)]
    for left, right in pairs:
        correlation = float((left * right).mean()) / (p * (1 - p))
        assert abs(correlation) < 5 / left.numel() ** 0.5


def test_it_is_a_gradient_of_its_own_mask_and_nothing_in_evaluation() -> None:
    x = torch.randn(2, 5, 8, requires_grad=True)
    out = dropout(x, 0.5, True, DropoutSeeds.of(SEEDS[:2]), 1)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, (out != 0).float() * 2)
    assert dropout(x, 0.5, False, DropoutSeeds.of(SEEDS[:2]), 1) is x
    assert not dropout(x, 1.0, True, DropoutSeeds.of(SEEDS[:2]), 1).any()


def test_heads_have_masks_of_their_own() -> None:
    weights = torch.ones(3, 2, 40, 60)
    out = attention_dropout(weights, 0.4, True, DropoutSeeds.of(SEEDS[:3]), 1)
    alone = attention_dropout(weights[1:2, :, :9], 0.4, True, DropoutSeeds.of(SEEDS[1:2]), 1)
    assert torch.equal(alone, out[1:2, :, :9])
    assert not torch.equal(out[:, 0], out[:, 1])


def test_images_are_told_apart_by_sample_and_place() -> None:
    slots = torch.zeros(3, 20, dtype=torch.bool)
    slots[0, 2:10], slots[2, 1:5] = True, True  # two images of four slots, none, one
    seeds = torch.tensor([7, 8, 9])
    batch, alone = image_seeds(seeds, slots, 3), image_seeds(seeds[2:], slots[2:, :6], 1)
    assert torch.equal(batch.first[2:], alone.first)
    assert torch.equal(image_seeds(seeds[:1], slots[:1], 2).second, batch.second[:2])
    assert len(set(batch.first.tolist())) == 3


@pytest.mark.parametrize("attention", [0.0, 0.2])
def test_the_language_model_masks_a_row_alike_in_every_batch(new_model: Any, attention: float) -> None:
    model: KosmosG = new_model(dropout=0.2)
    for layer in model.mllm.text_model.model.layers:
        layer.self_attn.attention_dropout = attention
        layer.ffn.activation_dropout = 0.1
    mllm: KosmosGForConditionalGeneration = model.mllm.train()
    ids = torch.randint(4, 40, (4, 30))
    ids[1, 12:] = model.config.text_config.pad_token_id
    whole = mllm.states(ids, seeds=DropoutSeeds.of(SEEDS))
    part = mllm.states(ids[1:2, :12], seeds=DropoutSeeds.of(SEEDS[1:2]))
    torch.testing.assert_close(part, whole[1:2, :12], atol=2e-6, rtol=1e-4)
    assert not torch.allclose(part, mllm.eval().states(ids[1:2, :12]), atol=0.01)
