"""Scores of the toy world: does an image show the requested subjects, each in the right position?

The recogniser reads every image at the positions of the scene that it should show. A subject counts as *whole* if its
shape and pattern are right and its hue is within half a colour word (22.5 degrees). Guessing gives `CHANCE`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from kosmosg.prompt import Prompt
from kosmosg.toyworld.assets import toyworld_folder
from kosmosg.toyworld.recogniser import Recogniser
from kosmosg.toyworld.scene import (
    GROUNDS,
    KINDS,
    PATTERNS,
    SIZES,
    Bytes,
    CaptionWords,
    Scene,
    SceneEntity,
    caption,
    reference,
    sample_scene,
)

CHANCE = {
    "shape": 1 / len(KINDS),
    "pattern": 1 / len(PATTERNS),
    "hue": 90.0,  # median and mean error of a random hue, degrees
    "background": 1 / (2 * len(GROUNDS)),
    "whole": 1 / len(KINDS) / len(PATTERNS) / 8,
}
HUE_TOLERANCE = 22.5  # degrees, half of a colour word

Style = Literal["class", "image", "text", "full"]


class ToyworldPrompt(NamedTuple):
    """A prompt and the scene that a perfect image would show (up to a pixel of jitter)."""

    prompt: Prompt
    scene: Scene


@dataclass(frozen=True)
class Correctness:
    """What is right, per entity (M of them in B images) and per image."""

    image: npt.NDArray[np.int64]  # (M,) which image the entity is in
    shape: npt.NDArray[np.bool_]  # (M,)
    pattern: npt.NDArray[np.bool_]  # (M,)
    hue_error: npt.NDArray[np.float64]  # (M,) degrees in 0..180
    background: npt.NDArray[np.bool_]  # (B,) ground and time of day both right

    @property
    def whole(self) -> npt.NDArray[np.bool_]:
        """(M,) shape, pattern and hue right."""
        found: npt.NDArray[np.bool_] = self.shape & self.pattern & (self.hue_error < HUE_TOLERANCE)
        return found

    def scores(self) -> dict[str, float]:
        """Accuracies; `hue` is the median error in degrees, `hue_mean` its mean."""
        every = np.bincount(self.image, ~self.whole, minlength=len(self.background)) == 0
        return {
            "shape": float(self.shape.mean()),
            "pattern": float(self.pattern.mean()),
            "hue": float(np.median(self.hue_error)),
            "hue_mean": float(self.hue_error.mean()),
            "background": float(self.background.mean()),
            "whole": float(self.whole.mean()),
            "image": float((every & self.background).mean()),
        }


def judge(
    images: Sequence[Image.Image] | Bytes, scenes: Sequence[Scene], recogniser: Recogniser | None = None
) -> Correctness:
    """Compare images (PIL images of any size, or (B, 32, 32, 3) bytes) with the scenes that they should show."""
    if len(images) != len(scenes):
        raise ValueError(f"{len(images)} images for {len(scenes)} scenes; give one image per scene")
    reading = (recogniser or shipped_recogniser()).read(_as_bytes(images), scenes)
    places = [(row, column, entity) for row, scene in enumerate(scenes) for column, entity in enumerate(scene.entities)]
    rows, columns = np.array([place[0] for place in places]), np.array([place[1] for place in places])
    entities = [place[2] for place in places]
    difference = np.abs(reading.hue[rows, columns] - np.array([entity.hue for entity in entities])) % 360.0
    return Correctness(
        image=rows,
        shape=reading.kind[rows, columns] == np.array([KINDS.index(entity.kind) for entity in entities]),
        pattern=reading.pattern[rows, columns] == np.array([PATTERNS.index(entity.pattern) for entity in entities]),
        hue_error=np.minimum(difference, 360.0 - difference),
        background=(reading.ground == np.array([GROUNDS.index(scene.ground) for scene in scenes]))
        & (reading.night == np.array([int(scene.night) for scene in scenes])),
    )


def score(
    images: Sequence[Image.Image] | Bytes, scenes: Sequence[Scene], recogniser: Recogniser | None = None
) -> dict[str, float]:
    """`judge(...).scores()`: shape, pattern, hue (median, degrees), hue_mean, background, whole, image."""
    return judge(images, scenes, recogniser).scores()


def toyworld_prompts(
    n: int,
    entities: int,
    held_out: bool = True,
    seed: int = 0,
    style: Style = "class",
) -> list[ToyworldPrompt]:
    """n prompts and the scenes that they describe; the same seed gives the same scenes in every style.

    Every reference image is cut out of *another* scene (other size, position and background), on white. Styles: "class"
    is `a ball <i> and a cat <i> at sea`, "image" is `<i> and <i> at sea`, "text" is `a ball and a cat at sea` (a lower
    bound), "full" is `a striped red ball and a spotted blue cat at sea` (the best that words can do).
    """
    rng = np.random.default_rng([seed, entities, int(held_out)])
    prompts = []
    for _ in range(n):
        scene = sample_scene(rng, held_out, entities)
        references = [Image.fromarray(another_view(rng, entity, background=False)) for entity in scene.entities]
        if style == "image" and scene.layout == "alone":  # no word tells the size: the one that has none is meant
            middle = next(radius for radius, word in SIZES.items() if not word)
            scene = replace(scene, entities=(replace(scene.entities[0], radius=middle),))
        prompts.append(ToyworldPrompt(_prompt(scene, references, style), scene))
    return prompts


def another_view(rng: np.random.Generator, entity: SceneEntity, background: bool) -> Bytes:
    """A reference image (32, 32, 3) of the same subject, cut out of a new scene."""
    scene = sample_scene(rng)
    index = int(rng.integers(len(scene.entities)))
    there = scene.entities[index]
    same = replace(entity, x=there.x, y=there.y, radius=there.radius)
    members = (*scene.entities[:index], same, *scene.entities[index + 1 :])
    return reference(replace(scene, entities=members), index, background)


@cache
def shipped_recogniser() -> Recogniser:
    """The recogniser of `kosmosg/assets/toyworld`, loaded once."""
    return Recogniser.load(toyworld_folder() / "recogniser")


def _prompt(scene: Scene, references: Sequence[Image.Image], style: Style) -> Prompt:
    if style == "full":
        return Prompt.from_parts([caption(scene).text])
    text, spans = caption(scene, CaptionWords(size=True, pattern=False, color=False))
    if style == "text":
        return Prompt.from_parts([text])
    if style not in ("class", "image"):
        raise ValueError(f"unknown style {style!r}; known: class, image, text, full")
    parts: list[str | Image.Image] = []
    end = 0
    for (start, stop), image in zip(spans, references, strict=True):
        lead = text[end:stop] + " " if style == "class" else text[end:start]
        parts += [lead, image] if lead else [image]
        end = stop
    return Prompt.from_parts([*parts, text[end:]])


def _as_bytes(images: Sequence[Image.Image] | Bytes) -> Bytes:
    if isinstance(images, np.ndarray):
        return images
    size = (32, 32)
    rgb = [image.convert("RGB") for image in images]
    # Images may come enlarged for human eyes; the area mean undoes a whole-number enlargement exactly.
    small = [image if image.size == size else image.resize(size, Image.Resampling.BOX) for image in rgb]
    return np.stack([np.asarray(image) for image in small])
