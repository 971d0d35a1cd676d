"""Builds `kosmosg/assets/toyworld` from scratch: train the parts, check them, assemble them in one diffusers folder.

The parts `vae`, `clip` and `recogniser` are independent and may run in parallel; `unet` needs the first two. Each part
works in its own folder under `work`, can be interrupted at any time and resumes.
"""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPModel

from kosmosg.checkpoint.publish import UNET_WEIGHTS, WEIGHTS, FolderLayout, publish_folder
from kosmosg.toyworld.acceptance import Scores, measure, shortfalls
from kosmosg.toyworld.contrastive import CLIP_FIT, train_clip
from kosmosg.toyworld.recogniser import RECOGNISER_FIT, Recogniser, train_recogniser
from kosmosg.toyworld.scene import PATTERNS
from kosmosg.toyworld.tokenizers import clip_tokenizer, train_sentencepiece
from kosmosg.toyworld.training_loop import FitConfig, Fitted, Report, load_average
from kosmosg.toyworld.unet import UNET_FIT, new_unet, scheduler, train_unet
from kosmosg.toyworld.vae import VAE_FIT, train_vae

INDEPENDENT = ("vae", "clip", "recogniser")
"""Parts that can be trained at the same time; `unet` comes after."""
FITS: dict[str, FitConfig] = {"vae": VAE_FIT, "clip": CLIP_FIT, "recogniser": RECOGNISER_FIT, "unet": UNET_FIT}
_EXPORT, _BILL = "export", "bill.json"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
DECODER = FolderLayout(
    kind="a decoder of the toy world",
    files=(
        *("model_index.json", "README.md", "scores.json", "sentencepiece.bpe.model", "scheduler/scheduler_config.json"),
        *(f"{part}/{name}" for part in ("unet", "vae") for name in ("config.json", *UNET_WEIGHTS)),
        *(f"{part}/{name}" for part in ("text_encoder", "vision_model") for name in ("config.json", *WEIGHTS)),
        *("recogniser/config.json", "recogniser/model.safetensors", *(f"tokenizer/{name}" for name in _TOKENIZER)),
    ),
    identity=("recogniser/config.json", "patterns", list(PATTERNS)),
    kept=("pretrain", "align", "instruct"),
)
"""What `assemble` writes; the three models that were trained for a decoder lie in subfolders of it."""


def scaled(name: str, effort: float = 1.0, seed: int = 0) -> FitConfig:
    """The settings of a part, with a fraction of the shipped weights' steps."""
    config = FITS[name]
    steps, decay = max(1, round(config.steps * effort)), max(1, round(config.decay * effort))
    return replace(config, steps=steps, decay=decay, seed=seed)


def train_part(name: str, work: Path, config: FitConfig | None = None, report: Report = print) -> dict[str, Any]:
    """Train one part in `work/name`, write its weights to `work/name/export` and return its bill (steps, seconds).

    A part whose export already carries the same settings is left alone.
    """
    config = config or FITS[name]
    folder = work / name
    settings = json.loads(json.dumps(asdict(config)))
    if (folder / _BILL).is_file():
        bill: dict[str, Any] = json.loads((folder / _BILL).read_text())
        if bill["settings"] == settings:
            report(f"{name}: already trained ({bill['steps']} steps, {bill['seconds']:.0f} s)")
            return bill
    export = folder / _EXPORT
    fitted: Fitted
    if name == "vae":
        vae, fitted = train_vae(folder, config, report)
        vae.save_pretrained(export)
    elif name == "clip":
        clip, fitted = train_clip(folder, config, report)
        clip.save_pretrained(export)
    elif name == "recogniser":
        recogniser, fitted = train_recogniser(folder, config, report)
        recogniser.save(export)
    else:
        vae = AutoencoderKL.from_pretrained(work / "vae" / _EXPORT)
        clip = CLIPModel.from_pretrained(work / "clip" / _EXPORT)
        unet, fitted = train_unet(folder, vae, clip.text_model, clip_tokenizer(), config, report)
        unet.save_pretrained(export)
    bill = {"settings": settings, "steps": fitted.steps, "seconds": round(fitted.seconds), "metrics": fitted.metrics}
    (folder / _BILL).write_text(json.dumps(bill, indent=2) + "\n")
    return bill


def assemble(work: Path, destination: Path, n: int = 192, report: Report = print) -> Scores:
    """Write the trained parts to `destination` in half precision, measure them there and write the model card.

    The U-Net may still be in training: its current EMA weights are used. An earlier decoder of the toy world is
    replaced, the models in it (`DECODER.kept`) stay. Raises CheckpointError when the folder holds anything else.
    """
    scores: Scores = {}

    def fill(draft: Path) -> None:
        bills = _save_parts(work, draft)
        scores.update(measure(draft, n))
        for name, row in scores.items():
            report(f"{name}: {json.dumps({key: round(value, 3) for key, value in row.items()})}")
        report("; ".join(shortfalls(scores)) or "all thresholds are reached")
        (draft / "scores.json").write_text(json.dumps({"n": n, "scores": scores, "training": bills}, indent=2) + "\n")
        (draft / "README.md").write_text(card(draft, bills, scores, n))

    publish_folder(destination, DECODER, fill)
    return scores


def _save_parts(work: Path, destination: Path) -> dict[str, Any]:
    """The trained parts as a folder of the diffusers layout; gives what each has cost."""
    clip = CLIPModel.from_pretrained(work / "clip" / _EXPORT)
    bills = {name: _bill(work, name) for name in FITS}
    if (work / "unet" / _EXPORT).is_dir():
        unet = UNet2DConditionModel.from_pretrained(work / "unet" / _EXPORT)
    else:
        unet = new_unet()
        bills["unet"]["steps"] = load_average(unet, work / "unet")
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae" / _EXPORT),
        text_encoder=clip.text_model,
        tokenizer=clip_tokenizer(),
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(destination)
    clip.vision_model.half().save_pretrained(destination / "vision_model")
    for part in ("text_encoder", "vision_model"):
        # Halves on disk, floats in memory: without a dtype, transformers would otherwise compute in half precision.
        config = destination / part / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float32"}, indent=2) + "\n")
    recogniser = Recogniser()
    load_average(recogniser, work / "recogniser")
    recogniser.save(destination / "recogniser")
    train_sentencepiece(destination / "sentencepiece.bpe.model")
    return bills


def card(folder: Path, bills: Mapping[str, Any], scores: Scores, n: int) -> str:
    """The model card: what it is, how it was made, what it can do, which bytes it consists of."""
    columns = ("shape", "pattern", "hue", "hue_mean", "background", "whole", "image")
    rows = [
        f"| {name} | " + " | ".join(f"{row[column]:.3g}" for column in columns) + " |"
        for name, row in scores.items()
        if "shape" in row
    ]
    parts = [
        f"| {name} | {bill['settings']['batch']} x {bill['steps']} | {bill['settings']['lr']:g} "
        f"| {bill['settings']['seed']} | {bill['seconds']} s |"
        for name, bill in bills.items()
    ]
    hashes = [
        f"| `{path.relative_to(folder)}` | {path.stat().st_size} | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |"
        for path in sorted([*folder.rglob("*.safetensors"), *folder.rglob("*.model")])
    ]
    return _CARD.format(
        torch=torch.__version__,
        machine=platform.machine(),
        parts="\n".join(parts),
        n=n,
        columns=" | ".join(columns),
        line="|---" * (len(columns) + 1) + "|",
        rows="\n".join(rows),
        psnr=scores["vae"]["psnr"],
        thresholds="; ".join(shortfalls(scores)) or "passed",
        hashes="\n".join(hashes),
    )


def _bill(work: Path, name: str) -> dict[str, Any]:
    """What a part has cost; for one still in training, what its log says so far."""
    path = work / name / _BILL
    if path.is_file():
        bill: dict[str, Any] = json.loads(path.read_text())
        return bill
    last = json.loads((work / name / "log.jsonl").read_text().splitlines()[-1])
    return {"settings": asdict(FITS[name]), "steps": last["step"], "seconds": round(last["seconds"])}


_CARD = """---
license: apache-2.0
library_name: diffusers
---
# The frozen decoder of the toy world

A miniature Stable Diffusion at 32 x 32 pixels: a text-to-image model of the procedural toy world
(`kosmosg.toyworld.scene`), trained from scratch on a CPU. `kosmosg` uses it as the frozen decoder of its three stages
on machines without a GPU. It knows six shapes, five patterns, eight colour words (and, in its text states, all hues
between them), three sizes, four places, day and night, and nothing else. The held-out subjects (one seventh of
shape x colour word x pattern) were not in its training; only the recogniser was trained on them.

## Training
`kosmosg run toyworld toyworld` (its defaults are the settings below), without any downloaded weights or data.
torch {torch}, {machine}, one thread per part; wall time on two cores shared with other work.

Two things make it learn from few samples, and both matter for interpreting its scores: CLIP is trained with dense heads
that must tell what is where (from patches and from words), and half of the colour words in CLIP's and the U-Net's
training are mixtures of two neighbours that specify the exact hue. So the condition space is finer than the vocabulary.

| part | batch x steps | peak lr | seed | time |
|---|---|---|---|---|
{parts}

## Scores
Held-out subjects, {n} scenes per row, 20 DPM-Solver++ steps, guidance 3, read by the recogniser. `one`, `two` and
`three` entities are generated from complete descriptions, `two exact` from colour words mixed to the exact hue;
`ceiling` is the autoencoder's reconstruction of the true image. shape and pattern: accuracy per entity; hue: median and
mean error in degrees (with the eight colour words alone, at least 11.25 on average); background: ground and time both
right; whole: shape and pattern right and hue within 22.5 degrees; image: everything right.

| | {columns} |
{line}
{rows}

Autoencoder on held-out scenes: {psnr:.1f} dB. Thresholds (shape and pattern .9, background .95): {thresholds}.

## Files
| file | bytes | sha256 |
|---|---|---|
{hashes}
"""
