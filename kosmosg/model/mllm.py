"""The multimodal language model: vision tower, resampler and a Magneto causal transformer.

Letters: B batch, T tokens, C width, V vocabulary, N images in the batch, Q tokens an image.

Three facts that are easy to get wrong, all checked against the original's outputs:
- positions are absolute sinusoids; the first token takes row 2, pads take row 1, which is zero. xPos is not used;
- image tokens replace token embeddings *before* the scaling by sqrt(C), so they are scaled too;
- there is no padding mask. Pads sit on the right, where a causal model cannot see them. Input that is padded otherwise
  is moved there first, so attention never needs more than its own causality and the fastest kernel applies. Only
  `generate()`, whose cache needs pads on the left, builds a mask, and only for batches that have pads.

Parameter names are those of transformers' Kosmos-2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.utils import ModelOutput

from kosmosg.config import KosmosGConfig
from kosmosg.errors import PromptError
from kosmosg.layers.dropout import DropoutSeeds
from kosmosg.layers.magneto import KosmosGPreTrainedModel
from kosmosg.model.generation import InterleavedGenerationMixin
from kosmosg.model.padding import (
    move,
    move_back,
    move_back_attention,
    position_rows,
    readable,
    token_slots,
)
from kosmosg.model.text import TextModelWithHead
from kosmosg.model.vision import Resampler, VisionTower


@dataclass
class MllmOutput(ModelOutput):
    """Output of the language model. `last_hidden_state` is after the final LayerNorm, as the aligner needs it."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class Records:
    """Optional records of a forward pass through the language model; None if not requested."""

    hidden: list[Tensor] | None = None
    """(B, T, C) each: the layers' inputs, then the states."""
    attentions: list[Tensor] | None = None
    """(B, H, T, S) for each layer."""

    @classmethod
    def asked(cls, config: KosmosGConfig, hidden: bool | None, attentions: bool | None) -> Records:
        """As requested by a call or, if it does not say, by the configuration."""
        hidden = config.output_hidden_states if hidden is None else hidden
        attentions = config.output_attentions if attentions is None else attentions
        return cls([] if hidden else None, [] if attentions else None)

    def move_back(self, slots: Tensor) -> None:
        """Undo `move`. If nothing moved, the records stay part of the autograd graph."""
        if readable(slots) and bool((slots == torch.arange(slots.shape[1], device=slots.device)).all()):
            return
        if self.hidden is not None:
            self.hidden = [move_back(each, slots) for each in self.hidden]
        if self.attentions is not None:
            self.attentions = [move_back_attention(each, slots) for each in self.attentions]

    def of(self, name: str) -> tuple[Tensor, ...] | None:
        """As transformers returns them."""
        values = getattr(self, name)
        return None if values is None else tuple(values)


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of logits (B, T, V) against the next labels (B, T), ignoring -100."""
    return nn.functional.cross_entropy(
        rearrange(logits[:, :-1].float(), "b t v -> (b t) v"), labels[:, 1:].flatten().to(logits.device)
    )


class KosmosGForConditionalGeneration(KosmosGPreTrainedModel, InterleavedGenerationMixin):
    """Text and images in, states and next tokens out. `KosmosG.mllm`; also useful alone, for captions and questions."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"text_model.lm_head.weight": "text_model.model.embed_tokens.weight"}
    # A whole Kosmos-G checkpoint can be loaded as its language model.
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^aligner\."]

    def __init__(self, config: KosmosGConfig) -> None:
        super().__init__(config)
        self.text_model = TextModelWithHead(config)
        self.vision_model = VisionTower(config)
        self.image_to_text_projection = Resampler(config)
        self.post_init()

    def states(
        self,
        input_ids: Tensor,
        image_embeds_position_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_tokens: Tensor | None = None,
        records: Records | None = None,
        inputs_embeds: Tensor | None = None,
        seeds: DropoutSeeds | None = None,
    ) -> Tensor:
        """States after the final LayerNorm, (B, T, C), with gradient but without logits, for the training stages.

        `input_ids` (B, T), pads on the right; `image_embeds_position_mask` (B, T) True on image slots; `pixel_values`
        (N, 3, S, S) of all images in reading order, or `image_tokens` (N, Q, C) if they are already known;
        `inputs_embeds` (B, T, C), from `embed`, replaces all images. Dropout in the text
        model follows from the `seeds` of the B samples, if given. Raises `PromptError` if images and slots do not match
        or the batch is longer than the position table.
        """
        embeddings = inputs_embeds
        if embeddings is None:
            embeddings = self.embed(input_ids, image_embeds_position_mask, pixel_values, image_tokens)
        rows = position_rows(input_ids != self._pad)
        states: Tensor = self.text_model.model(embeddings, rows, seeds=seeds, **vars(records or Records()))
        return states

    def logits(self, states: Tensor) -> Tensor:
        """(..., C) to (..., V)."""
        out: Tensor = self.text_model.lm_head(states)
        return out

    def image_tokens(self, pixel_values: Tensor, seeds: DropoutSeeds | None = None) -> Tensor:
        """(N, 3, S, S) to (N, Q, C): the tokens for each image's slots. Independent of the text, so cacheable."""
        out: Tensor = self.image_to_text_projection(self.vision_model(pixel_values.to(self.dtype)), seeds)
        return out

    def embed(
        self,
        input_ids: Tensor,
        image_embeds_position_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_tokens: Tensor | None = None,
    ) -> Tensor:
        """Token embeddings with image tokens in their slots, (B, T, C), not yet scaled.

        `image_tokens` (N, Q, C) replaces `pixel_values` if they are already known.
        """
        embeddings: Tensor = self.text_model.model.embed_tokens(input_ids)
        return self.insert_images(embeddings, image_embeds_position_mask, pixel_values, image_tokens)

    def insert_images(
        self,
        embeddings: Tensor,
        image_embeds_position_mask: Tensor | None,
        pixel_values: Tensor | None = None,
        image_tokens: Tensor | None = None,
    ) -> Tensor:
        """Embeddings (B, T, C) with the images in their slots.

        Raises `PromptError` if images and slots, or the mask and the embeddings, do not match.
        """
        slots = image_embeds_position_mask
        if image_tokens is None and pixel_values is not None and len(pixel_values):
            image_tokens = self.image_tokens(pixel_values)
        if slots is not None and slots.shape != embeddings.shape[:2]:
            raise PromptError(
                f"image_embeds_position_mask has shape {tuple(slots.shape)}, the prompts have "
                f"{tuple(embeddings.shape[:2])}; give the mask that the processor made for them, padded as they are"
            )
        if readable(embeddings):
            self._check_slots(slots, image_tokens)
        if image_tokens is None or slots is None:
            return embeddings
        places = rearrange(slots.bool(), "b t -> b t 1").to(embeddings.device)
        return embeddings.masked_scatter(places, image_tokens.to(embeddings))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_embeds_position_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> MllmOutput:
        """Logits and states for transformers' users and `generate()`.

        `inputs_embeds` (B, T, C) may replace `input_ids`; images are inserted into the slots of either. `labels` (B,
        T), -100 where there is no loss, are shifted here. `position_ids` (B, T) count real tokens from 0. With
        `logits_to_keep` only the logits of that many last positions are computed. Right- and left-padded input gives
        the same values on real tokens. `output_attentions` needs the eager kernel and uses it for this call.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise PromptError("give either input_ids or inputs_embeds, and not both")
        if inputs_embeds is None:
            assert input_ids is not None
            embeddings = self.embed(input_ids, image_embeds_position_mask, pixel_values)
            if attention_mask is None and past_key_values is None:
                attention_mask = (input_ids != self._pad).long()
        else:
            embeddings = self.insert_images(inputs_embeds, image_embeds_position_mask, pixel_values)
        records = Records.asked(self.config, output_hidden_states, output_attentions)
        if past_key_values is None and use_cache:
            past_key_values = DynamicCache(config=self.config.text_config)
        if past_key_values is None:
            if attention_mask is None:
                attention_mask = embeddings.new_ones(embeddings.shape[:2], dtype=torch.long)
            states = self._padded_states(embeddings, attention_mask, position_ids, records)
        else:
            states = self._cached_states(embeddings, attention_mask, position_ids, past_key_values, records)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else logits_to_keep
        logits = self.logits(states[:, kept] if not isinstance(kept, int) else states)
        output = MllmOutput(
            loss=None if labels is None else next_token_loss(logits, labels),
            logits=logits,
            last_hidden_state=states,
            past_key_values=past_key_values,
            hidden_states=records.of("hidden"),
            attentions=records.of("attentions"),
        )
        if not (self.config.return_dict if return_dict is None else return_dict):
            return output.to_tuple()  # type: ignore[no-any-return]
        return output

    @property
    def _pad(self) -> int:
        pad: int = self.config.text_config.pad_token_id
        return pad

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embeddings, tied with the output projection."""
        return self.text_model.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings, as `resize_token_embeddings` does."""
        self.text_model.model.embed_tokens = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module:
        """The output projection."""
        return self.text_model.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the output projection."""
        self.text_model.lm_head = value  # type: ignore[assignment]

    def _padded_states(
        self, embeddings: Tensor, attention_mask: Tensor, position_ids: Tensor | None, records: Records
    ) -> Tensor:
        """States of a batch with any padding: tokens are moved left, processed without a mask, and moved back."""
        slots = token_slots(attention_mask)
        real = move(attention_mask.bool(), slots)
        rows = position_rows(real)
        if position_ids is not None:
            self._check_positions(position_ids)
            rows = torch.where(real, move(position_ids.expand_as(real) + 2, slots), rows)
        states = self.text_model.model(move(embeddings, slots), rows, **vars(records))
        records.move_back(slots)
        return move_back(states, slots)

    def _cached_states(
        self,
        embeddings: Tensor,
        attention_mask: Any,
        position_ids: Tensor | None,
        cache: Cache,
        records: Records,
    ) -> Tensor:
        length, start, limit = (
            embeddings.shape[1],
            cache.get_seq_length(),
            self.config.text_config.max_position_embeddings,
        )
        # A static cache counts on the device, where reading would synchronise; its size says how far it will be filled.
        size = getattr(cache, "get_max_length", None) or cache.get_max_cache_shape  # older name
        end = start + length if isinstance(start, int) else size()
        if end > limit:
            raise PromptError(
                f"prompt and continuation are {end} tokens long, the model numbers at most {limit} "
                "(text_config.max_position_embeddings); ask for fewer new tokens or shorten the prompt"
            )
        if position_ids is not None:
            rows = position_ids + 2
        elif isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
            rows = position_rows(attention_mask.bool())[:, -length:]
        else:
            rows = torch.arange(start, start + length, device=embeddings.device).unsqueeze(0) + 2
        model = self.text_model.model
        mask = model.causal_mask(embeddings, attention_mask, cache, weights=records.attentions is not None)
        states: Tensor = model(embeddings, rows, mask=mask, cache=cache, **vars(records))
        return states

    def _check_positions(self, position_ids: Tensor) -> None:
        limit = self.config.text_config.max_position_embeddings
        if not readable(position_ids) or position_ids.shape[-1] > limit:  # the table itself refuses longer prompts
            return
        if (last := int(position_ids.max())) >= limit:
            raise PromptError(
                f"position_ids go up to {last}, the model numbers tokens from 0 to {limit - 1} "
                "(text_config.max_position_embeddings)"
            )

    def _check_slots(self, mask: Tensor | None, image_tokens: Tensor | None) -> None:
        slots = 0 if mask is None else int(mask.bool().sum())
        images = 0 if image_tokens is None else len(image_tokens)
        each = self.config.latent_query_num
        if slots != images * each:
            raise PromptError(
                f"the prompts have {slots} image slots and the batch has {images} images, which fill {images * each} "
                f"({each} each); give one image for each place, in order"
            )
