"""Kosmos-2 of transformers: every name is accounted for, and it computes what it computed there."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import Kosmos2Config, Kosmos2ForConditionalGeneration

from kosmosg import KosmosG, KosmosGConfig, KosmosGProcessor, Prompt
from kosmosg.checkpoint.export import load_export, save_export
from kosmosg.convert import from_kosmos2, grow_vocabulary, plan_kosmos2
from kosmosg.errors import CheckpointError

GOLDEN = Path(__file__).resolve().parents[2] / "golden"

SMALL = KosmosGConfig(
    text_config={"vocab_size": 64, "embed_dim": 32, "attention_heads": 4, "layers": 2, "ffn_dim": 64},
    vision_config={
        "image_size": 28,
        "patch_size": 14,
        "hidden_size": 16,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    latent_query_num=4,
    aligner_config={
        "d_model": 24,
        "layers": 2,
        "attention_heads": 4,
        "ffn_dim": 40,
        "num_queries": 7,
        "max_position_embeddings": 30,
    },
)


def kosmos2(vocab_size: int = 90) -> Kosmos2ForConditionalGeneration:
    torch.manual_seed(0)
    text = {name: getattr(SMALL.text_config, name) for name in ("embed_dim", "attention_heads", "layers", "ffn_dim")}
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    vision = {name: getattr(SMALL.vision_config, name) for name in names}
    config = Kosmos2Config(
        text_config={**text, "vocab_size": vocab_size}, vision_config=vision, latent_query_num=SMALL.latent_query_num
    )
    return Kosmos2ForConditionalGeneration(config).eval()


def read_alone(theirs: Kosmos2ForConditionalGeneration, vocab_size: int) -> dict[str, Any]:
    """What our text configuration should be when only their folder tells the sizes."""
    names = ("embed_dim", "attention_heads", "layers", "ffn_dim", "max_position_embeddings")
    sizes = {name: getattr(theirs.config.text_config, name) for name in names}
    return KosmosGConfig(text_config={**sizes, "vocab_size": vocab_size}).text_config.to_dict()


def test_kosmos2_gives_the_same_logits_and_can_grow_back(tmp_path: Path) -> None:
    theirs = kosmos2()
    theirs.save_pretrained(tmp_path)
    model = from_kosmos2(tmp_path, SMALL)
    assert plan_kosmos2(tmp_path, SMALL).fresh[0].startswith("aligner.")
    assert plan_kosmos2(tmp_path).config.text_config.to_dict() == read_alone(theirs, vocab_size=90)
    ids = torch.tensor([[0, 60, 60, 60, 60, 60, 61, 7, 8, 9]])
    mask = (ids == 60) & (torch.arange(10) > 1)
    pixels = torch.randn(1, 3, 28, 28)
    expected = theirs(pixel_values=pixels, input_ids=ids, image_embeds_position_mask=mask.long()).logits
    found = model.mllm(ids, None, mask, pixels).logits
    torch.testing.assert_close(found, expected[..., :64], atol=1e-5, rtol=1e-5)
    grow_vocabulary(model, tmp_path)
    assert model.config.text_config.vocab_size == 90
    torch.testing.assert_close(model.mllm(ids, None, mask, pixels).logits, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(CheckpointError, match="as wide and longer"):
        grow_vocabulary(model, tmp_path)
    with pytest.raises(CheckpointError, match=r"no Kosmos-2 checkpoint.*from_reference"):
        from_kosmos2({"gpt_model.decoder.embed_tokens.weight": torch.zeros(64, 32)}, SMALL)


def test_a_grown_model_keeps_its_prompts_with_a_processor_that_knows(tmp_path: Path, tiny_sentencepiece: Path) -> None:
    sizes = {"image_size": 28, "num_image_tokens": 4, "max_length": 28}
    processor = KosmosGProcessor.from_sentencepiece(tiny_sentencepiece, **sizes)
    known = processor.vocab_size
    kosmos2(vocab_size=known + 30).save_pretrained(tmp_path / "theirs")
    config = KosmosGConfig.from_dict(SMALL.to_dict())
    config.text_config.vocab_size = known
    model = from_kosmos2(tmp_path / "theirs", config)
    prompt = Prompt("<i> in the snow", [Image.new("RGB", (28, 28), "red")])
    before = model.encode(processor(prompt))
    grow_vocabulary(model, tmp_path / "theirs")
    with pytest.raises(CheckpointError, match=f"vocabulary size {known}, the model {known + 30}"):
        save_export(model, processor, tmp_path / "grown")
    grown = KosmosGProcessor.from_sentencepiece(tiny_sentencepiece, **sizes, extra_tokens=30)
    save_export(model, grown, tmp_path / "grown")
    loaded, its_processor = load_export(tmp_path / "grown")
    torch.testing.assert_close(loaded.encode(its_processor(prompt)).positive, before.positive)


def test_another_models_folder_is_not_opened_half(tmp_path: Path) -> None:
    """transformers would warn, place what it can, and start the rest anew: a Kosmos-2 with a random aligner."""
    kosmos2().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"type 'kosmos-2', not 'kosmosg'.*kosmosg import"):
        KosmosG.from_pretrained(tmp_path)


def test_kosmos2_full_size_every_name_lands() -> None:
    lines = (GOLDEN / "kosmos2_full_state_dict_names.txt").read_text().split("\n")
    pairs = [line.split("\t") for line in lines if line]
    full = {name: torch.empty(eval_shape(shape), device="meta") for name, shape in pairs}
    plan = plan_kosmos2(full)
    assert sorted([*plan.model.values(), *plan.ignored]) == sorted(full)
    assert sum(p.numel() for p in plan.build().mllm.parameters()) == 1_662_375_936


def eval_shape(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.strip("()").split(",") if part.strip())
