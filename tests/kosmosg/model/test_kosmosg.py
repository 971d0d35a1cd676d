"""Properties of the model as a user meets them: padding, images, caches, modes, and what it refuses."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from kosmosg import KosmosG, KosmosGConfig
from kosmosg.errors import ConfigError, ImageError, PromptError
from kosmosg.model.mllm import KosmosGForConditionalGeneration
from kosmosg.model.padding import move, move_back, token_slots
from tests.kosmosg.model.prompt_batches import PAD, ROWS, batch, lively


def test_padding_on_either_side_changes_nothing(model: KosmosG) -> None:
    right, left = model(**batch(ROWS)), model(**batch(ROWS, "left"))
    torch.testing.assert_close(left.condition, right.condition)
    for row, mask in enumerate(batch(ROWS)["attention_mask"].bool()):
        flipped = batch(ROWS, "left")["attention_mask"][row].bool()
        torch.testing.assert_close(left.logits[row][flipped], right.logits[row][mask])
        torch.testing.assert_close(left.last_hidden_state[row][flipped], right.last_hidden_state[row][mask])


def test_a_prompt_means_the_same_alone_and_in_a_batch(model: KosmosG) -> None:
    together = model.encode(batch(ROWS)).positive
    images = batch(ROWS)["pixel_values"]
    start = 0
    for row, content in enumerate(ROWS):
        alone = batch([content])
        if used := content.count("image"):
            alone["pixel_values"] = images[start : start + used]
            start += used
        torch.testing.assert_close(model.encode(alone).positive, together[row : row + 1])


def test_every_image_and_its_place_matter(model: KosmosG) -> None:
    prompts = batch(ROWS[:1])
    condition = model.encode(prompts).positive
    swapped = {**prompts, "pixel_values": prompts["pixel_values"].flip(0)}
    assert not torch.allclose(model.encode(swapped).positive, condition, atol=1e-3)


def test_images_seen_before_need_not_be_seen_again(model: KosmosG, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = batch(ROWS)
    expected = model.encode(prompts).positive
    tokens = model.mllm.image_tokens(prompts.pop("pixel_values"))

    def look(pixels: Tensor) -> Tensor:
        raise AssertionError("the vision tower was run")

    monkeypatch.setattr(model.mllm.vision_model, "forward", look)
    found = model.encode({**prompts, "image_tokens": tokens}).positive
    torch.testing.assert_close(found, expected)


def test_token_slots_is_a_permutation_that_move_back_undoes() -> None:
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 1, 1], [1, 1, 1, 1, 1]])
    values = torch.arange(15).view(3, 5)
    for left in (False, True):
        slots = token_slots(mask, left_padded=left)
        assert slots.sort(dim=1).values.equal(torch.arange(5).expand(3, 5))
        assert move_back(move(values, slots), slots).equal(values)
        moved = move(mask, slots)
        assert moved.equal(moved.sort(dim=1, descending=not left).values)
        kept = [row[real.bool()].tolist() for row, real in zip(values, mask, strict=True)]
        assert [row[real.bool()].tolist() for row, real in zip(move(values, slots), moved, strict=True)] == kept


def test_pads_on_the_left_change_nothing_at_pads_on_the_right(model: KosmosG) -> None:
    prompts = batch(ROWS)
    fills = {"input_ids": PAD, "attention_mask": 0, "image_embeds_position_mask": False}
    wider = {name: torch.nn.functional.pad(prompts[name], (3, 0), value=fill) for name, fill in fills.items()}
    found = model.mllm(**wider, pixel_values=prompts["pixel_values"]).logits[:, 3:]
    torch.testing.assert_close(found, model.mllm(**prompts).logits)


def greedy(model: KosmosGForConditionalGeneration, prompts: dict[str, Tensor], steps: int) -> list[int]:
    """The definition of greedy decoding: append the most likely token, run everything again."""
    prompts = dict(prompts)
    for _ in range(steps):
        best = model(**prompts).logits[:, -1].argmax(dim=-1, keepdim=True)
        prompts["input_ids"] = torch.cat([prompts["input_ids"], best], dim=1)
        prompts["attention_mask"] = torch.nn.functional.pad(prompts["attention_mask"], (0, 1), value=1)
        mask = prompts["image_embeds_position_mask"]
        prompts["image_embeds_position_mask"] = torch.nn.functional.pad(mask, (0, 1), value=False)
    return prompts["input_ids"][0, -steps:].tolist()


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
def test_generate_is_greedy_decoding_of_each_prompt(model: KosmosG, side: str, options: dict[str, Any]) -> None:
    images = batch(ROWS)["pixel_values"]
    alone = [batch([row]) for row in ROWS]
    alone[0]["pixel_values"], alone[1]["pixel_values"] = images[:2], images[2:]
    expected = [greedy(model.mllm, prompts, 6) for prompts in alone]
    assert len({tuple(tokens) for tokens in expected}) == 3  # so that a mix-up would show
    prompts = batch(ROWS, side)
    options = {**options, "max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    found = model.mllm.generate(**prompts, **options)
    assert found[:, -6:].tolist() == expected
    assert found.shape[1] == prompts["input_ids"].shape[1] + 6


def test_beams_keep_each_prompts_images(model: KosmosG) -> None:
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 4, "do_sample": False}
    together = model.mllm.generate(**batch(ROWS, "left"), **options)
    second = batch(ROWS[1:2])
    second["pixel_values"] = batch(ROWS)["pixel_values"][2:]
    assert together[2:4, -4:].equal(model.mllm.generate(**second, **options)[:, -4:])


def test_loss_ignores_what_labels_exclude(model: KosmosG) -> None:
    prompts = batch(ROWS[2:])
    labels = prompts["input_ids"].clone()
    logits = model.mllm(**prompts).logits
    expected = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:])
    torch.testing.assert_close(model.mllm(**prompts, labels=labels).loss, expected)
    longer = {name: torch.nn.functional.pad(value, (0, 1)) for name, value in prompts.items()}
    labels = torch.nn.functional.pad(labels, (0, 1), value=-100)
    torch.testing.assert_close(model.mllm(**longer, labels=labels).loss, expected)


def test_logits_to_keep_and_tuples(model: KosmosG) -> None:
    prompts = batch(ROWS[:1])
    whole = model.mllm(**prompts)
    torch.testing.assert_close(model.mllm(**prompts, logits_to_keep=1).logits, whole.logits[:, -1:])
    assert model.mllm(**prompts, return_dict=False)[0].equal(whole.logits)
    assert model(**prompts, return_dict=False)[2].equal(model(**prompts).condition)


def test_null_condition_is_bos_alone_and_follows_the_weights(model: KosmosG) -> None:
    bos = model.encode({"input_ids": torch.tensor([[0]])})
    assert bos.positive.equal(bos.negative)
    model = lively(KosmosGConfig.tiny(vocab_size=200))
    before = model.encode(batch(ROWS[2:])).negative
    assert model.null_condition().requires_grad  # stage 3 trains it
    with torch.no_grad():
        model.aligner.encoder.layer_norm.bias.add_(1)
    after = model.encode(batch(ROWS[2:])).negative
    torch.testing.assert_close(after, before + 1)
    model.to(torch.float64)
    assert model.encode(batch(ROWS[2:])).negative.dtype == torch.float64


def test_negative_prompts_of_one_or_of_all(model: KosmosG) -> None:
    negative = batch([[20, 21]])
    one = model.encode(batch(ROWS), negative).negative
    assert one.shape == (3, 77, 32)
    torch.testing.assert_close(one, model.encode(batch(ROWS), batch([[20, 21]] * 3)).negative)
    with pytest.raises(PromptError, match="2 negative prompts for 3 prompts"):
        model.encode(batch(ROWS), batch([[20], [21]]))


def test_encode_has_no_dropout_and_restores_the_mode(model: KosmosG) -> None:
    expected = model.encode(batch(ROWS))
    model.train()
    try:
        found = model.encode(batch(ROWS))
        assert model.training
        assert not found.positive.requires_grad
        assert not torch.allclose(model.conditioning(**batch(ROWS)), expected.positive)  # with dropout
    finally:
        model.eval()
    torch.testing.assert_close(found.positive, expected.positive)


@pytest.mark.parametrize("images", [0, 1, 3])
def test_images_and_places_must_agree(model: KosmosG, images: int) -> None:
    prompts = batch(ROWS[:1])
    prompts["pixel_values"] = torch.zeros(images, 3, 32, 32)
    with pytest.raises(PromptError, match=f"8 image slots and the batch has {images} images"):
        model.encode(prompts)
    del prompts["pixel_values"]
    with pytest.raises(PromptError, match="0 images"):
        model.mllm.generate(**prompts)


def test_image_without_a_place_is_refused(model: KosmosG) -> None:
    with pytest.raises(PromptError, match="0 image slots and the batch has 2 images"):
        model.encode({"input_ids": torch.tensor([[0, 5]]), "pixel_values": torch.zeros(2, 3, 32, 32)})


def test_image_of_another_size_is_refused(model: KosmosG) -> None:
    prompts = batch(ROWS[:1])
    prompts["pixel_values"] = torch.zeros(2, 3, 48, 48)
    with pytest.raises(ImageError, match=r"\(2, 3, 48, 48\).*\(3, 32, 32\)"):
        model.encode(prompts)


def test_prompt_beyond_the_position_table_is_refused(model: KosmosG) -> None:
    limit = model.config.max_tokens
    model.encode({"input_ids": torch.full((1, limit), 5)})
    with pytest.raises(PromptError, match=f"{limit + 1} tokens long.*at most {limit}"):
        model.encode({"input_ids": torch.full((1, limit + 1), 5)})
    ids, asked = torch.full((1, limit - 1), 5), {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    for options in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        with pytest.raises(PromptError, match=f"at most {limit}"):
            model.mllm.generate(ids, **asked, **options)


def test_impossible_configurations_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"text_config\.embed_dim is 30.*attention_heads = 4"):
        KosmosGConfig(text_config={"embed_dim": 30, "attention_heads": 4})


def test_importing_the_model_is_light() -> None:
    heavy = ("ray", "deepspeed", "mlflow", "diffusers")
    code = f"import sys, kosmosg.model; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
