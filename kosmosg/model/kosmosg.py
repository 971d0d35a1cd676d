"""Kosmos-G: a multimodal language model, and an aligner that maps its states to Stable Diffusion's condition.

    condition = aligner(mllm(text and images))          # (B, 77, 768)

Letters: B batch, T tokens, C language model width, Q queries (77), D condition width (768), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText
from transformers.utils import ModelOutput

from kosmosg.conditioners.base import make_conditioner
from kosmosg.config import KosmosGConfig
from kosmosg.errors import CheckpointError, PromptError
from kosmosg.layers.magneto import KosmosGPreTrainedModel
from kosmosg.model.inference import evaluating, execution_device, summoned
from kosmosg.model.mllm import KosmosGForConditionalGeneration, Records
from kosmosg.model.padding import move, move_back, readable, token_slots


@dataclass(frozen=True)
class Condition:
    """`prompt_embeds` and `negative_prompt_embeds` for a Stable Diffusion 1.5 U-Net, each (B, Q, D)."""

    positive: Tensor
    negative: Tensor

    def __len__(self) -> int:
        return len(self.positive)

    def to(self, *args: Any, **kwargs: Any) -> Condition:
        """Both on another device or in another precision, as `Tensor.to`."""
        return Condition(self.positive.to(*args, **kwargs), self.negative.to(*args, **kwargs))


@dataclass
class KosmosGOutput(ModelOutput):
    """`logits` (B, T, V); `last_hidden_state` (B, T, C) after the final LayerNorm; `condition` (B, Q, D).

    `hidden_states` and `attentions` are those of the language model, if requested.
    """

    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    condition: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class KosmosG(KosmosGPreTrainedModel):
    """The whole model: `mllm` (vision tower, resampler, language model) and `aligner` (M).

    Use `encode` to get conditions; call the model for everything else; train through the stages.

    >>> model = KosmosG(KosmosGConfig.tiny())
    >>> model.encode({"input_ids": torch.tensor([[0, 17, 23]])}).positive.shape
    torch.Size([1, 77, 32])
    """

    def __init__(self, config: KosmosGConfig) -> None:
        super().__init__(config)
        self.mllm = KosmosGForConditionalGeneration(config)
        self.aligner = make_conditioner(config)
        self.post_init()

    @torch.no_grad()
    def encode(self, batch: Mapping[str, Tensor], negative: Mapping[str, Tensor] | None = None) -> Condition:
        """The condition of a processed batch, without gradient, dropout or logits.

        `batch` is what the processor returns: `input_ids`, and optionally `attention_mask`,
        `image_embeds_position_mask` and `pixel_values` (or `image_tokens`, see `conditioning`). `negative` is another
        such batch, of B prompts or of one for all. By default the negative is the null condition, `<s>` alone, which
        replaces dropped prompts in training. Nothing is cached between calls; `PromptEncoder` does that.

        Raises `PromptError` if images and places, or positive and negative prompts, do not match, and
        `CheckpointError` if the condition is not finite.
        """
        with evaluating(self), summoned(self):
            positive = self.conditioning(**self._inputs(batch))
            other = self.null_condition() if negative is None else self.conditioning(**self._inputs(negative))
        if len(other) not in (1, len(positive)):
            raise PromptError(
                f"{len(other)} negative prompts for {len(positive)} prompts; give one for all or one for each"
            )
        check_finite(positive)
        check_finite(other)
        if len(other) != len(positive):
            other = other.repeat(len(positive), 1, 1)  # separate rows, so that writing to one changes no other
        return Condition(positive, other)

    def conditioning(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        image_embeds_position_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_tokens: Tensor | None = None,
    ) -> Tensor:
        """(B, Q, D), with gradient: the language model's states, mapped by the aligner. Pads may be on either side.

        `image_tokens` (N, Q, C), earlier results of `mllm.image_tokens` for these images, skip the vision tower.
        """
        _, condition, _ = self._run(input_ids, attention_mask, image_embeds_position_mask, pixel_values, image_tokens)
        return condition

    def null_condition(self) -> Tensor:
        """(1, Q, D): the condition of `<s>` alone, through language model and aligner.

        Not that of the empty caption: the original trained guidance with `<s>`, so guidance must use it too.
        """
        ids = torch.full((1, 1), self.config.text_config.bos_token_id, device=execution_device(self))
        return self.conditioning(ids)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        image_embeds_position_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> KosmosGOutput:
        """Logits, states and condition of a batch; pads may be on either side and do not affect real tokens.

        The options are those of `KosmosGForConditionalGeneration`. There is no loss: the stages have their own.
        """
        records = Records.asked(self.config, output_hidden_states, output_attentions)
        states, condition, slots = self._run(
            input_ids, attention_mask, image_embeds_position_mask, pixel_values, records=records
        )
        states = move_back(states, slots)
        records.move_back(slots)
        output = KosmosGOutput(
            logits=self.mllm.logits(states),
            last_hidden_state=states,
            condition=condition,
            hidden_states=records.of("hidden"),
            attentions=records.of("attentions"),
        )
        if not (self.config.return_dict if return_dict is None else return_dict):
            return output.to_tuple()  # type: ignore[no-any-return]
        return output

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token embeddings."""
        return self.mllm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings, as `resize_token_embeddings` does."""
        self.mllm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The language model's output projection."""
        return self.mllm.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the output projection."""
        self.mllm.set_output_embeddings(value)

    def _run(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        image_mask: Tensor | None,
        pixel_values: Tensor | None,
        image_tokens: Tensor | None = None,
        records: Records | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States of the right-padded batch, the condition, and where each token was moved."""
        pad = self.config.text_config.pad_token_id
        real = (input_ids != pad) if attention_mask is None else attention_mask.bool()
        slots = token_slots(real)
        real = move(real, slots)
        input_ids = move(input_ids, slots).masked_fill(~real, pad)
        if image_mask is not None and image_mask.shape == input_ids.shape:  # `mllm` says what is wrong with another
            image_mask = move(image_mask, slots)
        states = self.mllm.states(input_ids, image_mask, pixel_values, image_tokens, records)
        # Reading one value back from the device is cheaper than masked attention in the aligner.
        padded = not (readable(real) and bool(real.all()))
        return states, self.aligner(states, ~real if padded else None), slots

    def _inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = ("input_ids", "attention_mask", "image_embeds_position_mask", "pixel_values", "image_tokens")
        if not isinstance(batch, Mapping) or "input_ids" not in batch:
            raise PromptError(
                f"encode takes the batch that the processor makes, got a {type(batch).__name__} without input_ids; "
                "write model.encode(processor(prompts)), or ask PromptEncoder(model, processor), which takes prompts"
            )
        device = execution_device(self)
        return {name: batch[name].to(device) for name in names if batch.get(name) is not None}


def check_finite(condition: Tensor) -> None:
    """Raises `CheckpointError` if a condition contains NaN or infinity, which could not produce an image."""
    if readable(condition) and not bool(torch.isfinite(condition).all()):
        raise CheckpointError(
            f"the model's condition is not finite in {condition.dtype}: its weights hold NaN or infinity, or the "
            "precision is too small; load the checkpoint again, in float32 or bfloat16"
        )


AutoConfig.register("kosmosg", KosmosGConfig, exist_ok=True)
AutoModel.register(KosmosGConfig, KosmosG, exist_ok=True)
AutoModelForImageTextToText.register(KosmosGConfig, KosmosGForConditionalGeneration, exist_ok=True)
