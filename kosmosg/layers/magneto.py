"""The Magneto building blocks that language model, resampler, vision tower and aligner share.

Letters: B batch, T target length, S source length, C width, H heads, D = C / H.

A Magneto ("sub-LN") block normalises before every projection that writes into the residual stream: before the
attention and the feed-forward block as usual, and again on the concatenated heads and on the feed-forward hidden state.
Source: Wang et al. 2022, and reference implementation (torchscale) as recorded in the parity fixtures.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from kosmosg.config import KosmosGConfig
from kosmosg.errors import ConfigError
from kosmosg.hub import local_name
from kosmosg.layers.attention import Attention
from kosmosg.layers.dropout import DropoutSeeds, dropout, layer_site
from kosmosg.layers.initialisation import Initialised, init_linear, linear


class KosmosGPreTrainedModel(PreTrainedModel):
    """Base of all saveable parts: configuration class, capabilities and initialisation."""

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
        # A part without a choice of its own uses the kernel of the whole model.
        for key in config.sub_configs:
            part = getattr(config, key)
            part._attn_implementation = part._attn_implementation or config._attn_implementation

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Self:
        """As in transformers; a model may also be named as kosmosg/hub.py says, such as `toyworld:instruct`."""
        model: Self = super().from_pretrained(local_name(pretrained_model_name_or_path), *args, **kwargs)
        return model

    def set_attn_implementation(
        self, attn_implementation: str | dict[str, str], allow_all_kernels: bool = False
    ) -> None:
        """Choose the attention kernel: one for the whole model, or one for each part, by sub-configuration.

        `{"text_config": "eager"}` leaves vision tower and conditioner as they are. Raises `ConfigError` for a part that
        the model does not have.
        """
        parts = {"": self.config} | {key: getattr(self.config, key) for key in self.config.sub_configs}
        wanted = attn_implementation
        if isinstance(wanted, str):
            wanted = dict.fromkeys(parts, wanted)
        if unknown := wanted.keys() - parts.keys():
            raise ConfigError(
                f"attn_implementation names the parts {', '.join(sorted(unknown))}; this model has "
                f"{', '.join(filter(None, parts)) or 'no parts'}"
            )
        for key, name in wanted.items():
            checked = self._check_and_adjust_attn_implementation(
                name, is_init_check=False, allow_all_kernels=allow_all_kernels
            )
            parts[key]._attn_implementation_internal = checked

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module's own parameters; transformers calls this for everything not in the checkpoint.

        Raises `ConfigError` if DeepSpeed has already partitioned the parameters, so that they cannot be set.
        """
        if any(hasattr(parameter, "ds_id") and not parameter.numel() for parameter in module.parameters(recurse=False)):
            raise ConfigError(
                "parameters are already split by DeepSpeed's zero.Init, so nothing can be initialised; leave that "
                "context and create the model with AutoModel.from_config or from_pretrained under an HfDeepSpeedConfig"
            )
        if isinstance(module, nn.Linear):
            init_linear(module)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, Initialised):
            module.init_parameters()


class FeedForward(nn.Module):
    """fc2(LN(gelu(fc1(x)))): the Magneto feed-forward block, normalised on its hidden state.

    The original casts GELU to fp32 under fp16; torch's kernels already compute it that way, with the same result.
    """

    def __init__(
        self, width: int, hidden: int, *, activation: str, eps: float, gain: float, dropout: float = 0.0, site: int = 0
    ) -> None:
        super().__init__()
        self.activation = ACT2FN[activation]
        self.activation_dropout, self.site = dropout, site
        self.fc1 = linear(width, hidden, gain=gain)
        self.ffn_layernorm = nn.LayerNorm(hidden, eps=eps)
        self.fc2 = linear(hidden, width, gain=gain)

    def forward(self, x: Tensor, seeds: DropoutSeeds | None = None) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        x = self.activation(self.fc1(x))
        x = dropout(x, self.activation_dropout, self.training, seeds, self.site)
        out: Tensor = self.fc2(self.ffn_layernorm(x))
        return out


class MagnetoLayer(GradientCheckpointingLayer):
    """x += attention(LN(x)); x += feed_forward(LN(x)), with the inner normalisations of sub-LN."""

    def __init__(
        self,
        config: PreTrainedConfig,
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
        self.dropout, self.sites = dropout, tuple(layer_site(layer_index, place) for place in range(4))
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
            site=self.sites[0],
        )
        self.final_layer_norm = nn.LayerNorm(width, eps=eps)
        self.ffn = FeedForward(
            width, hidden, activation=activation, eps=eps, gain=gain, dropout=activation_dropout, site=self.sites[2]
        )

    def forward(
        self,
        x: Tensor,
        mask: Any = None,
        past_key_values: Cache | None = None,
        attentions: list[Tensor] | None = None,
        seeds: DropoutSeeds | None = None,
    ) -> Tensor:
        """(B, T, C) to (B, T, C). Appends its attention weights to `attentions` when given."""
        normed = self.self_attn_layer_norm(x)
        heard = self.self_attn(normed, mask=mask, cache=past_key_values, attentions=attentions, seeds=seeds)
        x = x + dropout(heard, self.dropout, self.training, seeds, self.sites[1])
        out = self.ffn(self.final_layer_norm(x), seeds)
        return x + dropout(out, self.dropout, self.training, seeds, self.sites[3])


class CrossLayer(GradientCheckpointingLayer):
    """A Magneto layer that also attends to a context: self attention, cross attention, feed-forward.

    As in the original, the cross attention has no inner normalisation and no gain.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        width: int,
        heads: int,
        hidden: int,
        gain: float,
        eps: float,
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
