"""Properties of the model as a user meets them: padding, images, masks, caches, modes, saving, transformers' tools."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AutoConfig, AutoModel, AutoModelForImageTextToText

from kosmosg import KosmosG, KosmosGConfig
from kosmosg.conditioners.alignernet import AlignerDecoder, AlignerNet
from kosmosg.errors import ConfigError, ImageError, PromptError
from kosmosg.model.mllm import KosmosGForConditionalGeneration
from kosmosg.model.padding import move, move_back, token_slots
from kosmosg.model.vision import freeze_vision

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


@pytest.fixture(scope="module")
def model() -> KosmosG:
    return lively(KosmosGConfig.tiny(vocab_size=200))


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


def test_gradient_reaches_every_parameter(model: KosmosG) -> None:
    model.zero_grad()
    model(**batch(ROWS)).condition.square().mean().backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    model.zero_grad()
    assert missing == []


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(reentrant: bool) -> None:
    model = KosmosG(KosmosGConfig.tiny(vocab_size=200))
    model.config.text_config.dropout = 0
    for module in model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(**batch(ROWS)).condition.square().mean().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.train()
    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert model.is_gradient_checkpointing
    kept = gradients()
    assert plain.keys() == kept.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(kept[name], gradient, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
def test_encode_compiles_into_one_graph() -> None:
    config = KosmosGConfig.tiny(vocab_size=200)
    config.text_config.layers = config.vision_config.num_hidden_layers = config.aligner_config.layers = 1
    model = lively(config)
    torch.compiler.reset()
    compiled = torch.compile(model.encode, fullgraph=True, backend="eager")
    for prompts in (batch(ROWS), batch(ROWS[:1], "left")):
        found, expected = compiled(prompts), model.encode(prompts)
        torch.testing.assert_close(found.positive, expected.positive)
        torch.testing.assert_close(found.negative, expected.negative)


def test_lora_on_the_language_model() -> None:
    from peft import LoraConfig, get_peft_model

    model = lively(KosmosGConfig.tiny(vocab_size=200))
    before = model.encode(batch(ROWS)).positive
    adapted = get_peft_model(model.mllm, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    model.mllm = adapted.base_model.model
    assert not torch.allclose(model.encode(batch(ROWS)).positive, before, atol=1e-4)
    adapted(**batch(ROWS), labels=batch(ROWS)["input_ids"]).loss.backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert trained
    assert all("lora_" in name for name in trained)
    with adapted.disable_adapter():
        torch.testing.assert_close(model.encode(batch(ROWS)).positive, before)


def test_freeze_vision_leaves_last_block_and_final_norm() -> None:
    with torch.device("meta"):
        tower = KosmosG(KosmosGConfig.paper()).mllm.vision_model
    freeze_vision(tower)
    left = {name: p.numel() for name, p in tower.named_parameters() if p.requires_grad}
    assert sum(left.values()) == 12_598_272  # reference.md section 2
    assert all("layers.23." in name or "post_layernorm" in name for name in left)


def test_saved_and_loaded_it_is_the_same(model: KosmosG, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    expected = model.encode(batch(ROWS))
    for loaded in (KosmosG.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path, device_map="cpu")):
        assert isinstance(loaded, KosmosG)
        assert not loaded.training
        assert loaded.mllm.text_model.lm_head.weight is loaded.get_input_embeddings().weight
        torch.testing.assert_close(loaded.encode(batch(ROWS)).positive, expected.positive)
        assert all(ours.equal(theirs) for ours, theirs in zip(loaded.parameters(), model.parameters(), strict=True))
    assert KosmosG.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert isinstance(AutoConfig.from_pretrained(tmp_path), KosmosGConfig)


def test_language_model_opens_alone_from_a_whole_checkpoint_and_back(model: KosmosG, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "whole")
    mllm = AutoModelForImageTextToText.from_pretrained(tmp_path / "whole")
    assert isinstance(mllm, KosmosGForConditionalGeneration)
    torch.testing.assert_close(mllm(**batch(ROWS)).logits, model.mllm(**batch(ROWS)).logits)
    mllm.save_pretrained(tmp_path / "mllm")
    whole = KosmosG.from_pretrained(tmp_path / "mllm")  # stage 1's product: the aligner starts anew
    torch.testing.assert_close(whole.mllm(**batch(ROWS)).logits, model.mllm(**batch(ROWS)).logits)


@pytest.mark.parametrize("kind", [AlignerNet, AlignerDecoder])
def test_aligner_parts_save_and_load(kind: type[Any], tmp_path: Path) -> None:
    part = kind(KosmosGConfig.tiny(vocab_size=200))
    part.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path).state_dict()
    assert all(loaded[name].equal(value) for name, value in part.state_dict().items())


def test_low_precision_stays_close(model: KosmosG) -> None:
    expected = model.encode(batch(ROWS)).positive
    low = lively(KosmosGConfig.tiny(vocab_size=200)).to(torch.bfloat16)
    found = low.encode(batch(ROWS)).positive
    assert found.dtype == torch.bfloat16
    assert float((found.float() - expected).abs().mean()) < 0.1 * float(expected.abs().mean())


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
