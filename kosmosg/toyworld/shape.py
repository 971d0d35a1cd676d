"""The shape of the toy world's Kosmos-G: small enough to go through all three stages on a laptop CPU."""

from kosmosg.config import KosmosGConfig


def toyworld_config(vocab_size: int) -> KosmosGConfig:
    """A model for `vocab_size` tokens.

    The vision tower matches the toy world's CLIP (`contrastive.py`), the aligner's output what its U-Net expects:
    24 vectors of width 128.
    """
    return KosmosGConfig(
        text_config={
            "vocab_size": vocab_size,
            "max_position_embeddings": 254,
            "embed_dim": 160,
            "layers": 4,
            "attention_heads": 5,
            "ffn_dim": 640,
            "dropout": 0.0,
        },
        vision_config={
            "image_size": 32,
            "patch_size": 4,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
        },
        latent_query_num=16,
        aligner_config={
            "d_model": 128,
            "layers": 2,
            "attention_heads": 4,
            "ffn_dim": 512,
            "num_queries": 24,
            "max_position_embeddings": 256,
        },
    )
