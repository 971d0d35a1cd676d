"""Turns conversations, in the format of transformers' chat templates, into prompts.

Kosmos-G has no roles and no turns: a conversation becomes one prompt, the parts of its messages in order.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kosmosg.errors import PromptError
from kosmosg.prompt import Prompt

Part = Mapping[str, Any]


def conversation_prompts(conversation: Sequence[Any]) -> tuple[list[Prompt], bool]:
    """One prompt for each conversation, and whether several were given.

    A conversation is a list of messages (`{"role": ..., "content": text or parts}`), or one message's content parts as
    `Prompt.from_messages` takes them. Raises `PromptError` for anything else.
    """
    if isinstance(conversation, str | bytes | Mapping) or not isinstance(conversation, Sequence) or not conversation:
        raise PromptError(
            "a conversation is a list of messages, such as [{'role': 'user', 'content': 'a cat'}], got "
            + ("an empty one" if isinstance(conversation, Sequence) and not conversation else repr(conversation)[:60])
        )
    several = all(isinstance(each, Sequence) and not isinstance(each, str | bytes) for each in conversation)
    each_alone = conversation if several else [conversation]
    return [Prompt.from_messages(_parts(alone)) for alone in each_alone], several


def _parts(messages: Sequence[Any]) -> list[Part]:
    parts: list[Part] = []
    for position, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise PromptError(f"message {position} is a {type(message).__name__}; pass {{'role': ..., 'content': ...}}")
        if "content" not in message:
            parts.append(message)  # a content part on its own
        elif isinstance(message["content"], str):
            parts.append({"type": "text", "text": message["content"]})
        elif isinstance(message["content"], Sequence):
            parts += message["content"]
        else:
            raise PromptError(
                f"message {position} has content of type {type(message['content']).__name__}; use text or parts"
            )
    return parts
