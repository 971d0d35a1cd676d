"""The CLIP of the toy world: its text tower conditions the U-Net, its vision tower is that of the language model.

A stock `transformers.CLIPModel`, trained with CLIP's contrastive loss and two additions that save samples:

* *Dense heads* (thrown away afterwards). Every image patch, and every one of 64 places asked of the text states by
  cross-attention, must tell what stands there: shape, pattern, hue, background. A pair of sentence vectors says too
  little about which word belongs to which place; the U-Net would have to learn that binding alone, at its own cost.
* *Colours between the words.* Half of the colour words are given as a mixture of the embeddings of the two nearest
  ones, in proportion to the hue. Text states thereby form a continuous circle of hues of which the eight words are
  points, and the U-Net that is trained on them can be asked for any hue, by whoever can write such a state: the
  aligned MLLM.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from kosmosg.toyworld.scene import (
    COLORS,
    GROUNDS,
    KINDS,
    PATTERNS,
    Bytes,
    CaptionWords,
    Scene,
    caption,
    crop,
    describe,
    masks,
    render,
    sample_scene,
    sample_words,
)
from kosmosg.toyworld.tokenizers import TEXT_LENGTH, clip_tokenizer
from kosmosg.toyworld.training_loop import FitConfig, Fitted, Report, compiled, fit, generator, half

CLIP_FIT = FitConfig(steps=700, batch=128, lr=1e-3, warmup=100, decay=400, ema=0.99)
WIDTH = 128  # of both towers and of the shared space
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]  # OpenAI CLIP's pixel statistics
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
_PATCHES = 8  # along a side
_PLACES = len(GROUNDS) * 2


class TextBatch(NamedTuple):
    """Token ids (B, 24); for each the id of another token (B, 24) and its share of the embedding (B, 24)."""

    ids: Tensor
    others: Tensor
    shares: Tensor


class Targets(NamedTuple):
    """What stands on each of the 64 patches: (B, 64) indices, hue as (B, 64, 2) cosine and sine, background (B,)."""

    kind: Tensor  # len(KINDS) where nothing stands
    pattern: Tensor
    hue: Tensor
    place: Tensor


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Two towers of three layers, 128 wide; 0.9 M parameters."""
    tower = {"hidden_size": WIDTH, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TEXT_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"image_size": 32, "patch_size": 4}
    return CLIPModel(CLIPConfig(text_config={**tower, **text}, vision_config={**tower, **vision}, projection_dim=WIDTH))


class GroundedCLIP(nn.Module):
    """CLIP and its dense heads, with the whole objective: what is trained here. Only `.clip` is kept."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        outputs = len(KINDS) + 1 + len(PATTERNS) + 2 + _PLACES
        self.seen = nn.Linear(WIDTH, outputs)
        self.told = nn.Linear(WIDTH, outputs)
        self.places = nn.Parameter(torch.randn(_PATCHES**2, WIDTH) * 0.5)
        layer = nn.TransformerDecoderLayer(WIDTH, 4, 256, dropout=0.0, batch_first=True, norm_first=True)
        self.ask = nn.TransformerDecoder(layer, 2, norm=nn.LayerNorm(WIDTH))

    def forward(self, text: TextBatch, pixels: Tensor, targets: Targets, scenes: int) -> tuple[Tensor, Tensor, Tensor]:
        """Contrastive, seen and told losses; the first `scenes` rows are whole scenes, the rest crops of one entity."""
        states = text_states(self.clip.text_model, text)  # (B, 24, D)
        end = (text.ids == self.clip.text_model.eos_token_id).int().argmax(1)
        sentence = F.normalize(self.clip.text_projection(states[torch.arange(len(end)), end]).float(), dim=-1)
        vision = self.clip.vision_model(pixels)
        image = F.normalize(self.clip.visual_projection(vision.pooler_output).float(), dim=-1)
        logits = self.clip.logit_scale.exp().clamp(max=100.0) * sentence @ image.T
        pairs = torch.arange(len(logits))
        contrast = 0.5 * (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs))
        patches = self.clip.vision_model.post_layernorm(vision.last_hidden_state)[:, 1:]
        answers = self.ask(self.places.expand(scenes, -1, -1), states[:scenes])
        seen = _dense(self.seen(patches).float(), targets)
        told = _dense(self.told(answers).float(), Targets(*(target[:scenes] for target in targets)))
        return contrast, seen, told


def train_clip(folder: Path, config: FitConfig = CLIP_FIT, report: Report = print) -> tuple[CLIPModel, Fitted]:
    """Train on three quarters scenes, one quarter crops of one entity; none with held-out subjects."""
    torch.manual_seed(config.seed)
    tokenizer = clip_tokenizer()
    model = GroundedCLIP(new_clip(tokenizer))
    forward = compiled(model.forward) if config.steps > 200 else model.forward  # compiling takes about a minute
    scenes = config.batch * 3 // 4

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = generator(config.seed, step)
        sampled = [sample_scene(rng) for _ in range(config.batch)]
        words = [sample_words(rng, scene) for scene in sampled]
        texts = [
            caption(scene, some, place=rng.random() > 0.06).text for scene, some in zip(sampled, words, strict=True)
        ]
        pixels, occupants = render(sampled), np.stack([_occupants(scene) for scene in sampled])
        for row in range(scenes, config.batch):
            texts[row], words[row], pixels[row], occupants[row] = _close_up(
                rng, sampled[row], words[row], pixels[row], occupants[row]
            )
        text = mix_colors(rng, tokenizer, texts, sampled, words, chance=0.5)
        with half():
            contrast, seen, told = forward(text, to_clip(pixels), _targets(sampled, occupants), scenes)
        parts = {"contrast": contrast.item(), "seen": seen.item(), "told": told.item()}
        return contrast + seen + told, parts

    fitted = fit(model, loss, config, folder, report)
    return model.clip.eval(), fitted


def text_states(text_model: CLIPTextModel, text: TextBatch) -> Tensor:
    """Last hidden states (B, 24, D) after the final norm; what the U-Net is given."""
    embed = text_model.embeddings.token_embedding
    mixed = torch.lerp(embed(text.ids), embed(text.others), text.shares[..., None])
    hidden = text_model.embeddings(inputs_embeds=mixed)
    hidden = text_model.encoder(inputs_embeds=hidden, attention_mask=None, is_causal=True).last_hidden_state
    return text_model.final_layer_norm(hidden)  # type: ignore[no-any-return]


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Token ids (B, 24), padded with the end token as CLIP does."""
    batch = tokenizer(list(texts), padding="max_length", truncation=True, max_length=TEXT_LENGTH, return_tensors="pt")
    return batch.input_ids  # type: ignore[no-any-return]


def mix_colors(
    rng: np.random.Generator,
    tokenizer: CLIPTokenizer,
    texts: Sequence[str],
    scenes: Sequence[Scene],
    words: Sequence[Sequence[CaptionWords]],
    chance: float,
) -> TextBatch:
    """Tokenize captions; each colour word becomes, with this chance, the mixture of words that says its exact hue.

    `words[b]` may cover fewer entities than the scene: the first ones, in the order of the caption.
    """
    ids = tokenize(tokenizer, texts)
    color_ids = torch.tensor(tokenizer.convert_tokens_to_ids([f"{color}</w>" for color in COLORS]))
    others, shares = ids.clone(), torch.zeros(ids.shape)
    is_color = torch.isin(ids, color_ids)
    for row in range(len(scenes)):
        told = [entity for entity, some in zip(scenes[row].entities, words[row], strict=False) if some.color]
        for position, entity in zip(is_color[row].nonzero()[:, 0].tolist(), told, strict=True):
            if rng.random() < chance:
                nearest = round(entity.hue / 45.0)
                off = entity.hue / 45.0 - nearest  # in -0.5..0.5 words
                others[row, position] = color_ids[(nearest + (1 if off > 0 else -1)) % len(COLORS)]
                shares[row, position] = abs(off)
    return TextBatch(ids, others, shares)


def to_clip(pixels: Bytes) -> Tensor:
    """(B, 32, 32, 3) bytes to CLIP's normalised (B, 3, 32, 32)."""
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255.0 - _MEAN) / _STD


def _occupants(scene: Scene) -> Bytes:
    """Which entity each pixel belongs to, counted from 1; 0 is background. (32, 32)"""
    order = np.arange(1, len(scene.entities) + 1, dtype=np.uint8)
    occupied: Bytes = (masks(scene) * order[:, None, None]).max(0)
    return occupied


def _close_up(
    rng: np.random.Generator, scene: Scene, words: tuple[CaptionWords, ...], pixels: Bytes, occupants: Bytes
) -> tuple[str, tuple[CaptionWords, ...], Bytes, Bytes]:
    """The first entity of a scene cut out, on white half of the time, with its words alone."""
    entity, choice = scene.entities[0], words[0]._replace(size=False)
    if rng.random() < 0.5:
        pixels = np.where((occupants == 1)[:, :, None], pixels, np.uint8(255))
    box = entity.box
    return describe(entity, choice), (choice,), crop(pixels, box), crop(occupants[:, :, None], box)[:, :, 0]


def _targets(scenes: Sequence[Scene], occupants: Bytes) -> Targets:
    """Attributes of the entity that covers at least a third of each 4 x 4 patch."""
    batch, width = len(scenes), 3
    kind = np.full((batch, width + 1), len(KINDS))
    pattern, hue = np.zeros((batch, width + 1), dtype=np.int64), np.zeros((batch, width + 1))
    for row, scene in enumerate(scenes):
        for column, entity in enumerate(scene.entities, start=1):
            kind[row, column], pattern[row, column] = KINDS.index(entity.kind), PATTERNS.index(entity.pattern)
            hue[row, column] = np.deg2rad(entity.hue)
    blocks = occupants.reshape(batch, _PATCHES, 4, _PATCHES, 4).transpose(0, 1, 3, 2, 4).reshape(batch, -1, 16)
    counts = np.stack([(blocks == index).sum(-1) for index in range(1, width + 1)], -1)  # (B, 64, 3)
    owner = np.where(counts.max(-1) >= 6, counts.argmax(-1) + 1, 0)
    angle = np.take_along_axis(hue, owner, 1)
    place = [GROUNDS.index(scene.ground) * 2 + int(scene.night) for scene in scenes]
    return Targets(
        torch.from_numpy(np.take_along_axis(kind, owner, 1)),
        torch.from_numpy(np.take_along_axis(pattern, owner, 1)),
        torch.from_numpy(np.stack([np.cos(angle), np.sin(angle)], -1)).float(),
        torch.tensor(place),
    )


def _dense(outputs: Tensor, targets: Targets) -> Tensor:
    """Cross-entropies of shape, pattern and background plus the squared error of the hue, where an entity is."""
    kind, pattern, hue, place = outputs.split([len(KINDS) + 1, len(PATTERNS), 2, _PLACES], dim=-1)
    there = (targets.kind < len(KINDS)).float()
    per_entity = F.cross_entropy(pattern.transpose(1, 2), targets.pattern, reduction="none")
    per_entity = per_entity + 2.0 * (hue - targets.hue).square().sum(-1)
    shape = F.cross_entropy(kind.transpose(1, 2), targets.kind, reduction="none")
    shape = shape * (1.0 + 2.0 * there)  # background patches are most of an image
    ground = F.cross_entropy(place.mean(1), targets.place)
    loss: Tensor = shape.mean() + (per_entity * there).sum() / there.sum() + 0.5 * ground
    return loss
