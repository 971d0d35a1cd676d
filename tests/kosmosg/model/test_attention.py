"""Attention: no mask where none is needed, and the same result from every implementation."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface

from kosmosg import KosmosG
from tests.kosmosg.model.prompt_batches import ROWS, batch


@pytest.fixture
def masks_seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...] | None, bool]]:
    """Shape of the mask and causality of every attention that runs."""
    seen: list[tuple[tuple[int, ...] | None, bool]] = []
    original = torch.nn.functional.scaled_dot_product_attention

    def spy(*args: Any, attn_mask: Tensor | None = None, is_causal: bool = False, **kwargs: Any) -> Tensor:
        seen.append((None if attn_mask is None else tuple(attn_mask.shape), is_causal))
        return original(*args, attn_mask=attn_mask, is_causal=is_causal, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    return seen


@pytest.mark.parametrize("side", ["right", "left"])
def test_language_model_never_builds_a_mask(model: KosmosG, masks_seen: list[Any], side: str) -> None:
    model.mllm(**batch(ROWS, side))
    assert len(masks_seen) == 2 + 1 + 2  # vision, resampler, language model
    assert [mask for mask, _ in masks_seen] == [None] * 5
    assert [causal for _, causal in masks_seen] == [False] * 3 + [True] * 2


def test_unpadded_prompts_run_without_any_mask(model: KosmosG, masks_seen: list[Any]) -> None:
    model.null_condition()
    masks_seen.clear()
    model.encode(batch(ROWS[:1]))
    assert {mask for mask, _ in masks_seen} == {None}
    masks_seen.clear()
    model.encode(batch(ROWS))
    assert {mask for mask, _ in masks_seen} == {None, (3, 1, 1, 16)}  # the aligner reads prompts of different lengths


def test_generate_uses_no_mask_without_padding(model: KosmosG, masks_seen: list[Any]) -> None:
    model.mllm.generate(**batch(ROWS[:1]), max_new_tokens=3, do_sample=False)
    assert {mask for mask, _ in masks_seen} == {None}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_implementations_agree(model: KosmosG, attention: str) -> None:
    expected = model.encode(batch(ROWS)).positive
    model.set_attn_implementation(attention)
    try:
        found = model.encode(batch(ROWS)).positive
    finally:
        model.set_attn_implementation("sdpa")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_registered_kernel_serves_every_attention(model: KosmosG) -> None:
    calls: list[tuple[bool, bool]] = []

    def kernel(
        module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        calls.append((mask is not None, options["is_causal"]))
        causal = options["is_causal"] and mask is None
        heads = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, mask, is_causal=causal, scale=options["scaling"]
        )
        return heads.transpose(1, 2), None

    AttentionInterface.register("kernel_of_a_user", kernel)
    expected = model.conditioning(**batch(ROWS[:1]))
    model.set_attn_implementation("kernel_of_a_user")
    try:
        found = model.conditioning(**batch(ROWS[:1]))
    finally:
        model.set_attn_implementation("sdpa")
    torch.testing.assert_close(found, expected)
    assert calls == [(False, False)] * 3 + [(False, True)] * 2 + [(False, False)] * 6
