"""What a filter is, and the registry of them.

A filter may stand anywhere in `build.steps`: before a costly annotator it saves its work, and behind a captioner it can
read the caption.
"""

from typing import ClassVar, Protocol

from kosmosg.data.annotators.base import Rejection, Sample


class Filter(Protocol):
    """A frozen dataclass, whose fields are what a step may say beside `use`; calling it judges one sample."""

    needs: ClassVar[tuple[str, ...]]
    """Fields of the sample (`kosmosg.data.annotators.base.FIELDS`) that must be filled before."""

    def __call__(self, sample: Sample) -> Rejection | None:
        """None keeps the sample. Raises ImageError where the image cannot be decoded."""
        ...


FILTERS: dict[str, str | type] = {
    "image_size": "kosmosg.data.filters.image_size:ImageSizeFilter",
    "caption_length": "kosmosg.data.filters.caption_length:CaptionLengthFilter",
    "blur": "kosmosg.data.filters.blur:BlurFilter",
}
"""Word of `use` in a step of `build.steps` -> class or `module:class`. A plug-in adds its own (`kosmosg.plugins`)."""
