"""Parameter names of the released Kosmos-G files, transformers' Kosmos-2 and OpenAI's CLIP, and ours for them.

The tables map patterns that match a whole name of theirs to our name, or to the reason why it is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_VISION = "mllm.vision_model.model"
_BLOCK = r"img_model\.visual\.transformer\.resblocks\.(\d+)"

# Pattern of their whole name -> ours. N, which is not part of the model, is marked by "decoder:".
REFERENCE_NAMES = {
    r"gpt_model\.decoder\.(embed_tokens|layers|layer_norm)\.(.+)": r"mllm.text_model.model.\1.\2",
    r"img_connector\.(.+)": r"mllm.image_to_text_projection.\1",
    r"img_model\.visual\.class_embedding": rf"{_VISION}.embeddings.class_embedding",
    r"img_model\.visual\.positional_embedding": rf"{_VISION}.embeddings.position_embedding.weight",
    r"img_model\.visual\.conv1\.weight": rf"{_VISION}.embeddings.patch_embedding.weight",
    r"img_model\.visual\.ln_pre\.(.+)": rf"{_VISION}.pre_layrnorm.\1",
    r"img_model\.visual\.ln_post\.(.+)": rf"{_VISION}.post_layernorm.\1",
    rf"{_BLOCK}\.ts_attn\.(.+)": rf"{_VISION}.encoder.layers.\1.self_attn.\2",
    rf"{_BLOCK}\.ln_(\d)\.(.+)": rf"{_VISION}.encoder.layers.\1.layer_norm\2.\3",
    rf"{_BLOCK}\.mlp\.c_fc\.(.+)": rf"{_VISION}.encoder.layers.\1.mlp.fc1.\2",
    rf"{_BLOCK}\.mlp\.c_proj\.(.+)": rf"{_VISION}.encoder.layers.\1.mlp.fc2.\2",
    r"aligner\.encoder_query": r"aligner.encoder_query.weight",
    r"aligner\.(encoder_proj|encoder)\.(.+)": r"aligner.\1.\2",
    r"aligner\.decoder_query": r"decoder:decoder_query.weight",
    r"aligner\.(decoder_proj|decoder)\.(.+)": r"decoder:\1.\2",
}
REFERENCE_IGNORED = {
    r"gpt_model\.decoder\.output_projection\.weight": "the same weight as embed_tokens",
    r"gpt_model\.decoder\.embed_positions\._float_tensor": "a marker of the computed position table",
    r"gpt_model\.decoder\.self_attn_sope\.scale": "xPos, which the original declares but never applies",
    rf"{_BLOCK}\.attn\..+": "the attention that ts_attn replaced",
    r"img_model\.visual\.proj": "CLIP's pooled projection, not used",
    r"aligner\.clip_encoder\..+": "the frozen CLIP text encoder of stage 2",
    r"diffusion_unet\..+": "the frozen U-Net; take it from Stable Diffusion",
    r"vae\..+": "the frozen autoencoder; take it from Stable Diffusion",
}
KOSMOS2_NAMES = {r"((?:text_model\.model|vision_model\.model|image_to_text_projection)\..+)": r"mllm.\1"}
KOSMOS2_IGNORED = {
    r"text_model\.lm_head\.weight": "the same weight as embed_tokens",
    r"text_model\.model\.embed_positions\..+": "the computed position table",
    r"vision_model\.model\.embeddings\.position_ids": "a computed range",
}
# Tables with more rows than ours, which are never used: positions beyond the longest sequence.
TRIMMED = (
    "aligner.encoder_proj.embed_positions.weight",
    "decoder_query.weight",
    "decoder_proj.embed_positions.weight",
)
EMBEDDING = "mllm.text_model.model.embed_tokens.weight"


def rename(name: str, names: Mapping[str, str]) -> str | None:
    """Our name for theirs, or None if no pattern matches."""
    for pattern, ours in names.items():
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(ours)
    return None
