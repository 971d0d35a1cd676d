"""Conversations become the prompt that their parts say, as text or as a batch; mistakes become one sentence."""

import base64
import io
from typing import Any

import pytest
import torch
from PIL import Image

from kosmosg import ConfigError, KosmosG, KosmosGProcessor, Prompt, PromptError

RED, BLUE = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")


def data_url(image: Image.Image) -> str:
    held = io.BytesIO()
    image.save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


PARTS: list[dict[str, Any]] = [
    {"type": "text", "text": "a cat"},
    {"type": "image", "image": RED},
    {"type": "text", "text": "in the snow"},
    {"type": "image_url", "image_url": {"url": data_url(BLUE)}},
]
MESSAGES = [
    {"role": "user", "content": PARTS[:2]},
    {"role": "assistant", "content": "in the snow"},
    {"role": "user", "content": PARTS[3:]},
]
MEANT = Prompt.from_messages(PARTS)


@pytest.mark.parametrize("conversation", [PARTS, MESSAGES, [{"role": "user", "content": PARTS}]])
def test_a_conversation_is_its_parts_in_order(tiny_processor: KosmosGProcessor, conversation: list[Any]) -> None:
    assert tiny_processor.apply_chat_template(conversation, add_generation_prompt=True) == MEANT.text
    batch = tiny_processor.apply_chat_template(conversation, tokenize=True, return_dict=True, return_tensors="pt")
    expected = tiny_processor(MEANT)
    assert batch.keys() == expected.keys()
    assert all(batch[name].equal(value) for name, value in expected.items())
    ids = tiny_processor.apply_chat_template(conversation, tokenize=True, return_dict=False)
    assert ids.equal(expected["input_ids"])


def test_several_conversations_are_a_batch_for_generate(tiny_processor: KosmosGProcessor, tiny_model: KosmosG) -> None:
    other = [{"role": "user", "content": "a dog"}]
    assert tiny_processor.apply_chat_template([MESSAGES, other]) == [MEANT.text, "a dog"]
    batch = tiny_processor.apply_chat_template([MESSAGES, other], tokenize=True)
    assert batch["input_ids"].equal(tiny_processor([MEANT, "a dog"], padding_side="left")["input_ids"])
    assert tiny_model.mllm.generate(**batch, max_new_tokens=2).shape == (2, batch["input_ids"].shape[1] + 2)


@pytest.mark.parametrize(
    ("conversation", "said"),
    [
        ([], "an empty one"),
        ("a cat", "list of messages"),
        ({"role": "user", "content": "a cat"}, "list of messages"),
        ([3], "message 0 is a int"),
        ([{"role": "user", "content": 3}], "message 0 has content of type int"),
        ([{"role": "user", "content": [{"type": "video"}]}], "part 0 of type 'video'"),
    ],
)
def test_mistakes_are_told(tiny_processor: KosmosGProcessor, conversation: Any, said: str) -> None:
    with pytest.raises(PromptError, match=said):
        tiny_processor.apply_chat_template(conversation)
    with pytest.raises(ConfigError, match="no chat template"):
        tiny_processor.apply_chat_template(MESSAGES, "{{ messages }}")  # type: ignore[arg-type]


@pytest.mark.parametrize("asked", ["a cat", MEANT, ["a cat", "a dog"], torch.zeros(1, 3), {"pixel_values": 1}, None, 7])
def test_encode_says_what_it_takes(tiny_model: KosmosG, tiny_processor: KosmosGProcessor, asked: Any) -> None:
    with pytest.raises(PromptError, match=rf"got a {type(asked).__name__} without input_ids; .*encode\(processor\("):
        tiny_model.encode(asked)
    if asked is not None:
        with pytest.raises(PromptError, match="without input_ids"):
            tiny_model.encode(tiny_processor("a cat"), negative=asked)
