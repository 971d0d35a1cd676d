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

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.utils import ModelOutput

from kosmosg.config import KosmosGConfig
from kosmosg.errors import PromptError
from kosmosg.layers import Initialised, KosmosGPreTrainedModel, MagnetoLayer, linear
from kosmosg.vision import Resampler, VisionTower


@dataclass
class MllmOutput(ModelOutput):
    """What the language model says. `last_hidden_state` is after the final LayerNorm: what the aligner reads."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class KosmosGForConditionalGeneration(KosmosGPreTrainedModel, GenerationMixin):
    """Text and images in, states and next tokens out. `KosmosG.mllm`; also of use alone, for captions and questions."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"text_model.lm_head.weight": "text_model.model.embed_tokens.weight"}
    # A whole Kosmos-G checkpoint may be opened as its language model.
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
        attention_mask: Tensor | None = None,
        image_tokens: Tensor | None = None,
    ) -> Tensor:
        """States after the final LayerNorm, (B, T, C), with gradient and without logits: what the stages train on.

        `input_ids` (B, T); `image_embeds_position_mask` (B, T) True on image slots; `pixel_values` (N, 3, S, S) of all
        images in reading order, or `image_tokens` (N, Q, C) when they are known already. Without `attention_mask` pads
        must be on the right. Raises `PromptError` when images
        and slots disagree or the batch is longer than the position table.
        """
        embeddings = self.embed(input_ids, image_embeds_position_mask, pixel_values, image_tokens)
        if attention_mask is None:
            states: Tensor = self.text_model.model(embeddings, position_rows(input_ids != self._pad))
            return states
        return self._padded_states(embeddings, attention_mask)

    def logits(self, states: Tensor) -> Tensor:
        """(..., C) to (..., V)."""
        out: Tensor = self.text_model.lm_head(states)
        return out

    def image_tokens(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, S, S) to (N, Q, C): what each image puts into its slots, whatever the text; so it can be kept."""
        out: Tensor = self.image_to_text_projection(self.vision_model(pixel_values.to(self.dtype)))
        return out

    def embed(
        self,
        input_ids: Tensor,
        image_embeds_position_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_tokens: Tensor | None = None,
    ) -> Tensor:
        """Token embeddings with image tokens in their slots, (B, T, C), not yet scaled.

        `image_tokens` (N, Q, C) takes the place of `pixel_values` when they are known already.
        """
        embeddings: Tensor = self.text_model.model.embed_tokens(input_ids)
        if image_tokens is None and pixel_values is not None and len(pixel_values):
            image_tokens = self.image_tokens(pixel_values)
        if readable(input_ids):
            self._check_slots(image_embeds_position_mask, image_tokens)
        if image_tokens is None or image_embeds_position_mask is None:
            return embeddings
        slots = rearrange(image_embeds_position_mask.bool(), "b t -> b t 1")
        return embeddings.masked_scatter(slots.to(embeddings.device), image_tokens.to(embeddings))

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
        return_dict: bool | None = None,
    ) -> MllmOutput:
        """Logits and states for transformers' users and `generate()`.

        `labels` (B, T), -100 where there is no loss, are shifted here. `position_ids` count real tokens from 0.
        `logits_to_keep` computes the logits of the last so many positions only. Right- and left-padded input gives the
        same values on real tokens.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise PromptError("give either input_ids or inputs_embeds, not both and not neither")
        embeddings = inputs_embeds
        if embeddings is None:
            assert input_ids is not None
            embeddings = self.embed(input_ids, image_embeds_position_mask, pixel_values)
            if attention_mask is None and past_key_values is None:
                attention_mask = (input_ids != self._pad).long()
        hidden: list[Tensor] | None = [] if output_hidden_states else None
        if past_key_values is None and use_cache:
            past_key_values = DynamicCache(config=self.config.text_config)
        if past_key_values is None:
            if attention_mask is None:
                attention_mask = embeddings.new_ones(embeddings.shape[:2], dtype=torch.long)
            states = self._padded_states(embeddings, attention_mask, hidden)
        else:
            states = self._cached_states(embeddings, attention_mask, position_ids, past_key_values, hidden)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else logits_to_keep
        logits = self.logits(states[:, kept] if not isinstance(kept, int) else states)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(
                rearrange(logits[:, :-1].float(), "b t v -> (b t) v"), labels[:, 1:].flatten()
            )
        output = MllmOutput(
            loss=loss,
            logits=logits,
            last_hidden_state=states,
            past_key_values=past_key_values,
            hidden_states=None if hidden is None else tuple(hidden),
        )
        if return_dict is False:
            return output.to_tuple()  # type: ignore[no-any-return]
        return output

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_embeds_position_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Continue the prompts: captions, answers. All of `GenerationMixin.generate`'s options apply.

        Images are read once, before the first step, so any number of them may sit in a prompt, and beams and several
        sequences a prompt work. Pads belong on the left here; a right-padded batch is moved, and the returned sequences
        then begin with its pads.
        """
        if input_ids is not None and kwargs.get("inputs_embeds") is None:
            if attention_mask is None:
                attention_mask = (input_ids != self._pad).long()
            slots = token_slots(attention_mask, left_padded=True)
            input_ids, attention_mask = move(input_ids, slots), move(attention_mask, slots)
            if image_embeds_position_mask is not None:
                image_embeds_position_mask = move(image_embeds_position_mask, slots)
            if pixel_values is not None:
                kwargs["inputs_embeds"] = self.embed(input_ids, image_embeds_position_mask, pixel_values)
            elif image_embeds_position_mask is not None:
                self._check_slots(image_embeds_position_mask, None)
        return super().generate(input_ids, attention_mask=attention_mask, **kwargs)

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

    def _padded_states(self, embeddings: Tensor, attention_mask: Tensor, hidden: list[Tensor] | None = None) -> Tensor:
        """States of a batch padded anywhere: tokens are moved left, run without a mask, and moved back."""
        slots = token_slots(attention_mask)
        real = move(attention_mask.bool(), slots)
        states = self.text_model.model(move(embeddings, slots), position_rows(real), hidden=hidden)
        if hidden is not None:
            hidden[:] = [move_back(state, slots) for state in hidden]
        return move_back(states, slots)

    def _cached_states(
        self,
        embeddings: Tensor,
        attention_mask: Any,
        position_ids: Tensor | None,
        cache: Cache,
        hidden: list[Tensor] | None,
    ) -> Tensor:
        length, start, limit = (
            embeddings.shape[1],
            cache.get_seq_length(),
            self.config.text_config.max_position_embeddings,
        )
        # A static cache counts on the device, where looking would cost a wait; its size says how far it will be filled.
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
        mask = create_causal_mask(
            config=self.config, inputs_embeds=embeddings, attention_mask=attention_mask, past_key_values=cache
        )
        states: Tensor = self.text_model.model(embeddings, rows, mask=mask, cache=cache, hidden=hidden)
        return states

    def _check_slots(self, mask: Tensor | None, image_tokens: Tensor | None) -> None:
        slots = 0 if mask is None else int(mask.sum())
        images = 0 if image_tokens is None else len(image_tokens)
        each = self.config.latent_query_num
        if slots != images * each:
            raise PromptError(
                f"the prompts have {slots} image slots and the batch has {images} images, which fill {images * each} "
                f"({each} each); give one image for each place, in order"
            )


class TextModelWithHead(nn.Module):
    """The language model and its output projection, which shares the embeddings' weight."""

    def __init__(self, config: KosmosGConfig) -> None:
        super().__init__()
        self.model = TextModel(config)
        self.lm_head = linear(config.text_config.embed_dim, config.text_config.vocab_size, bias=False)


class TextModel(nn.Module):
    """The Magneto decoder: embeddings (B, T, C), unscaled, to states (B, T, C) after the final LayerNorm."""

    def __init__(self, config: KosmosGConfig) -> None:
        super().__init__()
        text = config.text_config
        self.config = config
        self.embed_scale = math.sqrt(text.embed_dim) if text.scale_embedding else 1.0
        self.embed_tokens = TokenEmbedding(text.vocab_size, text.embed_dim, padding_idx=text.pad_token_id)
        self.embed_positions = SinusoidalPositions(text.max_position_embeddings, text.embed_dim)
        gain = math.sqrt(math.log(2 * text.layers))  # Magneto's gain for a decoder on its own
        self.layers = nn.ModuleList(
            [
                MagnetoLayer(
                    config,
                    width=text.embed_dim,
                    heads=text.attention_heads,
                    hidden=text.ffn_dim,
                    gain=gain,
                    eps=text.layer_norm_eps,
                    activation=text.activation_function,
                    causal=True,
                    dropout=float(text.dropout),
                    attention_dropout=float(text.attention_dropout),
                    activation_dropout=float(text.activation_dropout),
                    layer_index=index,
                )
                for index in range(text.layers)
            ]
        )
        self.layer_norm = nn.LayerNorm(text.embed_dim, eps=text.layer_norm_eps)
        self.dropout = float(text.dropout)

    def forward(
        self,
        embeddings: Tensor,
        rows: Tensor,
        mask: Any = None,
        cache: Cache | None = None,
        hidden: list[Tensor] | None = None,
    ) -> Tensor:
        """`rows` (B, T) of the position table; `mask` None is plain causality. Fills `hidden` when given."""
        x = self.embed_scale * embeddings + self.embed_positions(rows).to(embeddings.dtype)
        x = nn.functional.dropout(x, p=self.dropout, training=self.training)
        if mask is None and cache is None and self.config._attn_implementation in ("eager", "flex_attention"):
            # These two have no causality of their own.
            mask = create_causal_mask(config=self.config, inputs_embeds=x, attention_mask=None, past_key_values=None)
        for layer in self.layers:
            if hidden is not None:
                hidden.append(x)
            x = layer(x, mask, past_key_values=cache)
        x = self.layer_norm(x)
        if hidden is not None:
            hidden.append(x)
        states: Tensor = x
        return states


class TokenEmbedding(nn.Embedding, Initialised):
    """Token embeddings, N(0, 1 / C) at the start, zero for the pad."""

    def init_parameters(self) -> None:
        """See the class."""
        fresh = not getattr(self.weight, "_is_hf_initialized", False)
        init.normal_(self.weight, std=self.embedding_dim**-0.5)
        if fresh and self.padding_idx is not None and not self.weight.is_meta:
            self.weight[self.padding_idx].zero_()


class SinusoidalPositions(Initialised):
    """fairseq's table: row p is [sin(p f_i), cos(p f_i)] with f_i = 10000^(-i / (C/2 - 1)); row 1 is zero. Not learned.

    Rows 0 and 1 are the reserved ones, so `length` positions take `length + 2` rows.
    """

    weights: Tensor

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.length, self.width = length, width
        self.register_buffer("weights", self._table(), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        """(B, T) to (B, T, C)."""
        if rows.shape[1] > self.length:
            raise PromptError(
                f"the prompt is {rows.shape[1]} tokens long, the model numbers at most {self.length} "
                "(text_config.max_position_embeddings); shorten the prompt or use fewer images"
            )
        return nn.functional.embedding(rows, self.weights)

    def init_parameters(self) -> None:
        """Rebuild the table after the model was created without memory (the meta device)."""
        init.copy_(self.weights, self._table().to(self.weights))

    def _table(self) -> Tensor:
        half = self.width // 2
        frequency = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10_000) / (half - 1)))
        angle = torch.arange(self.length + 2, dtype=torch.float32)[:, None] * frequency
        table = torch.cat([angle.sin(), angle.cos()], dim=1)
        table = nn.functional.pad(table, (0, self.width - table.shape[1]))
        return torch.where(torch.arange(self.length + 2)[:, None] == 1, torch.zeros_like(table), table)


def readable(values: Tensor) -> bool:
    """Whether values can be looked at: not while a graph is compiled, and not on the meta device, which has none."""
    return not (torch.compiler.is_compiling() or values.is_meta)


def position_rows(real: Tensor) -> Tensor:
    """(B, T) bool, True for tokens, to rows of the position table: 2, 3, ... for tokens, 1 for pads."""
    return real.long().cumsum(dim=1) * real + 1


def token_slots(attention_mask: Tensor, left_padded: bool = False) -> Tensor:
    """Where each token goes so that tokens stand together and pads beside them: a permutation of each row, (B, T).

    Right-padded (the default) or left-padded; the order of tokens stays. No value is read back from the device.
    """
    real = attention_mask.bool()
    rank, pad_rank = real.long().cumsum(dim=1) - 1, (~real).long().cumsum(dim=1) - 1
    if left_padded:
        return torch.where(real, rank + (~real).sum(dim=1, keepdim=True), pad_rank)
    return torch.where(real, rank, pad_rank + real.sum(dim=1, keepdim=True))


def move(values: Tensor, slots: Tensor) -> Tensor:
    """Put token t of each row at `slots[:, t]`; values are (B, T) or (B, T, C)."""
    index = slots if values.ndim == 2 else slots.unsqueeze(-1).expand_as(values)
    return torch.zeros_like(values).scatter(1, index, values)


def move_back(values: Tensor, slots: Tensor) -> Tensor:
    """The inverse of `move`."""
    index = slots if values.ndim == 2 else slots.unsqueeze(-1).expand_as(values)
    return values.gather(1, index)
