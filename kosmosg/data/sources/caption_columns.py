"""Which columns of a table are its captions and its images, by their names or, without a header, by what they hold.

Known without a setting: CC3M (caption, path), CC12M (path, caption), GILL (header `caption`, `image`), the original's
own tables (id, caption, base64 image, width, height), COYO, LAION in its spellings, and what img2dataset writes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from kosmosg.data.sources.image_rows import IMAGE_SUFFIXES
from kosmosg.data.sources.scores import SCORES, listed
from kosmosg.data.sources.tables import TableHead
from kosmosg.errors import DataError

CAPTIONS = ("caption", "text", "top_caption", "re_caption", "original_caption", "prompt", "sentence", "title")
BASE64 = ("image_base64", "base64", "image_b64", "b64")
IMAGES = ("image", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "img")
PATHS = ("image_path", "path", "file_path", "filepath", "file_name", "filename", "image_file", "file")
URLS = ("url", "image_url", "img_url")
HEADER = frozenset((*CAPTIONS, *BASE64, *IMAGES, *PATHS, *URLS))
KEPT = frozenset(("url", "license", "licence", "author", "creator", "artist", "title", "status", "error_message"))
"""Columns that are carried along, or that say what became of a download; in lower case."""
_MAGIC = ("/9j/", "iVBORw", "UklGR", "R0lGOD", "Qk", "data:image/")  # of encoded images, in base64
_FETCH = (
    "{path} has URLs of images, not images; fetching is the job of img2dataset: img2dataset --url_list {path}"
    "{header} --input_format {form} --url_col {url} --caption_col {caption} --output_format webdataset "
    "--output_folder shards --image_size 512 --resize_mode keep_ratio --skip_reencode; then read what it leaves "
    "with build.source.use=img2dataset"
)


@dataclass(frozen=True)
class CaptionColumns:
    """Columns of one table."""

    caption: str
    image: str | None
    """None where captions are all that is wanted."""
    form: str = ""
    """Of the image: bytes, base64, path, or "" where each value has to be looked at."""


def caption_columns(head: TableHead, caption: str | None, image: str | None, with_images: bool) -> CaptionColumns:
    """The columns of a table; `caption` and `image` are those that the user names, or None.

    Raises DataError where there are none, with what there is.
    """
    if not head.names:
        raise DataError(f"{head.path} is empty")
    found = _by_name(head) if head.header or head.form not in (".csv", ".tsv") else _by_content(head)
    told = caption if caption is not None else found.caption
    if told is None or told not in head.names:
        asked = "no column with captions" if caption is None else f"no column {caption}"
        raise DataError(f"{head.path} has {asked}; it has {listed(head.names)}; name one with build.source.caption")
    if not with_images:
        return CaptionColumns(told, None)
    if image is not None:
        if image not in head.names:
            raise DataError(f"{head.path} has no column {image}; it has {listed(head.names)}")
        return CaptionColumns(told, image, _form_of_image(head, image))
    if found.image is None:
        raise DataError(_without_image(head, told, found.url))
    return CaptionColumns(told, found.image, _form_of_image(head, found.image))


@dataclass(frozen=True)
class _Found:
    caption: str | None
    image: str | None
    url: str | None


def _by_name(head: TableHead) -> _Found:
    lower = {name.lower(): name for name in reversed(head.names)}

    def first(names: Sequence[str], fits: Callable[[str], bool] = lambda name: True) -> str | None:
        return next((lower[name] for name in names if name in lower and fits(lower[name])), None)

    url = first(URLS) or first((*IMAGES, *PATHS), lambda name: _mostly(head, name, is_url))
    image = first((*BASE64, *IMAGES, *PATHS), lambda name: _may_be_image(head, name))
    return _Found(first(CAPTIONS), image, url)


def _by_content(head: TableHead) -> _Found:
    """Of a table without a header: an image is known by its base64 or its path, a URL by its beginning."""
    url = next((name for name in head.names if _mostly(head, name, is_url)), None)
    encoded = next((name for name in head.names if _mostly(head, name, is_base64)), None)
    path = next((name for name in head.names if name != url and _mostly(head, name, is_path)), None)
    image = encoded or path
    if encoded and head.names.index(encoded) == 2:
        return _Found(head.names[1], encoded, url)
    others = [name for name in head.names if name not in (url, image)]
    return _Found(max(others, key=lambda name: _words(head, name), default=None), image, url)


def _may_be_image(head: TableHead, name: str) -> bool:
    kind = head.types.get(name)
    if kind is not None:
        if pa.types.is_struct(kind):
            return bool(kind.get_field_index("bytes") >= 0)
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return True
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            return False
    return not _mostly(head, name, is_url)


def _form_of_image(head: TableHead, name: str) -> str:
    kind = head.types.get(name)
    if kind is not None and not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return "bytes"
    if name.lower() in BASE64 or _mostly(head, name, is_base64):
        return "base64"
    return "path" if name.lower() in PATHS or _mostly(head, name, is_path) else ""


def _without_image(head: TableHead, caption: str, url: str | None) -> str:
    lower = [name.lower() for name in head.names]
    if url is not None and "key" in lower and "status" in lower:
        return (
            f"{head.path} is the list that img2dataset keeps beside its shards; read those, "
            "with build.source.use=img2dataset"
        )
    if url is None:
        return (
            f"{head.path} has no column with images; it has {listed(head.names)}; name one with build.source.image, "
            "or leave images out with build.source.with_images=false kind=caption"
        )
    named = head.header or head.form not in (".csv", ".tsv")
    header = (
        "" if named else f" (give it a first line with the names of its columns, such as {_named(head, caption, url)})"
    )
    return _FETCH.format(
        path=head.path,
        header=header,
        form=head.form[1:].replace("ndjson", "jsonl"),
        url=url if named else "url",
        caption=caption if named else "caption",
    )


def _named(head: TableHead, caption: str, url: str) -> str:
    names = {caption: "caption", url: "url"}
    return " TAB ".join(names.get(name, f"column{name}") for name in head.names)


def _mostly(head: TableHead, name: str, fits: Callable[[str], bool]) -> bool:
    values = [row[name] for row in head.samples if isinstance(row.get(name), str) and row[name]]
    return bool(values) and sum(map(fits, values)) > len(values) / 2


def _words(head: TableHead, name: str) -> float:
    values = [str(row.get(name, "")) for row in head.samples]
    # Numbers and hashes are no captions.
    return sum(len(value.split()) - 1 + any(part.isalpha() for part in value.split()) for value in values)


def is_url(value: str) -> bool:
    """Whether a text is a URL."""
    return value.lower().startswith(("http://", "https://", "//"))


def is_base64(value: str) -> bool:
    """Whether a text is an encoded image."""
    return len(value) > 60 and value.startswith(_MAGIC) and " " not in value


def is_path(value: str) -> bool:
    """Whether a text is the name of an image file."""
    return not is_url(value) and value.lower().rpartition(".")[2] in IMAGE_SUFFIXES and len(value) < 1024


def wanted_columns(head: TableHead, chosen: Sequence[str | None], thresholds: Sequence[str]) -> list[str]:
    """Those columns of a table that are read: the chosen ones, scores, and what is carried along."""
    asked = [name for name in (*chosen, *thresholds) if name is not None]
    more = [name for name in head.names if name.lower() in KEPT | SCORES]
    return list(dict.fromkeys((*asked, *more)))
