"""Conditions are those of the model, computed once for each content, and never those of older weights."""

import copy
import pickle
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image

from kosmosg import CheckpointError, KosmosG, KosmosGProcessor, Prompt, PromptError
from kosmosg.conditioners.alignernet import AlignerNet
from kosmosg.prompt_encoder import PromptEncoder

RED, BLUE = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (30, 40), "blue")
PROMPT = Prompt("<i> in the style of <i>", images=[RED, BLUE])


@pytest.fixture
def encoder(tiny_model: KosmosG, tiny_processor: KosmosGProcessor) -> PromptEncoder:
    return PromptEncoder(tiny_model, tiny_processor)


def distance(one: Any, other: Any) -> float:
    return float((one - other).abs().max())


def test_prompts_seen_before_cost_nothing(encoder: PromptEncoder) -> None:
    calls: list[int] = []
    handle = encoder.model.aligner.register_forward_pre_hook(lambda module, arguments: calls.append(len(arguments[0])))
    assert PROMPT not in encoder
    encoder([PROMPT, "a cat", "a cat"])
    assert PROMPT in encoder
    assert sum(calls) == 3  # two prompts and the null prompt
    calls.clear()
    encoder(["a cat", Prompt("<i> in the style of <i>", [RED.copy(), BLUE.copy()])], negatives=[""])
    assert calls == []
    encoder(["a dog"], negatives=["a cat"])
    assert calls == [1]
    handle.remove()
    assert encoder.conditions.misses == 4


def test_images_seen_before_skip_the_vision_tower(encoder: PromptEncoder) -> None:
    seen: list[int] = []
    handle = encoder.model.mllm.vision_model.register_forward_pre_hook(
        lambda module, arguments: seen.append(len(arguments[0]))
    )
    encoder([PROMPT, Prompt("<i>", [RED])])
    assert sum(seen) == 2
    seen.clear()
    mixed = Prompt("<i> and <i> with <i>", [BLUE, Image.new("RGB", (9, 9)), RED])
    condition = encoder([mixed])
    assert seen == [1]
    handle.remove()
    expected = encoder.model.encode(encoder.processor(mixed))
    torch.testing.assert_close(condition.positive, expected.positive, atol=1e-5, rtol=1e-5)


def test_changed_weights_are_noticed(tiny_model: KosmosG, tiny_processor: KosmosGProcessor) -> None:
    encoder = PromptEncoder(copy.deepcopy(tiny_model), tiny_processor)
    before = encoder(["a cat"])
    with torch.no_grad():
        for weight in encoder.model.aligner.parameters():
            weight.mul_(1.1)
    after = encoder(["a cat"])
    assert distance(before.positive, after.positive) > 1e-4
    assert distance(before.negative, after.negative) > 1e-4
    encoder.model.train()  # images drawn during training hear no dropout and leave the mode as it was
    assert distance(encoder(["a dog"]).positive, encoder(["a dog"]).positive) == 0
    encoder.clear()
    assert distance(encoder(["a cat"]).positive, after.positive) < 1e-6
    assert encoder.model.training


def lora(model: KosmosG) -> Any:
    """The language model with an adapter that does something, in the place of the plain one."""
    torch.manual_seed(0)
    # Not the queries or keys: the null prompt is a single token, which attends to itself whatever they are.
    adapted = get_peft_model(model.mllm, LoraConfig(r=4, target_modules=["v_proj"], init_lora_weights=False))
    model.mllm = adapted.base_model.model
    return adapted


def test_switched_scaled_and_merged_adapters_are_noticed(tiny_model: KosmosG, tiny_processor: KosmosGProcessor) -> None:
    """No parameter changes when an adapter is switched off, yet every condition does, the null condition's too."""
    model = copy.deepcopy(tiny_model)
    encoder = PromptEncoder(model, tiny_processor)
    batch = tiny_processor("a cat")
    plain = encoder(["a cat"])
    assert distance(plain.negative, model.encode(batch).negative) < 1e-6
    adapted = lora(model)
    with_lora = encoder(["a cat"])
    for part in ("positive", "negative"):
        assert distance(getattr(plain, part), getattr(with_lora, part)) > 1e-4
        assert distance(getattr(with_lora, part), getattr(model.encode(batch), part)) < 1e-5
        with adapted.disable_adapter():
            assert distance(getattr(plain, part), getattr(model.encode(batch), part)) < 1e-5
            assert distance(getattr(plain, part), getattr(encoder(["a cat"]), part)) < 1e-5
    layer = next(module for module in model.modules() if hasattr(module, "lora_A"))
    layer.scale_layer(3.0)
    scaled = encoder(["a cat"])
    assert distance(scaled.negative, with_lora.negative) > 1e-5
    assert distance(scaled.negative, model.encode(batch).negative) < 1e-5
    layer.unscale_layer()
    adapted.merge_adapter()
    merged = encoder(["a cat"])
    assert distance(merged.positive, with_lora.positive) < 1e-4
    assert distance(merged.negative, model.encode(batch).negative) < 1e-6


def test_replaced_parts_are_noticed(tiny_model: KosmosG, tiny_processor: KosmosGProcessor) -> None:
    """Another aligner has as many parameters, written as often; it still is another."""
    model = copy.deepcopy(tiny_model)
    encoder = PromptEncoder(model, tiny_processor)
    before, null = encoder(["a cat"]), model.encode(tiny_processor("a cat")).negative
    torch.manual_seed(9)
    other = AlignerNet(model.config).eval()
    for ours, theirs in zip(model.aligner.parameters(), other.parameters(), strict=True):
        while theirs._version < ours._version:
            theirs.requires_grad_(False).mul_(1)
    model.aligner = other
    assert distance(encoder(["a cat"]).positive, before.positive) > 1e-3
    assert distance(model.encode(tiny_processor("a cat")).negative, null) > 1e-3


def test_moving_forgets_nothing(encoder: PromptEncoder) -> None:
    encoder([PROMPT])
    misses = encoder.conditions.misses
    encoder.model.to("cpu")
    encoder([PROMPT])
    assert encoder.conditions.misses == misses


def test_memory_is_bounded(encoder: PromptEncoder) -> None:
    memory = encoder.conditions
    memory.capacity = 3
    for text in ("a cat", "a dog", "a ball", "a tree"):
        encoder([text])
    misses = memory.misses
    encoder(["a tree"])
    assert memory.misses == misses
    encoder(["a cat"])
    assert memory.misses == misses + 1


def test_a_batch_larger_than_the_memory_is_whole(tiny_model: KosmosG, tiny_processor: KosmosGProcessor) -> None:
    small = PromptEncoder(tiny_model, tiny_processor, capacity=1, batch_size=2)
    prompts = [PROMPT, Prompt("<i> <i> <i>", [RED, BLUE, Image.new("RGB", (5, 5))]), "a cat", "a dog", "a ball"]
    condition = small(prompts, negatives=["a tree"])
    roomy = PromptEncoder(tiny_model, tiny_processor)(prompts, negatives=["a tree"] * 5)
    torch.testing.assert_close(condition.positive, roomy.positive, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(condition.negative, roomy.negative, atol=1e-5, rtol=1e-5)
    assert pickle.loads(pickle.dumps(small))(["a cat"]).positive.shape == (1, 77, 32)  # noqa: S301 as Ray does


def test_weights_that_are_not_finite_are_told(tiny_model: KosmosG, tiny_processor: KosmosGProcessor) -> None:
    broken = copy.deepcopy(tiny_model)
    with torch.no_grad():
        next(broken.aligner.parameters()).fill_(float("nan"))
    with pytest.raises(CheckpointError, match=r"not finite in torch\.float32"):
        PromptEncoder(broken, tiny_processor)(["a cat"])


def test_counts_must_agree(encoder: PromptEncoder) -> None:
    with pytest.raises(PromptError, match="2 negative prompts for 3 prompts"):
        encoder(["a", "b", "c"], negatives=["d", "e"])
