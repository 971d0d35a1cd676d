"""The annotator protocol: captions of images, entities in the captions, and masks of the entities.

An annotator is a plain callable on a batch of samples, for Ray Data, a test or a notebook. It returns one answer per
sample, or a `Rejection` with the reason, never a guess:

    captioner(samples)      -> [str | Rejection]                 the caption
    entity_finder(samples)  -> [EntitySpans | Rejection]         the words of the caption that are objects in the image
    segmenter(samples)      -> [list[EntityMask] | Rejection]    for every span, in order, where that object is

The answer for a sample does not depend on the others in its batch, but for rounding: padded to another length, or in
another number of rows, the same product may be summed up in another order.

Every annotator has a `name` that goes into the records and includes the model's id, so a dataset says how it was made.
The setting `build.steps` lists which of them run, and in which order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kosmosg.prompt import read_image

Probability = NDArray[np.uint8]  # (H, W) of the sample's image, 0 = surely not, 255 = surely the entity


class Rejection(NamedTuple):
    """Why a sample does not become a record: a short reason code, and a sentence for the user."""

    reason: str
    message: str


class Span(NamedTuple):
    """Words of a caption: `caption[start:end] == text`."""

    text: str
    start: int
    end: int


class EntitySpans(NamedTuple):
    """An entity finder's answer for one caption: the spans in reading order, and why other words were dropped."""

    spans: list[Span]
    dropped: list[Rejection]


@dataclass(frozen=True)
class Reference:
    """The same subject in another image: a better reference than a cut-out of the target itself."""

    image: Image.Image  # square
    mask: NDArray[np.bool_]  # of the same size, True on the subject


@dataclass(frozen=True)
class EntityMask:
    """Where one entity is in the sample's image, and optionally the same entity in another image."""

    probability: Probability
    reference: Reference | None = None


@dataclass
class Sample:
    """An image that is becoming a record. Each step fills in one more field."""

    id: str
    source: str
    encoded: bytes  # what `read_image` decodes
    sha256: str = ""  # of the source file
    hints: Mapping[str, str] = field(default_factory=dict)  # from the reader: folder, sidecar text, scene
    caption: str = ""
    spans: list[Span] = field(default_factory=list)
    cuts: list[EntityMask] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)  # reasons of entities that were dropped

    @cached_property
    def image(self) -> Image.Image:
        """The image, upright RGB, decoded on first use. Raises ImageError."""
        return read_image(self.encoded, name=self.id)

    def fill(self, name: str, answer: Any) -> None:
        """Store an annotator's answer in the field `name`, one of `FIELDS`."""
        if name == "caption":
            self.caption = answer
        elif name == "entities":
            self.spans = answer.spans
            self.dropped += [dropped.reason for dropped in answer.dropped]
        elif name == "masks":
            self.cuts = answer
        else:
            raise ValueError(f"a sample has no field {name!r} to fill, only {', '.join(FIELDS)}")

    def __getstate__(self) -> dict[str, Any]:
        # The decoded pixels do not travel between processes: they are many times the encoded bytes.
        return {key: value for key, value in self.__dict__.items() if key != "image"}


@dataclass(frozen=True)
class NoSettings:
    """Settings of an annotator that has none."""


class Annotator(Protocol):
    """One annotator; an answer is a str, EntitySpans or list[EntityMask], depending on the field that it fills.

    The class is instantiated with the fields of its `settings` as keyword arguments, in the process where it runs. If
    the settings have a field `model` (Hub id or folder), it loads weights and runs in processes of its own.
    """

    fills: ClassVar[str]
    """The field of the sample that it fills, one of `FIELDS`."""
    settings: ClassVar[type]
    """A frozen dataclass with the settings that a step in `build.steps` accepts besides `use`."""
    hint: ClassVar[str]
    """A hint of the sample that it requires; "" for none."""
    name: str
    """Goes into the records."""

    def __call__(self, samples: Sequence[Sample]) -> Sequence[Any]: ...


@runtime_checkable
class SizedAnnotator(Protocol):
    """An annotator whose batches are cheaper if the samples in them are of like size."""

    def size(self, sample: Sample) -> int | tuple[int, ...]:
        """How large a sample is for this annotator (tokens, pixels); must not raise for a sample that is damaged."""
        ...


@dataclass(frozen=True)
class Field:
    """A field of a sample that annotators fill."""

    needs: tuple[str, ...]
    """Fields that must be filled before."""
    credit: str
    """The field of a record that names the annotator."""


FIELDS: dict[str, Field] = {
    "caption": Field((), "captioner"),
    "entities": Field(("caption",), "entity_finder"),
    "masks": Field(("entities",), "segmenter"),
}

ANNOTATORS: dict[str, str | type] = {
    "sidecar": "kosmosg.data.annotators.sidecar:SidecarCaptioner",
    "told": "kosmosg.data.annotators.told:ToldCaptioner",
    "blip2": "kosmosg.data.annotators.blip2:Blip2Captioner",
    "nouns": "kosmosg.data.annotators.nouns:NounFinder",
    "noun_chunks": "kosmosg.data.annotators.noun_chunks:NounChunkFinder",
    "language_model": "kosmosg.data.annotators.language_model:LanguageEntityFinder",
    "grabcut": "kosmosg.data.annotators.grabcut:GrabCutSegmenter",
    "clipseg": "kosmosg.data.annotators.clipseg:ClipSegSegmenter",
}
"""Value of `use` in a step of `build.steps` -> class or `module:class`. Plug-ins can add more (`kosmosg.plugins`)."""
