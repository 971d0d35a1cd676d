"""The filter protocol and registry.

A filter may stand anywhere in `build.steps`: before a costly annotator it saves its work, and behind a captioner it can
read the caption. There are two kinds. A `Filter` judges one sample, without weights. A `BatchFilter` has a model, which
wants many at once; it is made and run like an annotator that fills nothing.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from kosmosg.data.annotators.base import Rejection, Sample


class Filter(Protocol):
    """A frozen dataclass, whose fields are what a step may say beside `use`; calling it judges one sample.

    One that reads files has `identity() -> dict[str, str]` as well: what shapes its answers beside its settings, such
    as the sha256 of a list.
    """

    needs: ClassVar[tuple[str, ...]]
    """Fields of the sample (`kosmosg.data.annotators.base.FIELDS`) that must be filled before."""

    def __call__(self, sample: Sample) -> Rejection | None:
        """None keeps the sample; entities may have been taken out of it. Raises ImageError where the image cannot be
        decoded."""
        ...


class BatchFilter(Protocol):
    """A filter with a model.

    A class is made with the fields of its `settings` as keyword arguments, in the process where it runs, and raises
    DataError where a model cannot be loaded. What it says of a sample does not depend on the others in the batch, but
    for rounding.
    """

    needs: ClassVar[tuple[str, ...]]
    """Fields of the sample that must be filled before."""
    settings: ClassVar[type]
    """A frozen dataclass: what a step of the configuration may say beside `use`. It has a field `model`."""
    name: str
    """The model, with the hub's commit where there is one."""

    def __call__(self, samples: Sequence[Sample]) -> Sequence[Rejection | None]:
        """One answer a sample, in order: None keeps it."""
        ...


FILTERS: dict[str, str | type[Any]] = {
    "image_size": "kosmosg.data.filters.image_size:ImageSizeFilter",
    "caption_length": "kosmosg.data.filters.caption_length:CaptionLengthFilter",
    "caption_markup": "kosmosg.data.filters.caption_markup:CaptionMarkupFilter",
    "function_words": "kosmosg.data.filters.function_words:FunctionWordFilter",
    "blur": "kosmosg.data.filters.blur:BlurFilter",
    "contaminated": "kosmosg.data.filters.contaminated:ContaminatedFilter",
    "duplicate": "kosmosg.data.filters.duplicate:DuplicateFilter",
    "mask_coverage": "kosmosg.data.filters.mask_coverage:MaskCoverageFilter",
    "mask_agreement": "kosmosg.data.filters.mask_agreement:MaskAgreementFilter",
    "clip_score": "kosmosg.data.filters.clip_score:ClipScoreFilter",
    "aesthetic": "kosmosg.data.filters.aesthetic:AestheticFilter",
    "classifier": "kosmosg.data.filters.classifier:ClassifierFilter",
}
"""Word of `use` in a step of `build.steps` -> class or `module:class`, of either kind: a `BatchFilter` has `settings`.
A plug-in adds its own (`kosmosg.plugins`)."""
