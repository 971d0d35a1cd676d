"""From words to spans: where a caption names an object, and which words are not objects.

The rules are those of the original's Open Images reader (colour words, whole words only, no tag inside another one).
The original applies them silently on every read; here they are applied once when the dataset is built, each with a
reason.
"""

import re
from collections.abc import Sequence

from kosmosg.data.annotators.base import EntitySpans, NoSettings, Rejection, Sample, Span


def word_set(text: str) -> frozenset[str]:
    """The words of a text as a set, so that word lists can be written as text."""
    return frozenset(text.split())


COLOURS = word_set("yellow blue red green white black brown grey gray purple pink orange cyan silver gold golden")
# Words that say how a thing is, not what it is; only what stands in front of a noun in short captions and folder names.
QUALITIES = COLOURS | word_set(
    "big small large little tiny huge old new young long short tall round square wooden plastic metal colorful "
    "colourful shiny fancy beautiful cute dark light bright wet dry striped spotted two three four five"
)
OPENERS = re.compile(
    r"^\s*(?:(?:a|an|the|one|some|this|my)\s+)?(?:close[- ]?up\s+)?"
    r"(?:photo(?:graph)?|picture|image|painting)\s+of\s+",
    re.IGNORECASE,
)
ARTICLES = word_set("a an the some this that my his her their its one")
# A noun phrase of a simple caption ends where the first of these begins.
BREAKS = word_set(
    "in on at with and or of by from near under over above behind beside inside outside into onto next to for while "
    "is are was were has have that which who as against between through along around across during before after"
)


def find_spans(caption: str, tags: Sequence[str]) -> EntitySpans:
    """The first occurrence of every tag in the caption as a span, in reading order, and why the others are dropped.

    Reasons: `colour-word` (a property, not an object), `not-in-caption` (the annotator made it up), `ambiguous` (the
    tag is part of another tag: "dog" and "hot dog"), `duplicate`, `overlap`.
    """
    spans: list[Span] = []
    dropped: list[Rejection] = []
    seen: set[str] = set()
    for tag in tags:
        words = " ".join(tag.split())
        match = _whole_words(words, caption) if words else None
        if words.lower() in COLOURS:
            dropped.append(Rejection("colour-word", f"{words!r} names a colour"))
        elif match is None:
            dropped.append(Rejection("not-in-caption", f"{words!r} does not stand in {caption!r}"))
        elif words.lower() in seen:
            dropped.append(Rejection("duplicate", f"{words!r} was named twice"))
        elif any(other.lower() != words.lower() and _whole_words(words, other) for other in tags):
            dropped.append(Rejection("ambiguous", f"{words!r} also stands in another of {list(tags)}"))
        elif any(match.start() < span.end and span.start < match.end() for span in spans):
            dropped.append(Rejection("overlap", f"{words!r} shares words with another entity of {caption!r}"))
        else:
            spans.append(Span(match.group(), match.start(), match.end()))
        seen.add(words.lower())
    return EntitySpans(sorted(spans, key=lambda span: span.start), dropped)


class NounFinder:
    """The one object that a simple caption is about: its first noun phrase without article and adjectives.

    Made for captions such as "a photo of a grey sloth plushie" ("sloth plushie"). No grammar and no model: on captions
    in free prose it takes the first phrase, which is often but not always the subject.
    """

    fills = "entities"
    settings = NoSettings
    hint = ""
    name = "first noun phrase"

    def __call__(self, samples: Sequence[Sample]) -> list[EntitySpans | Rejection]:
        return [self.find(sample.caption) for sample in samples]

    def find(self, caption: str) -> EntitySpans | Rejection:
        """The span of the noun, or the reason why there is none."""
        opener = OPENERS.match(caption)
        start = opener.end() if opener else 0
        words = [(m.group(), m.start(), m.end()) for m in re.finditer(r"[^\W_][\w'-]*|[.,;:!?()]", caption[start:])]
        phrase: list[tuple[str, int, int]] = []
        for word, begin, end in words:
            lower = word.lower()
            if not phrase and (lower in ARTICLES or lower in QUALITIES):
                continue
            # A word in -ing ends the phrase ("a dog running"), unless it is the thing itself ("a ring").
            verb = bool(phrase) and lower.endswith("ing") and len(lower) > 5
            if lower in BREAKS or lower in ARTICLES or verb or not word[0].isalnum():
                if phrase:
                    break
                continue
            phrase.append((word, begin + start, end + start))
        if not phrase:
            return Rejection("no-entity", f"no noun was found in the caption {caption!r}")
        first, last = phrase[0][1], phrase[-1][2]
        return EntitySpans([Span(caption[first:last], first, last)], [])


def _whole_words(words: str, text: str) -> re.Match[str] | None:
    # Not \b: a tag may begin or end with a sign ("t-shirt", "c++"), where \b would demand a letter on the other side.
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE)
