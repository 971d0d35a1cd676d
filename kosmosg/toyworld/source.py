"""The toy world as a source: scenes, pairs of scenes for edits, questions about scenes. Needs no files.

Scene number i of a seed is always the same, so a larger dataset contains a smaller one of the same seed. Held-out
subjects never appear: what is sampled here is for training.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from kosmosg.data.annotators.base import Sample
from kosmosg.data.image_bytes import encode_image
from kosmosg.data.sources.base import Item, Reader, ReadyRow, SourceRow
from kosmosg.errors import ConfigError, DataError
from kosmosg.toyworld.questions import sample_question
from kosmosg.toyworld.scene import EDIT_KINDS, SIZE, caption, render, sample_edit, sample_scene, sample_words


class _Numbered:
    """Rows 0 to `count` of a seed, cut into shards of `shard_rows`."""

    shuffled = False

    def __init__(self, count: int, seed: int = 0, shard_rows: int = 500) -> None:
        self.count = count
        self.seed = seed
        self.shard_rows = shard_rows

    def items(self) -> Iterator[Item]:
        if self.count < 1:
            raise DataError(
                f"the toy world was asked for {self.count} rows; set toyworld.scenes, toyworld.edits or "
                "toyworld.questions to 1 or more"
            )
        for start in range(0, self.count, self.shard_rows):
            length = min(self.shard_rows, self.count - start)
            yield Item(str(start), "toy world", start, length, length, stamp=str(length))


class SceneReader(_Numbered):
    """`count` scenes; each travels with its specification as JSON, which the toy world's annotators read."""

    kind = "composition"
    annotated = True

    def describe(self) -> dict[str, Any]:
        return {"layout": "scenes of the toy world", "seed": self.seed}

    def read(self, items: Sequence[Item]) -> Iterator[SourceRow]:
        for item in items:
            numbers = range(item.start, item.start + item.length)
            scenes = [sample_scene(np.random.default_rng([self.seed, 0, number])) for number in numbers]
            for number, scene, pixels in zip(numbers, scenes, render(scenes), strict=True):
                encoded = encode_image(Image.fromarray(pixels))
                yield Sample(
                    id=f"world-{self.seed}-{number:06d}",
                    source="toy world",
                    encoded=encoded,
                    sha256=hashlib.sha256(encoded).hexdigest(),
                    hints={"scene": scene.to_json()},
                )


class EditReader(_Numbered):
    """`count` editing examples: a scene, an instruction, the scene afterwards."""

    kind = "edit"
    annotated = False

    def __init__(self, count: int, seed: int = 0, shard_rows: int = 500, kinds: Sequence[str] = EDIT_KINDS) -> None:
        super().__init__(count, seed, shard_rows)
        self.kinds = tuple(kinds)

    def describe(self) -> dict[str, Any]:
        told = {"layout": "edits of the toy world", "seed": self.seed}
        # The usual kinds go untold: datasets that were built before there was a choice stay what they are.
        return told if self.kinds == EDIT_KINDS else told | {"kinds": list(self.kinds)}

    def read(self, items: Sequence[Item]) -> Iterator[SourceRow]:
        for item in items:
            numbers = range(item.start, item.start + item.length)
            generators = [np.random.default_rng([self.seed, 1, number]) for number in numbers]
            edits = [sample_edit(rng, kinds=self.kinds) for rng in generators]
            befores, afters = render([e.before for e in edits]), render([e.after for e in edits])
            for number, rng, edit, before, after in zip(numbers, generators, edits, befores, afters, strict=True):
                yield ReadyRow(
                    {
                        "id": f"world-edit-{self.seed}-{number:06d}",
                        "caption": caption(edit.before, sample_words(rng, edit.before)).text,
                        "instruction": edit.instruction,
                        "before": encode_image(Image.fromarray(before)),
                        "after": encode_image(Image.fromarray(after)),
                        "source": "toy world",
                    }
                )


class QuestionReader(_Numbered):
    """`count` images, each with a question and its answer for a text."""

    kind = "caption"
    annotated = False

    def describe(self) -> dict[str, Any]:
        return {"layout": "questions about the toy world", "seed": self.seed}

    def read(self, items: Sequence[Item]) -> Iterator[SourceRow]:
        for item in items:
            numbers = range(item.start, item.start + item.length)
            generators = [np.random.default_rng([self.seed, 2, number]) for number in numbers]
            scenes = [sample_scene(rng) for rng in generators]
            for number, rng, scene, pixels in zip(numbers, generators, scenes, render(scenes), strict=True):
                question = sample_question(rng, scene)
                yield ReadyRow(
                    {
                        "id": f"world-question-{self.seed}-{number:06d}",
                        "text": f"{question.asked} {question.answer}",
                        "image": encode_image(Image.fromarray(pixels)),
                        "width": SIZE,
                        "height": SIZE,
                        "source": "toy world",
                    }
                )


@dataclass(frozen=True)
class Toyworld:
    """The entry of `SOURCES`: scenes, then edits and questions if there are to be any."""

    steps: ClassVar[tuple[str, ...]] = ("toyworld_captions", "toyworld_entities", "toyworld_masks")
    hints: ClassVar[tuple[str, ...]] = ("scene",)

    scenes: int = 8000
    """Composition records."""
    edits: int = 0
    """Edit records (before, instruction, after)."""
    edit_kinds: tuple[str, ...] = EDIT_KINDS
    """What an edit changes, one of these for each; one that stands here twice is twice as frequent."""
    questions: int = 0
    """Caption records that ask about an image and answer."""
    seed: int = 0
    """Seed of all scenes; the same seed gives the same records."""
    shard_rows: int = 500
    """Rows in a shard."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.edit_kinds) - set(EDIT_KINDS)):
            known = ", ".join(dict.fromkeys(EDIT_KINDS))
            raise ConfigError(f"edit_kinds: there is no {unknown[0]!r}; choose from {known}")
        if self.shard_rows < 1:
            raise ConfigError(f"shard_rows is {self.shard_rows}; a shard has at least 1 row")

    def open(self, path: str | None) -> dict[str, Reader]:
        """A reader for each dataset. There is nothing to read, so a path is refused (ConfigError)."""
        if path is not None:
            raise ConfigError(f"source: the toy world generates its data and does not read {path}; leave it out")
        rows, seed = self.shard_rows, self.seed
        readers: dict[str, Reader] = {"composition": SceneReader(self.scenes, seed, rows)}
        if self.edits:
            readers["edit"] = EditReader(self.edits, seed, rows, self.edit_kinds)
        if self.questions:
            readers["questions"] = QuestionReader(self.questions, seed, rows)
        return readers
