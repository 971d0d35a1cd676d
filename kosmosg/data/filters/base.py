"""The filter protocol and registry.

A filter may be anywhere in `build.steps`: before an expensive annotator it saves work, after a captioner it can read
the caption.
"""

from typing import ClassVar, Protocol

from kosmosg.data.annotators.base import Rejection, Sample


class Filter(Protocol):
    """A frozen dataclass whose fields are the settings of its step; calling it judges one sample."""

    needs: ClassVar[tuple[str, ...]]
    """Fields of the sample (`kosmosg.data.annotators.base.FIELDS`) that must be filled before."""

    def __call__(self, sample: Sample) -> Rejection | None:
        """Returns None to keep the sample. Raises ImageError if the image cannot be decoded."""
        ...


FILTERS: dict[str, str | type] = {
    "image_size": "kosmosg.data.filters.image_size:ImageSizeFilter",
    "caption_length": "kosmosg.data.filters.caption_length:CaptionLengthFilter",
    "blur": "kosmosg.data.filters.blur:BlurFilter",
}
"""Value of `use` in a step of `build.steps` -> class or `module:class`. Plug-ins can add more (`kosmosg.plugins`)."""
