"""CLIP vision towers from OpenAI's files and from transformers checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from kosmosg.checkpoint.state_dict import Source, open_weights
from kosmosg.convert.conversion_plan import require_same_shape
from kosmosg.convert.key_mapping import REFERENCE_NAMES, rename
from kosmosg.errors import CheckpointError
from kosmosg.model.vision import VisionTower


def load_vision(tower: VisionTower, source: Source) -> None:
    """Fill a vision tower from an OpenAI CLIP file (`visual.*`) or a transformers CLIP folder or state dict, in place.

    Every parameter of the tower must be there with its shape; other parts of CLIP are ignored.
    """
    ours = tower.state_dict()
    found: dict[str, Tensor] = {}
    theirs = as_reference_vision(open_weights(source))
    for name in theirs:
        hugging = re.fullmatch(r"(?:vision_model\.)?((?:embeddings|pre_layrnorm|encoder|post_layernorm)\..+)", name)
        target = f"mllm.vision_model.model.{hugging[1]}" if hugging else rename(name, REFERENCE_NAMES)
        target = (target or "").removeprefix("mllm.vision_model.")
        if target in ours:
            found[target] = theirs[name]
    for name, tensor in ours.items():
        if name not in found:
            raise CheckpointError(f"the CLIP checkpoint lacks {name}; give a CLIP whose vision tower is a ViT")
        require_same_shape(name, tuple(found[name].shape), tuple(tensor.shape))
    tower.load_state_dict(found)


def as_reference_vision(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """An OpenAI CLIP state dict in the released checkpoint's names; its joint projection becomes query, key, value."""
    renamed: dict[str, Tensor] = {}
    for name in weights:
        joint = re.fullmatch(r"visual\.(transformer\.resblocks\.\d+)\.attn\.(in_proj_|out_proj\.)(weight|bias)", name)
        if joint and joint[2] == "in_proj_":
            for part, tensor in zip("qkv", weights[name].chunk(3), strict=True):
                renamed[f"img_model.visual.{joint[1]}.ts_attn.{part}_proj.{joint[3]}"] = tensor
        elif joint:
            renamed.setdefault(f"img_model.visual.{joint[1]}.ts_attn.out_proj.{joint[3]}", weights[name])
        else:
            renamed[f"img_model.{name}" if name.startswith("visual.") else name] = weights[name]
    return renamed
