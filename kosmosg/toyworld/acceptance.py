"""Acceptance test of the toy world's decoder: what it generates from complete descriptions.

Stage 3 cannot be better than its frozen decoder, and the decoder's loss does not say whether it binds words to
positions. So the recogniser decides, on images generated from complete captions of *held-out* subjects.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from kosmosg.toyworld.benchmark import score
from kosmosg.toyworld.contrastive import mix_colors, text_states, tokenize
from kosmosg.toyworld.recogniser import Recogniser
from kosmosg.toyworld.scene import CaptionWords, caption, render, sample_scene
from kosmosg.toyworld.unet import generate
from kosmosg.toyworld.vae import decode, encode, reconstruction_psnr

THRESHOLDS = {"shape": 0.9, "pattern": 0.9, "background": 0.95}
"""Minimum accuracies with complete descriptions, before stage 3 is worth starting."""
_LAYOUTS = {"one": ("alone",), "two": ("beside", "above"), "three": ("pyramid",)}

Scores = dict[str, dict[str, float]]


def measure(folder: Path, n: int = 192, seed: int = 11, guidance: float = 3.0, steps: int = 20) -> Scores:
    """Scores of a decoder folder on n held-out scenes of one, two and three entities.

    Rows `one`, `two`, `three` are generated from complete descriptions. `two exact` mixes colour words to the exact
    hue, which no caption can express, and shows how precisely the decoder follows it. `... ceiling` is the
    autoencoder's reconstruction of the true image; `vae` has its `psnr` in dB.
    """
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=torch.float32)
    vae = AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32)
    text_model = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    recogniser = Recogniser.load(folder / "recogniser")
    with torch.no_grad():
        null = text_model(tokenize(tokenizer, [""])).last_hidden_state[0]
    scores: Scores = {"vae": {"psnr": reconstruction_psnr(vae)}}
    for name, layouts in _LAYOUTS.items():
        rng = np.random.default_rng([seed, len(layouts), n])
        scenes = [sample_scene(rng, True, layout=layouts[index % len(layouts)]) for index in range(n)]
        texts, words = (
            [caption(scene).text for scene in scenes],
            [[CaptionWords()] * len(scene.entities) for scene in scenes],
        )
        for label, exact in ((name, 0.0), (f"{name} exact", 1.0)):
            if exact and name != "two":
                continue
            with torch.no_grad():
                told = text_states(text_model, mix_colors(rng, tokenizer, texts, scenes, words, chance=exact))
            scores[label] = score(generate(unet, vae, told, null, steps, guidance, seed), scenes, recogniser)
        scores[f"{name} ceiling"] = score(decode(vae, encode(vae, render(scenes))), scenes, recogniser)
    return scores


def shortfalls(scores: Scores) -> list[str]:
    """The missed thresholds, one sentence each; empty if stage 3 may start."""
    return [
        f"{name}: {key} {scores[name][key]:.3f} is below {threshold}"
        for name in _LAYOUTS
        for key, threshold in THRESHOLDS.items()
        if scores[name][key] < threshold
    ]
