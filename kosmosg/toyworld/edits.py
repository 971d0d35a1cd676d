"""Editing in the toy world: "<i> make it at sea". Was the change made, and is it still the same subject?

The input image shows a held-out subject. The instruction asks for another place or time, or for another colour, pattern
or shape of the subject. The recogniser then reads the result at the position where the subject was.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from kosmosg.prompt import Prompt
from kosmosg.toyworld.benchmark import HUE_TOLERANCE, shipped_recogniser
from kosmosg.toyworld.scene import (
    COLORS,
    GROUNDS,
    KINDS,
    PATTERNS,
    PLACES,
    SceneEdit,
    SceneEntity,
    render,
    sample_entity,
    sample_scene,
)

ASKED = ("ground", "time", "color", "pattern", "kind")
"""What an instruction may change."""


class EditPrompt(NamedTuple):
    """A prompt, the requested change (one of `ASKED`), and the scenes before and after."""

    prompt: Prompt
    asked: str
    edit: SceneEdit


@dataclass(frozen=True)
class EditCorrectness:
    """For each of B results, 1 if it is right and 0 if not."""

    changed: np.ndarray
    """(B,) the requested change was made."""
    shape: np.ndarray
    """(B,) the shape is still the same, or the requested one."""
    identity: np.ndarray
    """(B,) everything about the subject that should not change (shape, pattern, hue) is as before."""
    background: np.ndarray
    """(B,) ground and time of day are as they should be."""
    done: np.ndarray
    """(B,) all of the above: the requested change, and nothing else."""


def edit_prompts(n: int, seed: int = 0) -> list[EditPrompt]:
    """n prompts about images of one held-out subject; the requested changes cycle through `ASKED`."""
    rng = np.random.default_rng([seed, 77])
    prompts = []
    for number in range(n):
        asked = ASKED[number % len(ASKED)]
        edit = _draw(rng, asked)
        before = Image.fromarray(render([edit.before])[0])
        prompts.append(EditPrompt(Prompt.from_parts([before, edit.instruction]), asked, edit))
    return prompts


def judge_edits(images: Sequence[Image.Image], prompts: Sequence[EditPrompt]) -> EditCorrectness:
    """Compare the results (32 x 32 pixels) with the requests. Raises ValueError if their numbers differ."""
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} images for {len(prompts)} prompts; give one for each")
    scenes = [prompt.edit.after for prompt in prompts]
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in images])
    reading = shipped_recogniser().read(pixels, scenes)
    kinds, patterns, hues = reading.kind[:, 0], reading.pattern[:, 0], reading.hue[:, 0]
    rows = []
    for row, (prompt, scene) in enumerate(zip(prompts, scenes, strict=True)):
        wanted, asked = scene.entities[0], prompt.asked
        ground = reading.ground[row] == GROUNDS.index(scene.ground)
        time = reading.night[row] == int(scene.night)
        kind = kinds[row] == KINDS.index(wanted.kind)
        pattern = patterns[row] == PATTERNS.index(wanted.pattern)
        hue = _difference(float(hues[row]), wanted.hue) < HUE_TOLERANCE
        word = COLORS[round(float(hues[row]) / 45.0) % len(COLORS)] == wanted.color
        answer = {"ground": ground, "time": time, "color": word, "pattern": pattern, "kind": kind}
        kept = {"kind": kind, "pattern": pattern, "color": hue}
        kept.pop(asked, None)
        identity, background = all(kept.values()), ground and time
        rows.append((answer[asked], kind, identity, background, answer[asked] and identity and background))
    return EditCorrectness(*(np.array(column, dtype=np.float64) for column in zip(*rows, strict=True)))


def _draw(rng: np.random.Generator, asked: str) -> SceneEdit:
    before = sample_scene(rng, held_out=True, entities=1)
    subject = before.entities[0]
    if asked == "ground":
        others = [ground for ground in GROUNDS if ground != before.ground]
        after = replace(before, ground=others[int(rng.integers(len(others)))])
        return SceneEdit(before, f"make it {PLACES[after.ground]}", after)
    if asked == "time":
        return SceneEdit(
            before, "make it day" if before.night else "make it night", replace(before, night=not before.night)
        )
    changed, instruction = _another(rng, subject, asked)
    return SceneEdit(before, instruction, replace(before, entities=(changed,)))


def _another(rng: np.random.Generator, subject: SceneEntity, asked: str) -> tuple[SceneEntity, str]:
    while True:
        drawn = sample_entity(rng, False, subject.x, subject.y, subject.radius)
        if asked == "color" and drawn.color != subject.color:
            return replace(subject, hue=drawn.hue), f"turn the {subject.kind} {drawn.color}"
        if asked == "pattern" and drawn.pattern != subject.pattern:
            return replace(subject, pattern=drawn.pattern), f"make the {subject.kind} {drawn.pattern}"
        if asked == "kind" and drawn.kind != subject.kind:
            return replace(subject, kind=drawn.kind), f"turn the {subject.kind} into a {drawn.kind}"


def _difference(first: float, second: float) -> float:
    apart = abs(first - second) % 360.0
    return min(apart, 360.0 - apart)
