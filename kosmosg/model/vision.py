"""The CLIP vision tower and the resampler.

Letters: N images, P patches per image, W vision width, Q latent queries per image, C language model width.

Two differences from the usual CLIP, both from the original: the final LayerNorm is applied to every token and the
tokens are then normalised to unit length; nothing is pooled.
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from kosmosg.config import KosmosGConfig
from kosmosg.errors import ImageError
from kosmosg.layers.attention import Attention
from kosmosg.layers.dropout import RESAMPLER, DropoutSeeds
from kosmosg.layers.initialisation import Initialised, linear, xavier_linear


class VisionTower(nn.Module):
    """Pixels to unit-length tokens: (N, 3, S, S) to (N, 1 + P, W)."""

    _supports_sdpa = True  # as transformers' models say

    def __init__(self, config: KosmosGConfig) -> None:
        super().__init__()
        self.config = config.vision_config
        self.model = VisionTransformer(config)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Class token first, then the patches in reading order. Raises `ImageError` for another image size."""
        tokens = self.model(pixel_values)
        return nn.functional.normalize(tokens, dim=-1)


class VisionTransformer(nn.Module):
    """ViT with a LayerNorm before the first block ("pre_layrnorm": CLIP's own spelling, kept for its checkpoints)."""

    def __init__(self, config: KosmosGConfig) -> None:
        super().__init__()
        vision = config.vision_config
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(vision.hidden_size, eps=vision.layer_norm_eps)
        self.encoder = VisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(vision.hidden_size, eps=vision.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, S, S) to (N, 1 + P, W), after the final LayerNorm."""
        x = self.pre_layrnorm(self.embeddings(pixel_values))
        for layer in self.encoder.layers:
            x = layer(x)
        out: Tensor = self.post_layernorm(x)
        return out


class VisionEmbeddings(Initialised):
    """Patches, class token and learned positions."""

    def __init__(self, config: KosmosGConfig) -> None:
        super().__init__()
        vision = config.vision_config
        self.image_size, self.channels = vision.image_size, vision.num_channels
        patches = (vision.image_size // vision.patch_size) ** 2
        self.class_embedding = nn.Parameter(torch.empty(vision.hidden_size))
        self.patch_embedding = nn.Conv2d(
            vision.num_channels, vision.hidden_size, vision.patch_size, stride=vision.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(1 + patches, vision.hidden_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, S, S) to (N, 1 + P, W)."""
        expected = (self.channels, self.image_size, self.image_size)
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != expected:
            raise ImageError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, the model reads images of {expected}; "
                "prepare them with the KosmosGProcessor of this checkpoint"
            )
        patches = rearrange(self.patch_embedding(pixel_values), "n w rows columns -> n (rows columns) w")
        first = repeat(self.class_embedding, "w -> n 1 w", n=len(patches))
        tokens = torch.cat([first, patches], dim=1)
        # Looked up rather than read as `.weight`: under ZeRO-3 only the owner's forward has the whole parameter.
        positions: Tensor = self.position_embedding(torch.arange(tokens.shape[1], device=tokens.device))
        return tokens + positions

    def init_parameters(self) -> None:
        """OpenCLIP's initialisation: N(0, 1 / W) for class and positions, torch's default for the patch projection."""
        std = len(self.class_embedding) ** -0.5
        init.normal_(self.class_embedding, std=std)
        init.normal_(self.position_embedding.weight, std=std)
        bound = self.patch_embedding.weight[0].numel() ** -0.5
        init.uniform_(self.patch_embedding.weight, -bound, bound)


class VisionEncoder(nn.Module):
    """The list of blocks; a separate module only because of CLIP's parameter names."""

    def __init__(self, config: KosmosGConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([VisionLayer(config) for _ in range(config.vision_config.num_hidden_layers)])


class VisionLayer(GradientCheckpointingLayer):
    """A plain pre-LN transformer block; no dropout anywhere."""

    def __init__(self, config: KosmosGConfig) -> None:
        super().__init__()
        vision = config.vision_config
        self.layer_norm1 = nn.LayerNorm(vision.hidden_size, eps=vision.layer_norm_eps)
        self.self_attn = Attention(
            vision, vision.hidden_size, vision.num_attention_heads, dropout=vision.attention_dropout
        )
        self.layer_norm2 = nn.LayerNorm(vision.hidden_size, eps=vision.layer_norm_eps)
        self.mlp = VisionMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1 + P, W) to the same shape."""
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class VisionMLP(nn.Module):
    """fc2(quick_gelu(fc1(x)))."""

    def __init__(self, config: KosmosGConfig) -> None:
        super().__init__()
        vision = config.vision_config
        self.activation = ACT2FN[vision.hidden_act]
        self.fc1 = linear(vision.hidden_size, vision.intermediate_size)
        self.fc2 = linear(vision.intermediate_size, vision.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1 + P, W) to the same shape."""
        out: Tensor = self.fc2(self.activation(self.fc1(x)))
        return out


class Resampler(Initialised):
    """Condenses the tokens of an image into `latent_query_num` tokens of the language model's width.

    One cross attention whose output is the result: no residual, no LayerNorm, no feed-forward block. The queries attend
    to the image tokens and to themselves.
    """

    def __init__(self, config: KosmosGConfig) -> None:
        super().__init__()
        width = config.text_config.embed_dim
        self.dense = linear(config.vision_config.hidden_size, width)
        self.latent_query = nn.Parameter(torch.empty(config.latent_query_num, width))
        # 0.1 in training, like the language model's: the original passes on its dropout, applied here to the weights.
        self.x_attn = Attention(
            config.text_config,
            width,
            config.text_config.attention_heads,
            dropout=float(config.text_config.dropout),
            site=RESAMPLER,
        )
        for name, gain in {"q_proj": 2**-0.5, "k_proj": 2**-0.5, "v_proj": 2**-0.5, "out_proj": 1.0}.items():
            setattr(self.x_attn, name, xavier_linear(width, width, gain=gain, zero_bias=name == "out_proj"))

    def forward(self, tokens: Tensor, seeds: DropoutSeeds | None = None) -> Tensor:
        """(N, 1 + P, W) to (N, Q, C)."""
        x = self.dense(tokens)
        queries = repeat(self.latent_query, "q c -> n q c", n=len(x))
        out: Tensor = self.x_attn(queries, torch.cat([x, queries], dim=1), seeds=seeds)
        return out

    def init_parameters(self) -> None:
        """N(0, 1) for the queries."""
        init.normal_(self.latent_query)


def freeze_vision(tower: VisionTower) -> None:
    """Freeze the tower except its last block and its final LayerNorm, which stages 1 and 3 train.

    12,598,272 trainable parameters remain in ViT-L/14.
    """
    tower.requires_grad_(False)
    tower.model.encoder.layers[-1].requires_grad_(True)
    tower.model.post_layernorm.requires_grad_(True)
