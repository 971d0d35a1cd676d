"""`PromptEncoder`: encodes prompts as conditions, with a cache.

The condition of a prompt depends only on its content and the weights, so it is cached under a content hash. The null
prompt and negative prompts are treated like any other: a second image for the same prompt needs no encoding. The tokens
of an image do not depend on the text around it, so they are cached too: a known image in a new prompt costs only the
language model (the vision tower is half of the work for a prompt with two images).
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from kosmosg.errors import PromptError
from kosmosg.model.inference import evaluating, execution_device, precision_context, summoned, weights_version
from kosmosg.model.kosmosg import Condition, KosmosG, check_finite
from kosmosg.processor import KosmosGProcessor
from kosmosg.prompt import Prompt

NULL = Prompt("")
"""`<s>` alone, which condition dropout trains and guidance therefore uses."""


class PromptEncoder:
    """Encodes prompts; conditions are cached for as long as the weights do not change.

    Args:
        model, processor: a matching pair; the model is used in eval mode and left in its previous mode.
        capacity: conditions to cache, and as many images; the least recently used are evicted first. At full size in
            float32 a condition takes 0.24 MB, an image 0.5 MB.
        batch_size: maximum number of prompts per forward pass.

    Thread-safe, also while the model is training; two threads that request the same new prompt at once may both compute
    it.
    """

    def __init__(self, model: KosmosG, processor: KosmosGProcessor, capacity: int = 256, batch_size: int = 16) -> None:
        self.model = model
        self.processor = processor
        self.batch_size = batch_size
        self.conditions = Memory(capacity)
        self.images = Memory(capacity)
        self._version: int | None = None

    def __call__(
        self,
        prompts: Sequence[Prompt | str],
        negatives: Sequence[Prompt | str] | None = None,
        device: torch.device | str | None = None,
    ) -> Condition:
        """Positive and negative conditions, each (B, Q, D), on `device` (default: the model's).

        `negatives` has one prompt for all, or one for each; the default is the null prompt.

        Raises:
            PromptError: the counts do not match, or a prompt is invalid.
            CheckpointError: the model produces values that are not finite.
        """
        asked = [_prompt(item) for item in prompts]
        against = [NULL] if negatives is None else [_prompt(item) for item in negatives]
        if len(against) not in (1, len(asked)):
            raise PromptError(
                f"{len(against)} negative prompts for {len(asked)} prompts; give one for all or one for each"
            )
        against = against * len(asked) if len(against) == 1 else against
        rows = self._rows([*asked, *against], torch.device(device or execution_device(self.model)))
        return Condition(torch.stack(rows[: len(asked)]), torch.stack(rows[len(asked) :]))

    def __contains__(self, prompt: Prompt) -> bool:
        """Whether the condition of a prompt is cached."""
        return (*self._state(execution_device(self.model)), prompt.sha256()) in self.conditions

    def clear(self) -> None:
        """Empties the cache; needed only after a change of the model that `weights_version` cannot detect."""
        self.conditions.clear()
        self.images.clear()

    def _rows(self, prompts: list[Prompt], device: torch.device) -> list[Tensor]:
        """One (Q, D) for each prompt, from the cache or from the model."""
        state = self._state(device)
        by_key: dict[Hashable, Prompt] = {(*state, prompt.sha256()): prompt for prompt in prompts}
        rows = self.conditions.find(by_key)
        missing = {key: prompt for key, prompt in by_key.items() if key not in rows}
        for group in self._groups(missing):
            conditions = self._encode([missing[key] for key in group], device, state)
            rows |= self.conditions.keep(dict(zip(group, conditions, strict=True)))
        return [rows[(*state, prompt.sha256())].to(device) for prompt in prompts]

    def _state(self, device: torch.device) -> tuple[Hashable, ...]:
        """What a condition depends on besides its prompt; part of every key, so that threads do not mix them up."""
        version = weights_version(self.model)
        if version != self._version:  # entries for other weights only waste memory
            self.clear()
            self._version = version
        return version, precision_context(device)

    def _groups(self, prompts: Mapping[Hashable, Prompt]) -> list[list[Hashable]]:
        """Keys in batches with equal numbers of images, which determine the length, so that little is padded."""
        by_images: dict[int, list[Hashable]] = {}
        for key, prompt in prompts.items():
            by_images.setdefault(-1 if prompt == NULL else len(prompt.images), []).append(key)
        return [
            keys[start : start + self.batch_size]
            for keys in by_images.values()
            for start in range(0, len(keys), self.batch_size)
        ]

    # Cached tensors are normal ones even in inference mode, because a later backward pass may need them.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _encode(self, prompts: Sequence[Prompt], device: torch.device, state: tuple[Hashable, ...]) -> list[Tensor]:
        with evaluating(self.model), summoned(self.model):
            batch = self.processor(prompts, with_pixels=False).to(device)
            conditions = self.model.conditioning(**batch, image_tokens=self._image_tokens(prompts, device, state))
        check_finite(conditions)
        return [row.clone() for row in conditions]  # a view would keep the whole batch alive

    def _image_tokens(
        self, prompts: Sequence[Prompt], device: torch.device, state: tuple[Hashable, ...]
    ) -> Tensor | None:
        """(N, Q, C) of all images in reading order; only new ones go through the vision tower."""
        keys = [(*state, digest) for prompt in prompts for digest in prompt.image_sha256s()]
        if not keys:
            return None
        images = dict(zip(keys, (image for prompt in prompts for image in prompt.images), strict=True))
        tokens = self.images.find(images)
        missing = [key for key in images if key not in tokens]
        for start in range(0, len(missing), self.batch_size):
            group = missing[start : start + self.batch_size]
            pixels = torch.stack([self.processor.pixels(images[key]) for key in group]).to(device)
            rows = [row.clone() for row in self.model.mllm.image_tokens(pixels)]
            tokens |= self.images.keep(dict(zip(group, rows, strict=True)))
        return torch.stack([tokens[key].to(device) for key in keys])

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles start with an empty cache (a lock cannot be copied)."""
        return type(self), (self.model, self.processor, self.conditions.capacity, self.batch_size)


class Memory:
    """An LRU cache of `capacity` tensors by key; `hits` and `misses` count the lookups."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.hits = 0
        self.misses = 0
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._lock = Lock()

    def find(self, keys: Iterable[Hashable]) -> dict[Hashable, Tensor]:
        """The cached tensors among the keys."""
        with self._lock:
            found = {}
            for key in keys:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    found[key] = self._kept[key]
                    self.hits += 1
                else:
                    self.misses += 1
            return found

    def __contains__(self, key: Hashable) -> bool:
        with self._lock:
            return key in self._kept

    def keep(self, fresh: dict[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Caches and returns new tensors."""
        with self._lock:
            self._kept |= fresh
            while len(self._kept) > self.capacity:
                self._kept.popitem(last=False)
        return fresh

    def clear(self) -> None:
        """Empties the cache; the counts stay."""
        with self._lock:
            self._kept.clear()


def _prompt(item: Prompt | str) -> Prompt:
    if isinstance(item, Prompt):
        return item
    if isinstance(item, str):
        return Prompt(item)
    raise PromptError(f"a prompt is a Prompt or a str, got {type(item).__name__}; use Prompt(text, images=[...])")
