"""Turns down captions in other languages, by the small words that hold sentences together.

No language detector: it knows the articles, prepositions and pronouns of English and of nine languages in Latin
letters, and turns a caption down only on evidence, when those of one other language stand in it more often than the
English ones. Captions without small words ("Brown dog, beach") pass, whatever their language; other scripts are
`caption_markup`'s business (`foreign-letters`).
"""

import re
from dataclasses import dataclass
from typing import ClassVar

from kosmosg.data.annotators.base import Rejection, Sample
from kosmosg.errors import ConfigError

ENGLISH = (
    "the a an and or of in on at to for from with without by over under near into onto through between behind beside "
    "is are was were be has have had this that these those it its his her their he she they we you i my your our who "
    "which while as not out up down off across along around some two one three other another against during "
    "before after there where when what than"
)
OTHERS = {
    "German": "der die das den dem des ein eine einen einem einer und oder mit auf für ist sind im am zum zur vom von "
    "zu nicht auch sich wird über unter vor nach bei aus er sie wir ihr mein sein ihre zwei als",
    "French": "le la les un une des du de et ou dans sur avec pour par est sont au aux en ce cette ces il elle qui que "
    "son sa ses leur pas plus chez sous entre deux comme",
    "Spanish": "el la los las un una unos unas de del y en con por para es son al su sus que se más como sobre entre "
    "sin dos este esta",
    "Portuguese": "o os as um uma de do da dos das e em na nos nas com por para é são ao à seu sua que se não mais "
    "sobre entre sem dois este esta pelo pela",
    "Italian": "il lo la gli le un uno una di del della dei delle e in nel nella con per è sono al alla su sul sulla "
    "che si non più come da dal dalla due questo questa",
    "Dutch": "de het een en van met op voor zijn aan bij naar uit niet ook door over onder tussen twee haar hun deze "
    "dit die dat wordt staat",
    "Polish": "i w we na z ze do od po przy nad pod jest są się nie to ten ta te oraz dla przez jak dwa jego jej",
    "Swedish": "en ett och i på med för av är som till från vid den det de sin sitt inte om under över mellan två har",
    "Turkish": "bir ve ile için bu şu da de olan gibi çok daha üzerinde içinde iki en",
}
_ENGLISH = frozenset(ENGLISH.split())
_OTHERS = {language: frozenset(words.split()) - _ENGLISH for language, words in OTHERS.items()}


@dataclass(frozen=True)
class FunctionWordFilter:
    """By the function words of ten languages."""

    needs: ClassVar[tuple[str, ...]] = ("caption",)

    min_foreign: int = 2
    """Function words of one other language that are evidence, if they outnumber the English ones."""
    min_english: float = 0.0
    """Share of English function words, at least; 0 asks for none, so that captions of keywords pass. Captions that
    people wrote have 0.2 to 0.6."""

    def __post_init__(self) -> None:
        if self.min_foreign < 1 or not 0 <= self.min_english <= 1:
            raise ConfigError(
                f"min_foreign is {self.min_foreign} and min_english {self.min_english:g}; the first is at least 1, the "
                "second a share"
            )

    def __call__(self, sample: Sample) -> Rejection | None:
        words = re.findall(r"[^\W\d_]+", sample.caption.lower())
        english = sum(word in _ENGLISH for word in words)
        counts = {language: sum(word in known for word in words) for language, known in _OTHERS.items()}
        language = max(counts, key=lambda name: counts[name])
        if counts[language] >= self.min_foreign and counts[language] > english:
            return Rejection(
                "other-language",
                f"the caption {sample.caption[:80]!r} has {counts[language]} small words of {language}, {english} of "
                "English",
            )
        if english < self.min_english * len(words):
            return Rejection(
                "no-english",
                f"{english} of {len(words)} words of the caption {sample.caption[:80]!r} are small English words",
            )
        return None
