"""Annotators: who says what an image shows, which of the words are things, and where those things are.

An annotator is a plain callable on a batch of samples; Ray Data maps it, a test or a notebook calls it. It gives one
answer a sample, and where it has none a `Rejection` with the reason, never a guess:

    captioner(samples)      -> [str | Rejection]          the caption
    entity_finder(samples)  -> [EntitySpans | Rejection]        the words of the caption that are things in the image
    segmenter(samples)      -> [list[EntityMask] | Rejection]    for every span, in order, where that thing is

Every annotator carries a `name` that goes into the records: with the model's id, a dataset says who made it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kosmosg.prompt import read_image

Probability = NDArray[np.uint8]  # (H, W) of the sample's image, 0 = surely not, 255 = surely the entity


class Rejection(NamedTuple):
    """Why a sample does not become a record: a short word to count by, and a sentence for a human."""

    reason: str
    message: str


class Span(NamedTuple):
    """Words of a caption: `caption[start:end] == text`."""

    text: str
    start: int
    end: int


class EntitySpans(NamedTuple):
    """What an entity finder says of one caption: the spans in reading order, and why other words were left out."""

    spans: list[Span]
    dropped: list[Rejection]


@dataclass(frozen=True)
class Reference:
    """The same subject in another image: a better reference than a cut-out of the target itself."""

    image: Image.Image  # square
    mask: NDArray[np.bool_]  # of the same size, True on the subject


@dataclass(frozen=True)
class EntityMask:
    """Where one entity is in the sample's image, and where there is one, the same entity in another image."""

    probability: Probability
    reference: Reference | None = None


@dataclass
class Sample:
    """An image on its way to becoming a record. Each stage fills in one more field."""

    id: str
    source: str
    encoded: bytes  # what `read_image` decodes
    sha256: str = ""  # of the source file
    hints: Mapping[str, str] = field(default_factory=dict)  # what the reader knows: folder, sidecar text, scene
    caption: str = ""
    spans: list[Span] = field(default_factory=list)
    cuts: list[EntityMask] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)  # reasons of entities that were dropped on the way

    @cached_property
    def image(self) -> Image.Image:
        """The image, upright RGB, decoded on first use. Raises ImageError."""
        return read_image(self.encoded, name=self.id)


@dataclass(frozen=True)
class AnnotatorEntry:
    """How an annotator is made."""

    annotator: str
    """`module:class`."""
    model: str | None = None
    """Hub id of the model that it loads by default, given as first argument with a `Loading`; None for none."""
    source: str | None = None
    """The only source whose samples it can read; None for images of any."""
    options: tuple[str, ...] = ()
    """Settings that it takes as arguments."""


CAPTIONERS: dict[str, AnnotatorEntry] = {
    "sidecar": AnnotatorEntry("kosmosg.data.annotators.sidecar:SidecarCaptioner", options=("template",)),
    "blip2": AnnotatorEntry("kosmosg.data.annotators.blip2:Blip2Captioner", "Salesforce/blip2-opt-2.7b"),
}
ENTITY_FINDERS: dict[str, AnnotatorEntry] = {
    "noun": AnnotatorEntry("kosmosg.data.annotators.nouns:NounFinder"),
    # What the original used is too old to be asked for in every case: its language model needs code from the hub.
    "language": AnnotatorEntry(
        "kosmosg.data.annotators.language_model:LanguageEntityFinder", "Qwen/Qwen2.5-1.5B-Instruct"
    ),
}
SEGMENTERS: dict[str, AnnotatorEntry] = {
    "grabcut": AnnotatorEntry("kosmosg.data.annotators.grabcut:GrabCutSegmenter"),
    "clipseg": AnnotatorEntry("kosmosg.data.annotators.clipseg:ClipSegSegmenter", "CIDAS/clipseg-rd64-refined"),
}
ANNOTATORS: dict[str, dict[str, AnnotatorEntry]] = {
    "captioner": CAPTIONERS,
    "entities": ENTITY_FINDERS,
    "masks": SEGMENTERS,
}
"""Section of `build` -> word of its setting `use` -> annotator. A plug-in adds its own (`kosmosg.plugins`)."""


class Annotator(Protocol):
    """What the three kinds have in common; an answer is str, EntitySpans or list[EntityMask]."""

    name: str

    def __call__(self, samples: Sequence[Sample]) -> Sequence[Any]: ...
