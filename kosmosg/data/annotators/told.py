"""Captions that the source already knows: what stood beside an image on its page, or what somebody wrote for it."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

from kosmosg.data.annotators.base import Rejection, Sample

# A tag begins with a letter, a slash or an exclamation mark: "3 < 5" and "I <3 cats" are no markup.
_BLOCKS = re.compile(r"<(script|style)\b[^>]*>.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
_TAGS = re.compile(r"""<!--.*?-->|</?[a-zA-Z](?:"[^"]*"|'[^']*'|[^<>"'])*>|</?[a-zA-Z][^<>]*>|<![^<>]*>""", re.DOTALL)


@dataclass(frozen=True)
class ToldSettings:
    """What `told` takes."""

    strip_markup: bool = True
    """Take HTML tags out of captions, and read entities such as &amp; as the characters that they stand for."""


class ToldCaptioner:
    """The caption of the hint `caption`, so that captioned images need no captioning model.

    Args:
        strip_markup: take HTML out, as alt texts of the web carry it.
    """

    fills = "caption"
    settings = ToldSettings
    hint = "caption"
    name = "caption of the source"

    def __init__(self, strip_markup: bool = True) -> None:
        self.strip_markup = strip_markup

    def __call__(self, samples: Sequence[Sample]) -> list[str | Rejection]:
        return [self.caption(sample) for sample in samples]

    def caption(self, sample: Sample) -> str | Rejection:
        """The caption of one sample."""
        given = sample.hints.get("caption", "")
        text = plain_text(given) if self.strip_markup else " ".join(given.split())
        if text:
            return text
        if given.strip():
            return Rejection("no-caption", f"the caption of {sample.id} is nothing but markup: {given.strip()[:80]!r}")
        return Rejection("no-caption", f"the source knows no caption of {sample.id}")


def plain_text(text: str) -> str:
    """A text without HTML: tags are taken out first, so that "&lt;b&gt;" becomes the characters that were meant."""
    text = _TAGS.sub(" ", _BLOCKS.sub(" ", text)) if "<" in text else text
    # Captions that went through two programs carry "&amp;amp;"; a third round is somebody who writes about HTML.
    for _ in range(2):
        text = html.unescape(text) if "&" in text else text
    return " ".join(text.split())
