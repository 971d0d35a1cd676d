"""The frozen decoder of the toy world: what Stable Diffusion is to the paper, made from scratch on a CPU.

`vae`, `contrastive` (CLIP), `recogniser` and `unet` train one part each with the loop of `training_loop`; `acceptance`
measures the result and `build` puts it into one folder in the diffusers layout. `kosmosg run toyworld toyworld` does
all of it; what it made ships in `kosmosg/assets/toyworld`.
"""

from pathlib import Path

TRAINED = ("pretrain", "align", "instruct")


def toyworld_folder() -> Path:
    """Where the toy world's shipped weights lie: `unet/ vae/ scheduler/ text_encoder/ tokenizer/` as diffusers wants
    them, `vision_model/` (CLIP's vision tower), `recogniser/` and `sentencepiece.bpe.model`.
    """
    return Path(__file__).parents[1] / "assets" / "toyworld"
