"""The frozen decoder of the small world: what Stable Diffusion is to the paper, trained from nothing in two CPU hours.

`vae`, `clip`, `recogniser` and `unet` train one part each with the loop of `fit`; `build` puts them into one folder in
the diffusers layout. `kosmosg run foundation world` does all of it; the result ships in `kosmosg/assets/world`.
"""

from pathlib import Path


def world_folder() -> Path:
    """Where the small world's shipped weights lie: `unet/ vae/ scheduler/ text_encoder/ tokenizer/` as diffusers wants
    them, `vision_model/` (CLIP's vision tower), `recogniser/` and `sentencepiece.bpe.model`.
    """
    return Path(__file__).parents[1] / "assets" / "world"
