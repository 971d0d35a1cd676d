"""The recogniser of the toy world: reads an image at the positions where a scene expects its entities.

A convolutional network classifies shape (or nothing), pattern and hue from the crop around each position; another one
classifies the background from the whole image. It is never trained together with anything that it judges, and unlike
all other parts it was trained on the held-out subjects, so that it can recognise them. Noise and blur in training make
it robust to the softer images of a diffusion model.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kosmosg.errors import CheckpointError
from kosmosg.toyworld.scene import GROUNDS, KINDS, LAYOUTS, PATTERNS, SIZE, Bytes, Ints, Scene, render, sample_scene
from kosmosg.toyworld.training_loop import FitConfig, Fitted, Report, fit, generator, half
from kosmosg.toyworld.vae import to_signed

RECOGNISER_FIT = FitConfig(steps=1200, batch=64, lr=2e-3, warmup=50, decay=700, ema=0.99)
NOTHING = len(KINDS)  # the answer for a place where no entity can be seen
_CROP = 24  # pixels, side of what the network looks at
_MARGIN = 3  # pixels around the entity's radius; covers the jitter of its place


class Reading(NamedTuple):
    """What was recognised in B images at up to E places each; entries beyond a scene's entities mean nothing."""

    kind: Ints  # (B, E) index into KINDS, or NOTHING
    pattern: Ints  # (B, E) index into PATTERNS
    hue: np.ndarray[tuple[int, ...], np.dtype[np.float64]]  # (B, E) degrees in 0..360
    ground: Ints  # (B,) index into GROUNDS
    night: Ints  # (B,) 0 or 1


class Recogniser(nn.Module):
    """0.3 M parameters in two small networks."""

    def __init__(self) -> None:
        super().__init__()
        self.entity = _network(len(KINDS) + 1 + len(PATTERNS) + 2, (32, 64, 96))
        self.place = _network(len(GROUNDS) + 2, (16, 32, 48))

    def forward(self, pixels: Tensor, centres: Tensor, radii: Tensor) -> tuple[Tensor, ...]:
        """Images (B, 3, 32, 32) in -1..1, places (B, E, 2) as x, y and radii (B, E) in pixels.

        Returns logits of shape (B, E, 7) and pattern (B, E, 5), hue as a vector (B, E, 2), logits of ground (B, 4) and
        time (B, 2).
        """
        kind, pattern, hue = self.entity(cut(pixels, centres, radii)).split([len(KINDS) + 1, len(PATTERNS), 2], dim=1)
        ground, night = self.place(pixels).split([len(GROUNDS), 2], dim=1)
        shape = (*radii.shape, -1)
        return kind.view(shape), pattern.view(shape), hue.view(shape), ground, night

    @torch.no_grad()
    def read(self, pixels: Bytes, scenes: Sequence[Scene]) -> Reading:
        """Recognise what images (B, 32, 32, 3) show at the places of these scenes."""
        device = next(self.parameters()).device
        centres, radii = expected_places(scenes)
        parts = [
            [output.cpu() for output in self(to_signed(image).to(device), centre.to(device), radius.to(device))]
            for image, centre, radius in zip(
                np.array_split(pixels, -(-len(pixels) // 256)), centres.chunk(-(-len(pixels) // 256)),
                radii.chunk(-(-len(pixels) // 256)), strict=True,
            )
        ]  # fmt: skip
        kind, pattern, hue, ground, night = (torch.cat(part) for part in zip(*parts, strict=True))
        degrees = torch.rad2deg(torch.atan2(hue[..., 1], hue[..., 0])) % 360.0
        return Reading(
            kind=kind.argmax(-1).numpy(),
            pattern=pattern.argmax(-1).numpy(),
            hue=degrees.double().numpy(),
            ground=ground.argmax(-1).numpy(),
            night=night.argmax(-1).numpy(),
        )

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` and a `config.json` that names the classes, in half precision."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            name: (value.half() if value.is_floating_point() else value).contiguous()
            for name, value in self.state_dict().items()
        }
        save_file(tensors, folder / "model.safetensors")
        names = {"kinds": [*KINDS, "nothing"], "patterns": PATTERNS, "grounds": GROUNDS}
        (folder / "config.json").write_text(json.dumps(names, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Recogniser":
        """Read what `save` wrote."""
        if not (folder / "model.safetensors").is_file():
            raise CheckpointError(f"{folder} holds no recogniser (model.safetensors is missing)")
        model = cls()
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model.eval()


def train_recogniser(
    folder: Path, config: FitConfig = RECOGNISER_FIT, report: Report = print
) -> tuple[Recogniser, Fitted]:
    """Train on scenes of all subjects, held-out ones included, an eighth of them with one entity taken away."""
    torch.manual_seed(config.seed)
    model = Recogniser()

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = generator(config.seed, step)
        scenes = [sample_scene(rng, held_out=bool(rng.random() < 0.15)) for _ in range(config.batch)]
        centres, radii = expected_places(scenes)
        answers = _answers(scenes)
        shown = list(scenes)
        for row in range(0, config.batch, 4):
            gone = int(rng.integers(len(scenes[row].entities)))
            members = scenes[row].entities
            shown[row] = replace(scenes[row], entities=members[:gone] + members[gone + 1 :])
            answers["kind"][row, gone] = NOTHING
        pixels = _soften(rng, to_signed(render(shown)))
        with half():
            outputs = model(pixels, centres, radii)
        kind, pattern, hue, ground, night = (output.float() for output in outputs)
        told, there = answers["told"], answers["told"] & (answers["kind"] != NOTHING)
        parts = {
            "kind": F.cross_entropy(kind[told], answers["kind"][told]),
            "pattern": F.cross_entropy(pattern[there], answers["pattern"][there]),
            "hue": (hue[there] - answers["hue"][there]).square().sum(-1).mean(),
            "place": F.cross_entropy(ground, answers["ground"]) + F.cross_entropy(night, answers["night"]),
        }
        return torch.stack(list(parts.values())).sum(), {name: part.item() for name, part in parts.items()}

    fitted = fit(model, loss, config, folder, report)
    return model, fitted


def expected_places(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Centres (B, E, 2) as x, y and radii (B, E) in pixels where the layouts put their entities, jitter unknown."""
    width = max(len(LAYOUTS[scene.layout]) for scene in scenes)
    centres, radii = torch.full((len(scenes), width, 2), SIZE / 2), torch.full((len(scenes), width), 6.0)
    for row, scene in enumerate(scenes):
        for column, (centre, entity) in enumerate(zip(LAYOUTS[scene.layout], scene.entities, strict=True)):
            centres[row, column] = torch.tensor(centre, dtype=torch.float32)
            radii[row, column] = entity.radius
    return centres, radii


def cut(pixels: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """Square crops (B * E, 3, 24, 24) around places of images (B, 3, 32, 32), resampled bilinearly."""
    entities = radii.shape[1]
    reach = (radii + _MARGIN).flatten()[:, None, None, None]  # (B * E, 1, 1, 1)
    ticks = (torch.arange(_CROP, device=pixels.device) + 0.5) / _CROP * 2.0 - 1.0
    offsets = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), dim=-1)  # (24, 24, 2) as x, y
    where = centres.flatten(0, 1)[:, None, None] + 0.5 + offsets * (reach + 0.5)
    grid = where / SIZE * 2.0 - 1.0
    crops = F.grid_sample(pixels.repeat_interleave(entities, 0), grid, padding_mode="border", align_corners=False)
    return crops.contiguous(memory_format=torch.channels_last)


def _network(outputs: int, widths: tuple[int, int, int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        channels = width
    # Where a stripe lies matters, so the last grid is flattened, not averaged away.
    layers += [nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9 * channels, 128), nn.ReLU(), nn.Linear(128, outputs)]
    return nn.Sequential(*layers)


def _soften(rng: np.random.Generator, pixels: Tensor) -> Tensor:
    """A third as they are, a third blurred, two thirds noisy, all a little brighter or darker."""
    batch = len(pixels)
    small = F.interpolate(pixels, scale_factor=float(rng.uniform(0.55, 0.9)), mode="bilinear", antialias=True)
    blurred = F.interpolate(small, size=pixels.shape[-2:], mode="bilinear")
    share = torch.from_numpy((rng.random(batch) < 0.4) * rng.random(batch)).float()[:, None, None, None]
    noise = torch.from_numpy(rng.standard_normal(pixels.shape, dtype=np.float32))
    level = torch.from_numpy((rng.random(batch) < 0.6) * rng.random(batch) * 0.2).float()[:, None, None, None]
    gain = torch.from_numpy(rng.uniform(0.9, 1.1, batch)).float()[:, None, None, None]
    return (torch.lerp(pixels, blurred, share) * gain + noise * level).contiguous(memory_format=torch.channels_last)


def _answers(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    width = max(len(scene.entities) for scene in scenes)
    kind, pattern = torch.zeros(len(scenes), width, dtype=torch.long), torch.zeros(len(scenes), width, dtype=torch.long)
    hue, told = torch.zeros(len(scenes), width), torch.zeros(len(scenes), width, dtype=torch.bool)
    for row, scene in enumerate(scenes):
        for column, entity in enumerate(scene.entities):
            kind[row, column], pattern[row, column] = KINDS.index(entity.kind), PATTERNS.index(entity.pattern)
            hue[row, column], told[row, column] = np.deg2rad(entity.hue), True
    return {
        "kind": kind,
        "pattern": pattern,
        "hue": torch.stack([hue.cos(), hue.sin()], -1),
        "told": told,
        "ground": torch.tensor([GROUNDS.index(scene.ground) for scene in scenes]),
        "night": torch.tensor([int(scene.night) for scene in scenes]),
    }
