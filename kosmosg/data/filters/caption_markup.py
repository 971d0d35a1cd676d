"""Turns down captions that no person wrote as a caption: markup, addresses, file names, broken encoding, lists."""

import re
import unicodedata
from dataclasses import dataclass
from typing import ClassVar

from kosmosg.data.annotators.base import Rejection, Sample
from kosmosg.errors import ConfigError

MARKUP = re.compile(
    r"</?[a-zA-Z][^<>]*>|<!--|&(?:#\d{1,7}|#x[0-9a-fA-F]{1,6}|[a-zA-Z]{2,8}\d{0,2});|\[/?(?:url|img|b|i)\b"
)
ADDRESS = re.compile(
    r"\b(?:https?|ftp)://|\bwww\.[\w-]+\.|\b[\w.-]+@[\w-]+\.\w|\b[\w-]+\.(?:com|net|org|co\.uk)\b", re.I
)
FILE_NAME = re.compile(
    r"^\W*\S+\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|heic)\W*$|^(?:img|dsc[nf]?|pict)[ _-]?\d{3,}\b|^p\d{6,}\b", re.I
)

# UTF-8 that was read as Windows-1252: what its bytes 0x80 to 0xBF look like.
_TAIL = (
    "[\\x80-\\xbf"
    + re.escape(bytes(n for n in range(0x80, 0xA0) if n not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)).decode("cp1252"))
    + "]"
)
MOJIBAKE = re.compile(
    "\ufffd"  # what decoders put for what they could not read
    # An accented letter. But honest text may have a capital before a closing quote (“IRMÃ”), in Swedish "PÅ…".
    f"|[ÂÃ](?![‘’“”](?:\\W|$)){_TAIL}|[ÄÅ](?![–—…\xa0]|[‘’“”](?:\\W|$)){_TAIL}"
    f"|â{_TAIL}{_TAIL}|ðŸ{_TAIL}{_TAIL}"  # quotation marks and dashes; emoji
    f"|(?:[ÄÅÎÏÐÑØÙ×]{_TAIL}){{2}}|(?:[ã-ï]{_TAIL}{_TAIL}){{2}}"  # letters of other scripts come in rows
)


@dataclass(frozen=True)
class CaptionMarkupFilter:
    """By what is in the text, in this order: `markup` (HTML tags and entities), `address` (URLs, domains, e-mail),
    `file-name`, `mojibake` (UTF-8 read as another encoding), `few-letters`, `foreign-letters`, `repetition`."""

    needs: ClassVar[tuple[str, ...]] = ("caption",)

    min_letters: float = 0.6
    """Share of letters in what is not white space, at least."""
    max_foreign: float = 0.3
    """Share of the letters beyond ASCII, at most: a caption in Cyrillic has 1, a French one about 0.05."""
    max_repetition: float = 0.6
    """Share of the words that stood in the caption before, at most; captions of five words and fewer pass."""

    def __post_init__(self) -> None:
        shares = {name: getattr(self, name) for name in ("min_letters", "max_foreign", "max_repetition")}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ConfigError(f"{name} is {share:g}; a share lies between 0 and 1")

    def __call__(self, sample: Sample) -> Rejection | None:
        caption = sample.caption
        for reason, pattern, what in (
            ("markup", MARKUP, "holds markup"),
            ("address", ADDRESS, "holds an address"),
            ("file-name", FILE_NAME, "is the name of a file"),
            ("mojibake", MOJIBAKE, "was read in the wrong encoding"),
        ):
            found = pattern.search(caption)
            if found:
                return Rejection(reason, f"the caption {caption[:80]!r} {what} ({found.group()[:40]!r})")
        signs = [sign for sign in caption if not sign.isspace()]
        letters = [sign for sign in signs if is_letter(sign)]
        if len(letters) < self.min_letters * len(signs) or not letters:
            return Rejection(
                "few-letters", f"{len(letters)} of {len(signs)} signs of the caption {caption[:80]!r} are letters"
            )
        foreign = sum(letter > "\x7f" for letter in letters)
        if foreign > self.max_foreign * len(letters):
            return Rejection(
                "foreign-letters", f"{foreign} of {len(letters)} letters of the caption {caption[:80]!r} are not ASCII"
            )
        words = re.findall(r"\w+", caption.lower())
        again = len(words) - len(set(words))
        if len(words) > 5 and again > self.max_repetition * len(words):
            return Rejection(
                "repetition", f"{again} of {len(words)} words of the caption {caption[:80]!r} are repeated"
            )
        return None


def is_letter(sign: str) -> bool:
    """Letters and the marks that belong to them (accents, the vowels of Indic scripts)."""
    return unicodedata.category(sign)[0] in "LM"
