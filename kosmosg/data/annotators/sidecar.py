"""Captions for a folder of photos without any model: the text file beside the photo, or the name of its folder."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from kosmosg.data.annotators.base import Rejection, Sample
from kosmosg.data.annotators.nouns import word_set
from kosmosg.errors import ConfigError

# What cameras and phones call their files: such names say nothing about the photo.
CAMERA_WORDS = word_set("img dsc dscn dscf pxl image photo picture pic screenshot file untitled copy unnamed mvimg")


@dataclass(frozen=True)
class SidecarSettings:
    """Settings of `sidecar`."""

    template: str = "a photo of {name}"
    """The sentence around the name of a folder or file; `{name}` stands for the name with its article."""

    def __post_init__(self) -> None:
        if "{name}" not in self.template:
            raise ConfigError(f"template: {self.template!r} has no place {{name}} for the name of a folder")


class SidecarCaptioner:
    """`04.txt` beside `04.jpg` if it is there, else the folder's name, else words in the file's own name:
    "grey_sloth_plushie2" -> "a photo of a grey sloth plushie".

    Args:
        template: the sentence around a name; `{name}` stands for the name with its article.
    """

    fills = "caption"
    settings = SidecarSettings
    hint = "stem"
    name = "sidecar text or folder name"

    def __init__(self, template: str = "a photo of {name}") -> None:
        self.template = template

    def __call__(self, samples: Sequence[Sample]) -> list[str | Rejection]:
        return [self.caption(sample) for sample in samples]

    def caption(self, sample: Sample) -> str | Rejection:
        """The caption of one photo, from the hints `sidecar`, `folder` and `stem`."""
        written = " ".join(sample.hints.get("sidecar", "").split())
        if written:
            return written
        # A subfolder names its photos; the source folder itself ("photos") does so only if the file name says nothing.
        candidates = [sample.hints.get(key, "") for key in ("folder", "stem", "root")]
        for name in map(readable, candidates):
            if name:
                return self.template.format(name=with_article(name))
        return Rejection(
            "no-caption", f"{sample.source} has no text file beside it and no words in its folder's or its own name"
        )


def readable(name: str) -> str:
    """The words of a file or folder name: "shiny_sneaker-02" -> "shiny sneaker", "IMG_2231" -> ""."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)  # camelCase
    parts = [part.lower() for part in re.split(r"[\W_\d]+", words) if part]
    return "" if all(part in CAMERA_WORDS or len(part) == 1 for part in parts) else " ".join(parts)


def with_article(name: str) -> str:
    """ "ear plug" -> "an ear plug"; plurals such as "pink sunglasses" stay as they are."""
    last = name.split()[-1]
    if last.endswith("s") and not last.endswith(("ss", "us", "is")):
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
