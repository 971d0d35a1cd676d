"""The layouts of pages: OBELICS and OmniCorpus as parallel lists, MMC4 as sentences with images that match them."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kosmosg.data.sources.image_rows import BadRow
from kosmosg.data.sources.scores import listed
from kosmosg.data.sources.tables import TableHead
from kosmosg.errors import DataError

_OBELICS, _OBELICS_MORE = ("images", "texts"), ("metadata", "general_metadata")
_MMC4, _MMC4_MORE = ("text_list", "image_info"), ("url",)
_NAME_KEYS = ("formatted_filename", "filename", "image_name")


class ShownImage(NamedTuple):
    """Where a page shows an image."""

    number: int
    """Of the page's images, from 1."""
    url: str
    name: str
    """Of its file, "" where the page knows none."""


@dataclass(frozen=True)
class Page:
    """A page in reading order."""

    parts: Sequence[str | ShownImage]
    joint: str
    """Stands between texts that follow each other."""
    url: str = ""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Images without a place, by the reason."""


def check_columns(head: TableHead) -> tuple[str, list[str]]:
    """The layout of a file, and the columns to read. Raises DataError when it is neither."""
    for layout, needed, more in (("obelics", _OBELICS, _OBELICS_MORE), ("mmc4", _MMC4, _MMC4_MORE)):
        if all(name in head.names for name in needed):
            return layout, [name for name in head.names if name in (*needed, *more)]
    raise DataError(
        f"{head.path} holds no pages: OBELICS has columns {' and '.join(_OBELICS)}, MMC4 {' and '.join(_MMC4)}, this "
        f"file has {listed(head.names)}"
    )


def obelics_page(values: Mapping[str, Any]) -> Page:
    """Parallel lists: at each place a URL or a text, the other null. Raises BadRow."""
    images, texts = values.get("images"), values.get("texts")
    if not isinstance(images, list) or not isinstance(texts, list) or len(images) != len(texts):
        raise BadRow("malformed", "images and texts are not two lists of one length")
    about = _metadata(values.get("metadata"), len(images))
    parts: list[str | ShownImage] = []
    number = 0
    for place, (image, text) in enumerate(zip(images, texts, strict=True)):
        if image is not None:
            number += 1
            if text is not None or not isinstance(image, str):
                raise BadRow("malformed", f"place {place} of the page is no single text or URL")
            parts.append(ShownImage(number, image, _name(about[place])))
        elif text is not None:
            parts.append(_text(text))
    return Page(parts, "\n\n", _url(values, about))


def mmc4_page(values: Mapping[str, Any]) -> Page:
    """Sentences, and images with the number of the sentence that each matches: it stands before that. Raises BadRow.

    The images are listed in no order; those of one sentence keep the order of the list.
    """
    sentences, images = values.get("text_list"), values.get("image_info")
    if not isinstance(sentences, list) or not isinstance(images, list):
        raise BadRow("malformed", "text_list and image_info are not two lists")
    dropped: Counter[str] = Counter()
    shown: defaultdict[int, list[ShownImage]] = defaultdict(list)
    for number, image in enumerate(images, start=1):
        place = image.get("matched_text_index") if isinstance(image, dict) else None
        if not isinstance(place, int | float) or not math.isfinite(place) or not 0 <= place < len(sentences):
            dropped["malformed"] += 1
            continue
        url = image.get("raw_url")
        shown[int(place)].append(ShownImage(number, url if isinstance(url, str) else "", _name(image)))
    parts: list[str | ShownImage] = []
    for index, sentence in enumerate(sentences):
        parts += [*shown[index], _text(sentence)]
    url = values.get("url")
    return Page(parts, " ", url if isinstance(url, str) else "", dropped)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadRow("malformed", f"a text of the page is a {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow("encoding", f"a text of the page is not valid Unicode ({error.reason})") from error
    return value.strip()


def _metadata(value: Any, length: int) -> list[Any]:
    """What OBELICS tells of each place, as JSON; OmniCorpus as a list or a struct. Left out when it does not fit."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadRow("malformed", f"metadata is no JSON ({' '.join(str(error).split())})") from error
    return value if isinstance(value, list) and len(value) == length else [None] * length


def _name(about: Any) -> str:
    if not isinstance(about, Mapping):
        return ""
    return next((about[key] for key in _NAME_KEYS if isinstance(about.get(key), str)), "")


def _url(values: Mapping[str, Any], about: Sequence[Any]) -> str:
    found: Any = values.get("general_metadata")
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except (ValueError, RecursionError):
            found = None  # only says where the page was found
    candidates = [found, *about]
    for entry in candidates:
        if isinstance(entry, Mapping):
            url = entry.get("url") or entry.get("document_url")
            if isinstance(url, str):
                return url
    return ""
