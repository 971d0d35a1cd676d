"""The model under transformers' tools: gradients, checkpointing, compilation, LoRA, freezing, saving, precision."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from kosmosg import KosmosG, KosmosGConfig
from kosmosg.conditioners.alignernet import AlignerDecoder, AlignerNet
from kosmosg.model.mllm import KosmosGForConditionalGeneration
from kosmosg.model.vision import freeze_vision
from tests.kosmosg.model.prompt_batches import ROWS, batch, lively


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
