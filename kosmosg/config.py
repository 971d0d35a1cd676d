"""The shape of a Kosmos-G model, as one `PreTrainedConfig` with three parts.

Text and vision use the field names of transformers' Kosmos-2 and CLIP, so they are familiar to users of those. A
checkpoint's shape is stored only in its `config.json`; training presets never repeat it.
"""

from __future__ import annotations

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from kosmosg.errors import CheckpointError, ConfigError
from kosmosg.hub import local_name

VOCABULARY = 64_007  # sentencepiece 64,000 + <pad> + <mask> </doc> <image> </image> </chunk> </line>


@strict
class KosmosGTextConfig(PreTrainedConfig):
    """The Magneto language model, with the field names of `Kosmos2TextConfig`.

    `attention_dropout` is 0 because the original never applied any: it declares 0.1, but its memory-efficient attention
    call does not pass it on. `max_position_embeddings` is the maximum length in tokens, including image slots.
    """

    model_type = "kosmosg_text"
    base_config_key = "text_config"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "num_attention_heads": "attention_heads",
        "hidden_size": "embed_dim",
        "num_hidden_layers": "layers",
        "intermediate_size": "ffn_dim",
    }

    vocab_size: int = VOCABULARY
    max_position_embeddings: int = 2048
    embed_dim: int = 2048
    layers: int = 24
    ffn_dim: int = 8192
    attention_heads: int = 32
    activation_function: str = "gelu"  # exact, by erf
    dropout: float | int = 0.1  # after the embeddings, the attention and the feed-forward block
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    layer_norm_eps: float = 1e-5
    scale_embedding: bool = True  # multiplies token and image embeddings alike by sqrt(embed_dim)
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2


@strict
class KosmosGVisionConfig(PreTrainedConfig):
    """The CLIP vision tower, with the field names of `CLIPVisionConfig` and the sizes of ViT-L/14 at 224 pixels."""

    model_type = "kosmosg_vision"
    base_config_key = "vision_config"

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 14
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float | int = 0.0


@strict
class KosmosGAlignerConfig(PreTrainedConfig):
    """AlignerNet. `d_model` and `num_queries` are those of the U-Net's text condition: 768, 77 for SD 1.5.

    `max_position_embeddings` counts the rows of the learned position table. Its first two rows are never used, so the
    longest sequence is two tokens shorter.
    """

    model_type = "kosmosg_aligner"
    base_config_key = "aligner_config"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "layers",
        "num_attention_heads": "attention_heads",
    }

    kind: str = "alignernet"  # a key of kosmosg.conditioners.base.CONDITIONERS
    d_model: int = 768
    layers: int = 12
    attention_heads: int = 12
    ffn_dim: int = 3072
    num_queries: int = 77
    max_position_embeddings: int = 32_768
    layer_norm_eps: float = 1e-5


@strict
class KosmosGConfig(PreTrainedConfig):
    """Vision tower, resampler (`latent_query_num` queries per image), language model and aligner.

    The defaults are the paper's model. Sub-configurations may be given as dictionaries.

    Raises `ConfigError` if a width is not divisible by the number of heads, or the image size by the patch size.

    >>> KosmosGConfig.tiny().text_config.embed_dim
    64
    """

    model_type = "kosmosg"
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "text_config": KosmosGTextConfig,
        "vision_config": KosmosGVisionConfig,
        "aligner_config": KosmosGAlignerConfig,
    }

    # Each may be given as its class, as a dictionary or not at all; afterwards it is its class.
    text_config: Any = None
    vision_config: Any = None
    latent_query_num: int = 64
    aligner_config: Any = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        text, vision, aligner = self.text_config, self.vision_config, self.aligner_config
        _divides("text_config.embed_dim", text.embed_dim, "attention_heads", text.attention_heads)
        _divides("vision_config.hidden_size", vision.hidden_size, "num_attention_heads", vision.num_attention_heads)
        _divides("vision_config.image_size", vision.image_size, "patch_size", vision.patch_size)
        _divides("aligner_config.d_model", aligner.d_model, "attention_heads", aligner.attention_heads)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers, but another model's configuration is a `CheckpointError`.

        transformers only warns, and then initialises every weight that it cannot find in the foreign checkpoint.
        """
        kind = config_dict.get("model_type", cls.model_type)
        if kind != cls.model_type:
            raise CheckpointError(
                f"the configuration is of a model of type {kind!r}, not {cls.model_type!r}; give another folder, or "
                "bring published weights into this form with kosmosg.convert or `kosmosg import`"
            )
        return super().from_dict(config_dict, **kwargs)

    @property
    def max_tokens(self) -> int:
        """The maximum sequence length, in tokens, that both position tables support."""
        return int(min(self.text_config.max_position_embeddings, self.aligner_config.max_position_embeddings - 2))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> KosmosGConfig:
        """As in transformers; a model may also be named as kosmosg/hub.py says, such as `toyworld:instruct`."""
        config: KosmosGConfig = super().from_pretrained(local_name(pretrained_model_name_or_path), **kwargs)
        return config

    @classmethod
    def paper(cls) -> KosmosGConfig:
        """The published model: 1,662,375,936 parameters in the MLLM, 225,461,760 in the aligner."""
        return cls()

    @classmethod
    def tiny(cls, vocab_size: int = VOCABULARY) -> KosmosGConfig:
        """All parts with only a few thousand weights apart from the embeddings: for tests that take milliseconds."""
        return cls(
            text_config={
                "vocab_size": vocab_size,
                "max_position_embeddings": 510,
                "embed_dim": 64,
                "layers": 2,
                "attention_heads": 4,
                "ffn_dim": 128,
            },
            vision_config={
                "image_size": 32,
                "patch_size": 8,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
            },
            latent_query_num=4,
            aligner_config={
                "d_model": 32,
                "layers": 2,
                "attention_heads": 4,
                "ffn_dim": 64,
                "num_queries": 77,
                "max_position_embeddings": 512,
            },
        )


def _divides(name: str, size: int, divisor_name: str, divisor: int) -> None:
    if divisor <= 0 or size % divisor:
        raise ConfigError(f"{name} is {size}, which {divisor_name} = {divisor} does not divide; change one of them")


__all__ = ["KosmosGAlignerConfig", "KosmosGConfig", "KosmosGTextConfig", "KosmosGVisionConfig"]
