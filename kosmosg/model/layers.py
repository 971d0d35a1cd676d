"""The Magneto building blocks that language model, resampler, vision tower and aligner share.

Letters: B batch, T target length, S source length, C width, H heads, D = C / H.

A Magneto ("sub-LN") block normalises before every projection that writes into the residual stream: before the
attention and the feed-forward block as usual, and again on the concatenated heads and on the feed-forward hidden state.
Source: Wang et al. 2022, and reference implementation (torchscale) as recorded in the parity fixtures.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kosmosg.config import KosmosGConfig
from kosmosg.errors import ConfigError
from kosmosg.hub import local_name


class KosmosGPreTrainedModel(PreTrainedModel):
    """What every saveable part has in common: configuration class, capabilities and initialisation."""

    config_class = KosmosGConfig
    config: KosmosGConfig
    base_model_prefix = "mllm"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules: ClassVar[list[str]] = ["MagnetoLayer", "CrossLayer", "VisionLayer"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]

    def __init__(self, config: KosmosGConfig) -> None:
        super().__init__(config)
        _share_attention(config)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Self:
        """As in transformers; a model may also be named as kosmosg/hub.py says, such as `toyworld:instruct`."""
        model: Self = super().from_pretrained(local_name(pretrained_model_name_or_path), *args, **kwargs)
        return model

    def set_attn_implementation(
        self, attn_implementation: str | dict[str, str], allow_all_kernels: bool = False
    ) -> None:
        """Choose the attention kernel of the whole model: vision, language and aligner share one."""
        name = attn_implementation if isinstance(attn_implementation, str) else attn_implementation[""]
        # As a dictionary, so that transformers does not look for a separate model behind each sub-configuration.
        super().set_attn_implementation({"": name}, allow_all_kernels=allow_all_kernels)
        _share_attention(self.config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module's own parameters; called by transformers for whatever a checkpoint did not bring.

        Raises `ConfigError` when DeepSpeed has already taken the parameters apart, where nothing could be set.
        """
        if any(hasattr(parameter, "ds_id") and not parameter.numel() for parameter in module.parameters(recurse=False)):
            raise ConfigError(
                "parameters are already split by DeepSpeed's zero.Init, so nothing can be initialised; leave that "
                "context and create the model with AutoModel.from_config or from_pretrained under an HfDeepSpeedConfig"
            )
        if isinstance(module, nn.Linear):
            _init_linear(module)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, Initialised):
            module.init_parameters()


def _share_attention(config: KosmosGConfig) -> None:
    """Tell the sub-configurations which kernel is in use; `generate()` asks the text configuration for its masks."""
    config._attn_implementation = config._attn_implementation


class Initialised(nn.Module):
    """A module that knows how its own parameters and buffers begin (not those of its children)."""

    def init_parameters(self) -> None:
        """Set every own parameter and buffer through `transformers.initialization`, which skips loaded ones."""
        raise NotImplementedError


def linear(inputs: int, outputs: int, *, gain: float = 1.0, bias: bool = True) -> nn.Linear:
    """A projection that starts as torch's default, U(+-gain / sqrt(inputs)) for weight and bias alike.

    The original calls no initialiser on its layers but multiplies some of torch's defaults by Magneto's gain.
    """
    layer = nn.Linear(inputs, outputs, bias=bias)
    layer.init_gain = gain  # type: ignore[assignment]
    return layer


def xavier_linear(inputs: int, outputs: int, *, gain: float, zero_bias: bool = False) -> nn.Linear:
    """A projection that starts Xavier-uniform, as the resampler's attention does (fairseq's `MultiheadAttention`)."""
    layer = nn.Linear(inputs, outputs)
    layer.init_xavier = gain  # type: ignore[assignment]
    layer.init_zero_bias = zero_bias  # type: ignore[assignment]
    return layer


def _init_linear(layer: nn.Linear) -> None:
    bound = getattr(layer, "init_gain", 1.0) / math.sqrt(layer.in_features)
    xavier = getattr(layer, "init_xavier", None)
    if xavier is None:
        init.uniform_(layer.weight, -bound, bound)
    else:
        init.xavier_uniform_(layer.weight, gain=xavier)
    if layer.bias is None:
        return
    if getattr(layer, "init_zero_bias", False):
        init.zeros_(layer.bias)
    else:
        init.uniform_(layer.bias, -bound, bound)


class Attention(nn.Module):
    """Multi-head attention, one implementation for self and cross attention, with or without a cache.

    The kernel is the one that the configuration names (`eager`, `sdpa`, `flash_attention_2`, `flex_attention`, ...) in
    transformers' registry, so custom kernels work too. Without padding no mask exists: causality is the kernel's.
    """

    def __init__(
        self,
        config: KosmosGConfig,
        width: int,
        heads: int,
        *,
        causal: bool = False,
        inner_norm_eps: float | None = None,
        dropout: float = 0.0,
        gain: float = 1.0,
        layer_index: int | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.head_dim = width // heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = causal
        self.attention_dropout = dropout
        self.layer_idx = layer_index
        self.num_key_value_groups = 1
        self.q_proj = linear(width, width)
        self.k_proj = linear(width, width)
        self.v_proj = linear(width, width, gain=gain)
        self.inner_attn_ln = None if inner_norm_eps is None else nn.LayerNorm(width, eps=inner_norm_eps)
        self.out_proj = linear(width, width, gain=gain)

    def forward(
        self,
        queries: Tensor,  # (B, T, C)
        context: Tensor | None = None,  # (B, S, C); None attends to the queries themselves
        mask: Any = None,  # what the attention implementation takes: None, (B, 1, T or 1, S) bool or additive, ...
        cache: Cache | None = None,
    ) -> Tensor:
        """(B, T, C), before dropout and residual."""
        context = queries if context is None else context
        q = rearrange(self.q_proj(queries), "b t (h d) -> b h t d", d=self.head_dim)
        k = rearrange(self.k_proj(context), "b s (h d) -> b h s d", d=self.head_dim)
        v = rearrange(self.v_proj(context), "b s (h d) -> b h s d", d=self.head_dim)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        name = self.config._attn_implementation
        if isinstance(mask, Tensor) and mask.ndim == 4 and name.startswith(("flash", "flex")):
            # These take masks of their own form only, and flash would drop queries by the mask of the keys. Only the
            # aligner's reading of padded prompts comes here.
            name = "sdpa"
        kernel = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention)
        heads, _ = kernel(
            self,
            q,
            k,
            v,
            mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            is_causal=self.is_causal,
        )
        merged = rearrange(heads, "b t h d -> b t (h d)")
        if self.inner_attn_ln is not None:
            merged = self.inner_attn_ln(merged)
        out: Tensor = self.out_proj(merged)
        return out


def eager_attention(
    module: nn.Module,
    query: Tensor,  # (B, H, T, D)
    key: Tensor,  # (B, H, S, D)
    value: Tensor,
    attention_mask: Tensor | None,  # additive, or bool with True = may attend
    dropout: float = 0.0,
    scaling: float = 1.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention in plain matrix products, softmax in fp32 as in the original: (B, T, H, D) and the weights."""
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            attention_mask = torch.zeros_like(attention_mask, dtype=scores.dtype).masked_fill(
                ~attention_mask, torch.finfo(scores.dtype).min
            )
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2), weights


class FeedForward(nn.Module):
    """fc2(LN(gelu(fc1(x)))): the Magneto feed-forward block, normalised on its hidden state.

    The original casts GELU to fp32 under fp16; torch's kernels already compute it so and round once, which is the same.
    """

    def __init__(
        self, width: int, hidden: int, *, activation: str, eps: float, gain: float, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.activation = ACT2FN[activation]
        self.activation_dropout = dropout
        self.fc1 = linear(width, hidden, gain=gain)
        self.ffn_layernorm = nn.LayerNorm(hidden, eps=eps)
        self.fc2 = linear(hidden, width, gain=gain)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        x = self.activation(self.fc1(x))
        if self.activation_dropout:
            x = nn.functional.dropout(x, p=self.activation_dropout, training=self.training)
        out: Tensor = self.fc2(self.ffn_layernorm(x))
        return out


class MagnetoLayer(GradientCheckpointingLayer):
    """x += attention(LN(x)); x += feed_forward(LN(x)), with the inner normalisations of sub-LN."""

    def __init__(
        self,
        config: KosmosGConfig,
        *,
        width: int,
        heads: int,
        hidden: int,
        gain: float,
        eps: float,
        activation: str = "gelu",
        causal: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        layer_index: int | None = None,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.self_attn_layer_norm = nn.LayerNorm(width, eps=eps)
        self.self_attn = Attention(
            config,
            width,
            heads,
            causal=causal,
            inner_norm_eps=eps,
            dropout=attention_dropout,
            gain=gain,
            layer_index=layer_index,
        )
        self.final_layer_norm = nn.LayerNorm(width, eps=eps)
        self.ffn = FeedForward(width, hidden, activation=activation, eps=eps, gain=gain, dropout=activation_dropout)

    def forward(self, x: Tensor, mask: Any = None, past_key_values: Cache | None = None) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        x = x + self._drop(self.self_attn(self.self_attn_layer_norm(x), mask=mask, cache=past_key_values))
        return x + self._drop(self.ffn(self.final_layer_norm(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, p=self.dropout, training=self.training) if self.dropout else x


class CrossLayer(GradientCheckpointingLayer):
    """A Magneto layer that also attends to a context: self attention, cross attention, feed-forward.

    The cross attention has no inner normalisation and no gain; so it is in the original.
    """

    def __init__(
        self,
        config: KosmosGConfig,
        *,
        width: int,
        heads: int,
        hidden: int,
        gain: float,
        eps: float,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(width, eps=eps)
        self.self_attn = Attention(config, width, heads, inner_norm_eps=eps, gain=gain)
        self.encoder_attn_layer_norm = nn.LayerNorm(width, eps=eps)
        self.encoder_attn = Attention(config, width, heads)
        self.final_layer_norm = nn.LayerNorm(width, eps=eps)
        self.ffn = FeedForward(width, hidden, activation="gelu", eps=eps, gain=gain)

    def forward(self, x: Tensor, context: Tensor, context_mask: Any = None) -> Tensor:
        """x (B, T, C) and context (B, S, C) to (B, T, C)."""
        x = x + self.self_attn(self.self_attn_layer_norm(x))
        x = x + self.encoder_attn(self.encoder_attn_layer_norm(x), context, context_mask)
        out: Tensor = x + self.ffn(self.final_layer_norm(x))
        return out
