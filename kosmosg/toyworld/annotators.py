"""Exact annotators of the toy world: the rendered scene says what is in the image.

A scene is passed as JSON in the hint `scene`. All choices (which words a caption uses, in which other scene the
reference is rendered) come from a generator seeded with the sample's id, so a record depends on nothing else.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from kosmosg.data.annotators.base import EntityMask, EntitySpans, NoSettings, Reference, Sample, Span
from kosmosg.toyworld.scene import (
    Scene,
    SceneCaption,
    SceneEntity,
    caption,
    crop,
    masks,
    render,
    sample_scene,
    sample_words,
)


class ToyworldCaptioner:
    """The scene in the toy world's grammar; colour and pattern words are left out at random, entity by entity."""

    fills = "caption"
    settings = NoSettings
    hint = "scene"
    name = "toyworld grammar"

    def __call__(self, samples: Sequence[Sample]) -> list[str]:
        return [_told(sample).text for sample in samples]


class ToyworldEntityFinder:
    """The noun phrase of every entity, exactly where the grammar put it."""

    fills = "entities"
    settings = NoSettings
    hint = "scene"
    name = "toyworld grammar"

    def __call__(self, samples: Sequence[Sample]) -> list[EntitySpans]:
        told = [_told(sample) for sample in samples]
        return [EntitySpans([Span(text[start:end], start, end) for start, end in spans], []) for text, spans in told]


class ToyworldSegmenter:
    """The pixels of every entity, with a reference: the same subject rendered in another scene."""

    fills = "masks"
    settings = NoSettings
    hint = "scene"
    name = "toyworld painter"

    def __call__(self, samples: Sequence[Sample]) -> list[list[EntityMask]]:
        others = [
            [other_scene(e, _rng(s, f"reference {i}")) for i, e in enumerate(_scene(s).entities)] for s in samples
        ]
        rendered = iter(render([scene for row in others for scene, _ in row]))
        answers = []
        for sample, row in zip(samples, others, strict=True):
            cuts = []
            for mask, (scene, index) in zip(masks(_scene(sample)), row, strict=True):
                box = scene.entities[index].box
                image = Image.fromarray(crop(next(rendered), box))
                reference = Reference(image, crop(masks(scene)[index].astype(np.uint8), box) > 0)
                cuts.append(EntityMask(mask.astype(np.uint8) * 255, reference))
            answers.append(cuts)
        return answers


def other_scene(entity: SceneEntity, rng: np.random.Generator) -> tuple[Scene, int]:
    """A fresh scene in which `entity` takes one of the places, and the index of that place."""
    scene = sample_scene(rng)
    index = int(rng.integers(len(scene.entities)))
    seat = scene.entities[index]
    guest = replace(entity, x=seat.x, y=seat.y, radius=seat.radius)
    return replace(scene, entities=(*scene.entities[:index], guest, *scene.entities[index + 1 :])), index


def _scene(sample: Sample) -> Scene:
    return Scene.from_json(sample.hints["scene"])


def _told(sample: Sample) -> SceneCaption:
    scene = _scene(sample)
    return caption(scene, sample_words(_rng(sample, "words"), scene))


def _rng(sample: Sample, purpose: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{sample.id} {purpose}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))
