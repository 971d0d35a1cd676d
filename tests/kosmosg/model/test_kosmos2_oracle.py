"""The language model against transformers' Kosmos-2 with the same random weights, in the ways that people call it."""

import pytest
import torch
from torch import Tensor
from transformers import Kosmos2Config, Kosmos2ForConditionalGeneration

from kosmosg import KosmosGConfig
from kosmosg.convert import from_kosmos2
from kosmosg.model.mllm import KosmosGForConditionalGeneration

Pair = tuple[KosmosGForConditionalGeneration, Kosmos2ForConditionalGeneration]
SLOT, END = 108, 109


@pytest.fixture(scope="module", params=[(48, 3, 6, 4), (40, 1, 5, 7)], ids=["wide", "odd"])
def pair(request: pytest.FixtureRequest) -> Pair:
    width, layers, heads, queries = request.param
    text = {"vocab_size": 112, "embed_dim": width, "layers": layers, "attention_heads": heads, "ffn_dim": 2 * width}
    vision = {"image_size": 24, "patch_size": 8, "hidden_size": 20, "intermediate_size": 44}
    vision |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = Kosmos2Config(text_config=text, vision_config=vision, latent_query_num=queries)
    theirs = Kosmos2ForConditionalGeneration(config).eval()
    with torch.no_grad():  # beyond their N(0, 0.02), where every continuation is the same
        for name, parameter in theirs.named_parameters():
            if "layers" in name and parameter.ndim == 2:
                parameter.mul_(5)
        theirs.text_model.model.embed_tokens.weight[2:].normal_(std=0.5)
    ours = KosmosGConfig(
        text_config=text,
        vision_config=vision,
        latent_query_num=queries,
        aligner_config=KosmosGConfig.tiny().aligner_config.to_dict(),
    )
    return from_kosmos2(theirs.state_dict(), ours).mllm, theirs


def prompts(queries: int, left: bool, images: tuple[int, ...] = (2, 1)) -> dict[str, Tensor]:
    """Rows with several images each, of different lengths; pads in front or behind."""
    generator = torch.Generator().manual_seed(1)
    rows, slots = [], []
    for row, count in enumerate(images):
        words = torch.randint(4, 100, (5 + row,), generator=generator).tolist()
        ids, mask = [0, *words[:2]], [0, 0, 0]
        for _ in range(count):
            ids += [SLOT] * (queries + 1) + [END]
            mask += [0] + [1] * queries + [0]
        rows.append(ids + words[2:])
        slots.append(mask + [0] * len(words[2:]))
    longest = max(map(len, rows))

    def pad(values: list[list[int]], fill: int) -> Tensor:
        fills = [[fill] * (longest - len(row)) for row in values]
        return torch.tensor([f + row if left else row + f for f, row in zip(fills, values, strict=True)])

    return {
        "input_ids": pad(rows, 1),
        "attention_mask": pad([[1] * len(row) for row in rows], 0),
        "image_embeds_position_mask": pad(slots, 0),
        "pixel_values": torch.randn(sum(images), 3, 24, 24, generator=generator),
    }


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_several_images_in_padded_rows(pair: Pair, left: bool) -> None:
    ours, theirs = pair
    batch = prompts(ours.config.latent_query_num, left)
    real = batch["attention_mask"].bool()
    # Its public forward wants one image a prompt; its parts take as many as there are slots.
    features = theirs.vision_model(batch["pixel_values"]).last_hidden_state
    features = torch.nn.functional.normalize(theirs.vision_model.model.post_layernorm(features), dim=-1)
    tokens, _ = theirs.image_to_text_projection(features)
    expected = theirs.text_model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        image_embeds=tokens.reshape(-1, tokens.shape[-1]),
        image_embeds_position_mask=batch["image_embeds_position_mask"],
    ).logits
    found = ours(**batch).logits
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_continuations_are_the_same(pair: Pair, beams: int) -> None:
    ours, theirs = pair
    options = {"max_new_tokens": 8, "do_sample": False, "num_beams": beams, "eos_token_id": None}
    batch = prompts(ours.config.latent_query_num, left=True, images=(1, 1))
    found = ours.generate(**batch, **options)[:, -8:]
    for row, real in enumerate(batch["attention_mask"].bool()):
        # One by one: in a padded batch its continuation counts the pads as positions, ours does not.
        alone = {name: batch[name][row : row + 1, real] for name in batch if name != "pixel_values"}
        alone["pixel_values"] = batch["pixel_values"][row : row + 1]
        assert found[row].equal(theirs.generate(**alone, **options)[0, -8:])
    assert len(found.unique()) > 1
