"""`generate()` for prompts with images, with all of transformers' decoding methods.

The images are encoded once, before the first step. The embeddings of images and text (`prompt_embeds`) are then passed
along with the token ids, so a prompt may contain any number of images, and every method (beam search, several sequences
per prompt, speculative decoding, no cache, chunked prefill) gets the right vector at each position.

Letters: B prompts, T tokens, N images in the batch, C width.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin

from kosmosg.errors import PromptError
from kosmosg.model.padding import move, token_slots


class InterleavedGenerationMixin(GenerationMixin):
    """`generate()` for a model with `embed`, `insert_images` and a `forward` that takes `inputs_embeds`."""

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self: Any,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_embeds_position_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Continue the prompts: captions, answers. All of `GenerationMixin.generate`'s options apply.

        Pads belong on the left here; a right-padded batch is shifted, and the returned sequences then begin with its
        pads. To continue a continuation, pass its ids with the prompts' `pixel_values` and mask: the mask may be as
        short as the prompts were. Images that are already in `past_key_values` are not encoded again.

        Raises `PromptError` if images and slots do not match, or ids are given twice.
        """
        if inputs is not None and input_ids is not None:
            raise PromptError("the prompts are given twice, as inputs and as input_ids; give them once")
        ids = inputs if input_ids is None else input_ids
        given = ids if inputs_embeds is None else inputs_embeds
        images, slots = pixel_values, image_embeds_position_mask
        if given is None:
            return super().generate(generation_config=generation_config, attention_mask=attention_mask, **kwargs)
        if slots is not None:
            slots = _lengthened(slots, given.shape[1])
        read = _length(kwargs.get("past_key_values"))
        if attention_mask is None and ids is not None and not read:
            attention_mask = (ids != self.config.text_config.pad_token_id).long()
        if attention_mask is not None and not read:  # a cache has its order already
            order = token_slots(attention_mask, left_padded=True)
            attention_mask = move(attention_mask, order)
            ids = None if ids is None else move(ids, order)
            inputs_embeds = None if inputs_embeds is None else move(inputs_embeds, order)
            slots = None if slots is None else move(slots, order)
        if read and slots is not None and not bool(slots[:, read:].any()):
            images = slots = None
        if ids is None:
            inputs_embeds = self.insert_images(inputs_embeds, slots, images)
            kwargs["inputs_embeds"] = inputs_embeds
        elif inputs_embeds is not None or images is not None or slots is not None:
            words = self.get_input_embeddings()(ids) if inputs_embeds is None else inputs_embeds
            kwargs["prompt_embeds"] = self.insert_images(words, slots, images)
            if kwargs.get("assistant_model") is not None and images is not None:
                kwargs |= {"pixel_values": images, "image_embeds_position_mask": slots}
        return super().generate(ids, generation_config, attention_mask=attention_mask, **kwargs)

    def prepare_inputs_for_generation(
        self: Any,
        input_ids: Tensor,
        prompt_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_embeds_position_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The inputs of `forward` for one step: embeddings while the step covers part of the prompt, else ids."""
        prepared: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        window = prepared.get("input_ids")
        if prompt_embeds is None or window is None:
            return prepared
        start = input_ids.shape[1] - window.shape[1]
        if kwargs.get("is_first_iteration"):  # where a long prompt may come in chunks
            start = max(start, _length(kwargs.get("past_key_values")))
        known = prompt_embeds[:, start : start + window.shape[1]]
        if known.shape[1]:
            rest = self.get_input_embeddings()(window[:, known.shape[1] :])
            prepared |= {"input_ids": None, "inputs_embeds": torch.cat([known.to(rest), rest], dim=1)}
        return prepared

    def _get_candidate_generator(
        self: Any, *args: Any, model_kwargs: dict[str, Any], assistant_model: Any = None, **kwargs: Any
    ) -> Any:
        """An assistant encodes the images itself, because this model's embeddings mean nothing to it."""
        if assistant_model is not None:
            known = inspect.signature(assistant_model.forward).parameters
            private = {"prompt_embeds"} | ({"pixel_values", "image_embeds_position_mask"} - known.keys())
            model_kwargs = {name: value for name, value in model_kwargs.items() if name not in private}
        return super()._get_candidate_generator(
            *args, model_kwargs=model_kwargs, assistant_model=assistant_model, **kwargs
        )


def _length(cache: Any) -> int:
    """Number of tokens in a cache."""
    return 0 if cache is None else int(cache.get_seq_length())


def _lengthened(slots: Tensor, length: int) -> Tensor:
    """A prompt's image mask (B, T), extended for a sequence that continues it, which contains no further images."""
    if slots.shape[1] > length:
        raise PromptError(
            f"image_embeds_position_mask is {slots.shape[1]} tokens long, the prompts are {length}; "
            "give the mask that the processor made for these prompts"
        )
    return torch.nn.functional.pad(slots, (0, length - slots.shape[1]))
