"""Text and image prompts, called and continued in every way that transformers knows, mean the same."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kosmosg import KosmosG, KosmosGConfig
from kosmosg.errors import ConfigError, PromptError

IMAGE, END = 196, 197
GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}


def lively(seed: int = 0, **text: int) -> KosmosG:
    """A model whose next tokens vary and depend on the images."""
    config = KosmosGConfig.tiny(vocab_size=200).to_dict()
    config["text_config"] |= text
    torch.manual_seed(seed)
    model = KosmosG(KosmosGConfig.from_dict(config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layers" in name and parameter.ndim == 2:
                parameter.mul_(2)
    return model


@pytest.fixture(scope="module")
def model() -> KosmosG:
    return lively()


def prompt(*words: int, images: int = 1, pads: int = 0) -> dict[str, Tensor]:
    ids = [1] * pads + [0, *words] + ([IMAGE] * 5 + [END]) * images + [7]
    slots = [False] * (pads + 1 + len(words)) + [False, True, True, True, True, False] * images + [False]
    torch.manual_seed(images + 10)
    return {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.tensor([[0] * pads + [1] * (len(ids) - pads)]),
        "image_embeds_position_mask": torch.tensor([slots]),
        "pixel_values": torch.randn(images, 3, 32, 32),
    }


PROMPTS = [prompt(5, 6), prompt(50, 51, images=2), prompt(11, 12, 13, images=3)]


def greedy(model: KosmosG, asked: dict[str, Tensor], steps: int = 8) -> Tensor:
    """The definition: append the most likely token, read everything again."""
    asked = dict(asked)
    for _ in range(steps):
        best = model.mllm(**asked).logits[:, -1].argmax(dim=-1, keepdim=True)
        for name, value in (("input_ids", best), ("attention_mask", 1), ("image_embeds_position_mask", False)):
            more = value if isinstance(value, Tensor) else torch.full_like(best, value).to(asked[name].dtype)
            asked[name] = torch.cat([asked[name], more], dim=1)
    return asked["input_ids"]


@pytest.mark.parametrize("asked", PROMPTS, ids=("one", "two", "three"))
@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"prompt_lookup_num_tokens": 2},
        {"prefill_chunk_size": 4},
        {"cache_implementation": "static"},
        {"output_attentions": True, "output_hidden_states": True, "output_scores": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_decoding_method_reads_the_images(
    model: KosmosG, asked: dict[str, Tensor], options: dict[str, Any]
) -> None:
    expected = greedy(model, asked)
    assert model.mllm.generate(**asked, **GREEDY, **options).equal(expected)
    blind = {**asked, "pixel_values": asked["pixel_values"].flip(2)}
    assert not greedy(model, blind).equal(expected)  # so that ignored images would show


@pytest.mark.parametrize("asked", PROMPTS, ids=("one", "two", "three"))
def test_an_assistant_changes_no_word(model: KosmosG, asked: dict[str, Tensor]) -> None:
    """Whether it guesses well (the model itself), sees other images (another width) or none at all."""
    expected = greedy(model, asked)
    for assistant in (model, lively(1), lively(2, embed_dim=32, layers=1)):
        found = model.mllm.generate(**asked, **GREEDY, assistant_model=assistant.mllm)
        assert found.equal(expected)


def test_prompts_come_by_any_name_and_once(model: KosmosG) -> None:
    asked = PROMPTS[0]
    ids = asked["input_ids"]
    rest = {name: value for name, value in asked.items() if name != "input_ids"}
    expected = greedy(model, asked)
    assert model.mllm.generate(inputs=ids, **rest, **GREEDY).equal(expected)
    assert model.mllm.generate(ids, **rest, **GREEDY).equal(expected)
    text = torch.tensor([[0, 5, 6]])
    assert model.mllm.generate(inputs=text, **GREEDY).equal(model.mllm.generate(input_ids=text, **GREEDY))
    with pytest.raises(PromptError, match="given twice"):
        model.mllm.generate(text, input_ids=text)


def test_embeddings_and_images_go_together(model: KosmosG) -> None:
    for asked in PROMPTS:
        rest = {name: value for name, value in asked.items() if name != "input_ids"}
        words = model.mllm.get_input_embeddings()(asked["input_ids"])
        torch.testing.assert_close(model.mllm(inputs_embeds=words, **rest).logits, model.mllm(**asked).logits)
        expected = greedy(model, asked)
        found = model.mllm.generate(inputs_embeds=words, **rest, **GREEDY)
        assert found.equal(expected[:, -8:])
        for options in ({}, {"use_cache": False}):
            assert model.mllm.generate(**asked, inputs_embeds=words, **GREEDY, **options).equal(expected)
        with pytest.raises(PromptError, match="image slots and the batch has 0 images"):
            model.mllm(inputs_embeds=words, image_embeds_position_mask=asked["image_embeds_position_mask"])


@pytest.mark.parametrize("cached", [False, True])
def test_a_continuation_can_be_continued(model: KosmosG, cached: bool) -> None:
    """The mask of the prompts is enough, and images that the cache holds are not read again."""
    for asked in PROMPTS:
        expected = greedy(model, asked)
        first = model.mllm.generate(
            **asked, **GREEDY | {"max_new_tokens": 3}, return_dict_in_generate=True, use_cache=True
        )
        again = {**asked, "input_ids": first.sequences}
        again["attention_mask"] = torch.ones_like(first.sequences)
        if cached:
            again["past_key_values"] = first.past_key_values
        assert model.mllm.generate(**again, **GREEDY | {"max_new_tokens": 5}).equal(expected)
    longer = {**PROMPTS[0], "input_ids": PROMPTS[0]["input_ids"][:, :4], "attention_mask": torch.ones(1, 4)}
    with pytest.raises(PromptError, match="image_embeds_position_mask is 10 tokens long, the prompts are 4"):
        model.mllm.generate(**longer)


def test_a_mask_of_another_shape_is_refused(model: KosmosG) -> None:
    asked = {**PROMPTS[0], "image_embeds_position_mask": PROMPTS[0]["image_embeds_position_mask"][:, :-2]}
    for call in (model, model.mllm, model.encode):
        with pytest.raises(PromptError, match=r"image_embeds_position_mask has shape \(1, 8\).*\(1, 10\)"):
            call(asked) if call == model.encode else call(**asked)


def test_positions_count_with_and_without_a_cache(model: KosmosG) -> None:
    ids = torch.tensor([[0, 5, 6, 7], [0, 8, 9, 10]])
    usual = torch.arange(4).expand(2, -1)
    plain = model.mllm(ids).logits
    torch.testing.assert_close(model.mllm(ids, position_ids=usual[:1]).logits, plain)
    for positions in (usual + 3, usual.flip(1), usual * torch.tensor([[1], [2]])):
        found = model.mllm(ids, position_ids=positions).logits
        assert not torch.allclose(found, plain, atol=1e-3)
        cached = model.mllm(ids, position_ids=positions, use_cache=True).logits
        torch.testing.assert_close(found, cached, atol=1e-5, rtol=1e-5)
    padded = {"input_ids": torch.tensor([[1, 1, 0, 5, 6, 7]]), "position_ids": torch.tensor([[0, 0, 3, 4, 5, 6]])}
    torch.testing.assert_close(
        model.mllm(**padded).logits[:, 2:], model.mllm(ids[:1], position_ids=usual[:1] + 3).logits, atol=1e-5, rtol=1e-5
    )
    with pytest.raises(PromptError, match=r"position_ids go up to 510, the model numbers tokens from 0 to 509"):
        model.mllm(ids, position_ids=usual + 507)


@pytest.mark.parametrize("pads", [0, 3])
@pytest.mark.parametrize("whole", [True, False], ids=["KosmosG", "mllm"])
def test_attentions_and_hidden_states(model: KosmosG, pads: int, whole: bool) -> None:
    """By argument or by configuration, with pads on either side, from whichever kernel is in use."""
    called: Any = model if whole else model.mllm
    asked = prompt(5, 6, pads=pads)
    out = called(**asked, output_attentions=True, output_hidden_states=True)
    real = asked["attention_mask"][0].bool()
    tokens, layers = asked["input_ids"].shape[1], model.config.text_config.layers
    assert [tuple(each.shape) for each in out.attentions] == [(1, 4, tokens, tokens)] * layers
    assert [tuple(each.shape) for each in out.hidden_states] == [(1, tokens, 64)] * (layers + 1)
    torch.testing.assert_close(out.logits[:, real], called(**asked).logits[:, real], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.hidden_states[-1], out.last_hidden_state)
    for each in out.attentions:
        weights = each[0][:, real][:, :, real]
        torch.testing.assert_close(weights.sum(-1), torch.ones(4, int(real.sum())))
        assert not weights.triu(1).any()
    alone = called(**prompt(5, 6), output_attentions=True)
    torch.testing.assert_close(out.attentions[0][0][:, real][:, :, real], alone.attentions[0][0], atol=1e-5, rtol=1e-5)
    assert called(**asked).attentions is None
    config = model.config
    try:
        config.output_hidden_states = True
        assert called(**asked).hidden_states is not None
        config._attn_implementation = "eager"
        config.output_attentions = True
        assert called(**asked).attentions is not None
        config.return_dict = False
        assert isinstance(called(**asked), tuple)
    finally:
        config.output_hidden_states = config.output_attentions = False
        config.return_dict = True
        model.set_attn_implementation("sdpa")


def test_kernels_are_chosen_by_part() -> None:
    model = lively()
    expected = model.encode(PROMPTS[0]).positive
    parts = ("text_config", "vision_config", "aligner_config")
    for part in parts:
        model.set_attn_implementation({part: "eager"})
        used = {name: getattr(model.config, name)._attn_implementation for name in parts}
        assert used == {name: "eager" if name == part else "sdpa" for name in parts}
        torch.testing.assert_close(model.encode(PROMPTS[0]).positive, expected, atol=1e-5, rtol=1e-5)
        model.set_attn_implementation("sdpa")
        assert {getattr(model.config, name)._attn_implementation for name in parts} == {"sdpa"}
    with pytest.raises(ConfigError, match=r"the parts audio_config; this model has text_config, vision_config"):
        model.set_attn_implementation({"audio_config": "eager"})
    with pytest.raises(ValueError, match="no_such_kernel"):
        model.set_attn_implementation({"text_config": "no_such_kernel"})
