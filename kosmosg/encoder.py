"""`PromptEncoder`: prompts to conditions, where nothing is computed twice.

The condition of a prompt depends on its content and the weights alone, so it is kept by content hash. The null prompt
of guidance and negative prompts are prompts like any other: a second picture of the same prompt costs no encoding.
"""

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from kosmosg.errors import CheckpointError, PromptError
from kosmosg.model import Condition, KosmosG
from kosmosg.processor import KosmosGProcessor
from kosmosg.prompt import Prompt

NULL = Prompt("")
"""`<s>` alone: what condition dropout trained, hence what guidance subtracts."""


class PromptEncoder:
    """Conditions of prompts, kept for as long as the weights stay as they are.

    Args:
        model, processor: a matching pair; the model is used in eval mode and left in the mode it was in.
        capacity: conditions kept, least recently used leave first (77 x 768 float32: 0.24 MB each).
        batch_size: prompts that the model reads at once, at most.

    Safe to call from several threads; two that ask for the same new prompt at once may both compute it.
    """

    def __init__(self, model: KosmosG, processor: KosmosGProcessor, capacity: int = 256, batch_size: int = 16) -> None:
        self.model = model
        self.processor = processor
        self.capacity = capacity
        self.batch_size = batch_size
        self.hits = 0
        self.misses = 0
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._weights: tuple[Any, ...] | None = None
        self._lock = Lock()

    def __call__(
        self,
        prompts: Sequence[Prompt | str],
        negatives: Sequence[Prompt | str] | None = None,
        device: torch.device | str | None = None,
    ) -> Condition:
        """Positive and negative conditions, each (B, Q, D), on `device` (default: the model's).

        `negatives` holds one prompt for all, or one for each; without it the null prompt is the negative.

        Raises:
            PromptError: the counts disagree, or a prompt cannot be read.
            CheckpointError: the model gives values that are not finite.
        """
        asked = [_prompt(item) for item in prompts]
        against = [NULL] if negatives is None else [_prompt(item) for item in negatives]
        if len(against) not in (1, len(asked)):
            raise PromptError(
                f"{len(against)} negative prompts for {len(asked)} prompts; give one for all or one for each"
            )
        against = against * len(asked) if len(against) == 1 else against
        rows = self._rows([*asked, *against], torch.device(device or self.model.device))
        return Condition(torch.stack(rows[: len(asked)]), torch.stack(rows[len(asked) :]))

    def __contains__(self, prompt: Prompt) -> bool:
        """Whether the condition of a prompt is kept, so that asking for it costs nothing."""
        with self._lock:
            return prompt.sha256() in self._kept

    def clear(self) -> None:
        """Forgets everything; needed only after a change of the model that no parameter shows."""
        with self._lock:
            self._kept.clear()

    def _rows(self, prompts: list[Prompt], device: torch.device) -> list[Tensor]:
        """One (Q, D) for each prompt, from memory or from the model."""
        keys = [prompt.sha256() for prompt in prompts]
        weights = self._weights_version()
        with self._lock:
            if weights != self._weights:
                self._kept.clear()
                self._weights = weights
            found = {key: self._kept[key] for key in keys if key in self._kept}
            for key in found:
                self._kept.move_to_end(key)
            missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in found}
            self.hits += len(keys) - len(missing)
            self.misses += len(missing)
        if missing:
            fresh: dict[str, Tensor] = {}
            for group in self._groups(missing):
                rows = self._encode([missing[key] for key in group], device)
                fresh |= zip(group, rows, strict=True)
            found |= fresh
            with self._lock:
                self._kept |= fresh
                while len(self._kept) > self.capacity:
                    self._kept.popitem(last=False)
        return [found[key].to(device) for key in keys]

    def _groups(self, prompts: dict[str, Prompt]) -> list[list[str]]:
        """Keys in batches of equal numbers of images: those decide the length, so little is padded (`<s>`, never)."""
        by_images: dict[int, list[str]] = {}
        for key, prompt in prompts.items():
            by_images.setdefault(-1 if prompt == NULL else len(prompt.images), []).append(key)
        return [
            keys[start : start + self.batch_size]
            for keys in by_images.values()
            for start in range(0, len(keys), self.batch_size)
        ]

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles begin empty (a lock cannot be copied)."""
        return type(self), (self.model, self.processor, self.capacity, self.batch_size)

    @torch.no_grad()
    def _encode(self, prompts: list[Prompt], device: torch.device) -> list[Tensor]:
        batch = self.processor(prompts).to(device)
        # accelerate's offloading moves a model when its forward runs; conditions are made without forward (no logits).
        hook = getattr(self.model, "_hf_hook", None)
        if hook is not None:
            hook.pre_forward(self.model)
        training = self.model.training
        if training:
            self.model.eval()
        try:
            conditions = self.model.conditioning(**batch)
        finally:
            if training:
                self.model.train()
        if not bool(torch.isfinite(conditions).all()):
            raise CheckpointError(
                f"the model's condition is not finite in {self.model.dtype}: its weights hold NaN or infinity, or the "
                "precision is too small; load the checkpoint again, in float32 or bfloat16"
            )
        return [row.clone() for row in conditions]  # a view would keep the whole batch alive

    def _weights_version(self) -> tuple[Any, ...]:
        """Differs after every change in place: optimizer steps, loading, merging, casting."""
        parameters = list(self.model.parameters())
        return sum(parameter._version for parameter in parameters), len(parameters), parameters[0].dtype


def _prompt(item: Prompt | str) -> Prompt:
    if isinstance(item, Prompt):
        return item
    if isinstance(item, str):
        return Prompt(item)
    raise PromptError(f"a prompt is a Prompt or a str, got {type(item).__name__}; use Prompt(text, images=[...])")
