"""The encoder deployment: encodes prompts as conditions, in batches and with a cache."""

import asyncio
from pathlib import Path

import torch
from ray import serve

from kosmosg.checkpoint.export import load_export
from kosmosg.errors import PromptError
from kosmosg.model import Condition
from kosmosg.prompt import Prompt
from kosmosg.prompt_encoder import PromptEncoder
from serving.engine.messages import EncodedPrompt

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def device() -> torch.device:
    """The GPU that Ray assigned to this replica, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class BatchedPromptEncoder:
    """Holds the model and a cache of conditions.

    Args:
        folder: export folder.
        precision: a key of DTYPES.
        max_batch_size, wait_ms: maximum number of prompts encoded together, and how long one waits for others.
        cache: number of conditions to cache.
        threads: CPU threads of one batch.
    """

    def __init__(
        self, folder: Path, precision: str, max_batch_size: int, wait_ms: float, cache: int, threads: int
    ) -> None:
        torch.set_num_threads(threads)
        model, processor = load_export(folder)
        model.to(device(), DTYPES[precision])
        # Room for at least one batch whatever the setting, because conditions pass through the cache.
        capacity = max(cache, 2 * max_batch_size)
        self._encoder = PromptEncoder(model, processor, capacity=capacity, batch_size=max_batch_size)
        self._limit = min(processor.max_length, model.config.aligner_config.max_position_embeddings)
        self._encode.set_max_batch_size(max_batch_size)
        self._encode.set_batch_wait_timeout_s(wait_ms / 1000)
        self._shape = self._encoder([""]).positive.shape[1:]  # the null prompt, which almost every request needs

    def about(self) -> tuple[int, int]:
        """Queries and width of a condition."""
        queries, width = self._shape
        return int(queries), int(width)

    async def encode(self, prompt: Prompt, negative: str | None) -> EncodedPrompt:
        """Encode one prompt. Raises PromptError if it is too long for the model."""
        against = Prompt(negative or "")
        # Checked before it joins a batch, where its error would fail the others as well.
        tokens = self._tokens(prompt, "the prompt")
        self._tokens(against, "the negative prompt")
        cached = prompt in self._encoder and against in self._encoder
        condition: Condition = await self._encode((prompt, against))
        return EncodedPrompt(condition.positive[0].numpy(), condition.negative[0].numpy(), tokens, cached)

    @serve.batch  # type: ignore[untyped-decorator]
    async def _encode(self, pairs: list[tuple[Prompt, Prompt]]) -> list[Condition]:
        prompts, negatives = zip(*pairs, strict=True)
        # In a thread, so that the replica can collect the next batch in the meantime.
        both = await asyncio.to_thread(self._encoder, prompts, negatives)
        both = both.to("cpu", torch.float32)
        return [Condition(both.positive[i : i + 1], both.negative[i : i + 1]) for i in range(len(pairs))]

    def _tokens(self, prompt: Prompt, which: str) -> int:
        tokens = len(self._encoder.processor.sequence(prompt.parts)[0])
        if tokens > self._limit:
            raise PromptError(
                f"{which} takes {tokens} tokens, the model holds {self._limit}; leave out images or shorten the text"
            )
        return tokens
