"""`Prompt`: ordered text and images, the single representation of interleaved input.

Dataset records, job inputs, pipeline calls and HTTP requests all become a `Prompt`; `KosmosGProcessor` turns it into
tensors. The contents of a `Prompt` are validated: every image is an upright RGB image that this prompt owns, within the
`PromptLimits`. Invalid input raises an error of one sentence here.

How images are read (the same for files, bytes and PIL images):
- EXIF orientation is applied; CMYK, palette, grey and 16-bit grey images are converted to RGB;
- transparent pixels become white, the background of the crops in training;
- animated, empty, damaged and too large images are rejected, never cropped or shrunk.
"""

import base64
import binascii
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from kosmosg.errors import ImageError, PromptError

PLACE = "<i>"
"""The marker in a prompt's text where an image goes (the original app uses the same)."""

# Pillow can open formats that call external programs (EPS) or that nobody needs; a prompt accepts only these.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

Picture = Image.Image | bytes | os.PathLike[str]
"""What is accepted as an image: a PIL image, an encoded file's bytes, or a path (a `str` is text, never a path)."""


@dataclass(frozen=True)
class PromptLimits:
    """Limits of one prompt. The defaults keep a request below about 3 GB of decoded pixels in the worst case."""

    images: int = 16  # images per prompt; OpenAI's Images API has the same limit, upstream's app stops at 10
    pixels: int = 64_000_000  # pixels per image; the largest phone cameras deliver 50 million
    side_ratio: int = 100  # longer side / shorter side; beyond it the centre crop would show 1 % of the image
    encoded_bytes: int = 50_000_000  # bytes per encoded image
    characters: int = 32_000  # characters of text per prompt


DEFAULT_LIMITS = PromptLimits()


class Prompt:
    """Text with images in it, in order; immutable and comparable by content.

    Args:
        text: the text; each `<i>` is the place of one image. Any other markup (`<image>`, `<s>`) is plain text.
        images: one image per place, in order (see `Image`).
        limits: limits on size and number.

    Raises:
        PromptError: the number of places and images differs, the text is too long or not a string, or there are too
            many images.
        ImageError: an image cannot be read or exceeds the limits.
    """

    __slots__ = ("_digest", "_image_digests", "parts")

    parts: tuple[str | Image.Image, ...]
    """Text and RGB images in order; empty texts are omitted, so the empty prompt has no parts."""

    def __init__(self, text: str, images: Sequence[Picture] = (), limits: PromptLimits = DEFAULT_LIMITS) -> None:
        if not isinstance(text, str):
            raise PromptError(f"a prompt's text is a str, got {type(text).__name__}; pass Prompt('...', images=[...])")
        if not isinstance(images, Sequence) or isinstance(images, bytes | str):
            raise PromptError(
                f"images is a list in the order of the places, got one {type(images).__name__}; "
                "pass a list, such as images=[image]"
            )
        texts = text.split(PLACE)
        if len(texts) - 1 != len(images):
            raise PromptError(
                f"the text has {len(texts) - 1} places {PLACE} but {len(images)} images were given; "
                f"write {PLACE} once for each image, in order"
            )
        parts: list[str | Picture] = [texts[0]]
        for number, (image, following) in enumerate(zip(images, texts[1:], strict=True), start=1):
            if isinstance(image, str):  # among the parts it would be text
                raise ImageError(
                    f"image {number} of {len(images)} is the str {image[:60]!r}; a path is a pathlib.Path, text "
                    "belongs into the text"
                )
            parts += [image, following]
        self._fill(parts, limits)

    @classmethod
    def from_parts(cls, parts: Sequence[str | Picture], limits: PromptLimits = DEFAULT_LIMITS) -> "Prompt":
        """A prompt from ordered text and images, e.g. `Prompt.from_parts(["a cat", cat, "sleeping in", garden])`.

        Consecutive texts are joined with a space. A text part may not contain `<i>`, because images are separate parts.
        """
        if isinstance(parts, str | bytes | Image.Image | os.PathLike):
            raise PromptError(f"from_parts takes a list of text and images, got one {type(parts).__name__}; wrap it")
        merged: list[str | Picture] = []
        for position, part in enumerate(parts):
            if isinstance(part, str) and PLACE in part:
                raise PromptError(
                    f"part {position} is text with {PLACE} in it, but here images are parts of their own; "
                    f"leave {PLACE} out, or use Prompt(text, images=[...])"
                )
            if isinstance(part, str) and merged and isinstance(merged[-1], str):
                merged[-1] = f"{merged[-1]} {part}"
            else:
                merged.append(part)
        prompt = cls.__new__(cls)
        prompt._fill(merged, limits)
        return prompt

    @classmethod
    def from_messages(cls, content: Sequence[Mapping[str, Any]], limits: PromptLimits = DEFAULT_LIMITS) -> "Prompt":
        """A prompt from the content parts of a chat message, as in chat APIs.

        Supported: `{"type": "text", "text": ...}` (also `input_text`), `{"type": "image_url", "image_url": {"url":
        "data:image/png;base64,..."}}` (also `input_image`, also a bare string), `{"type": "image", "image": Image}`.
        Network URLs are rejected: the caller decides what may be fetched, and passes the bytes.
        """
        if isinstance(content, str | bytes | Mapping):
            raise PromptError(
                "from_messages takes the list of one message's content parts, "
                f"got one {type(content).__name__}; wrap it in a list"
            )
        return cls.from_parts([_content_part(i, part, limits) for i, part in enumerate(content)], limits)

    def _fill(self, parts: Sequence[str | Picture], limits: PromptLimits) -> None:
        count = sum(not isinstance(part, str) for part in parts)
        if count > limits.images:
            raise PromptError(f"the prompt has {count} images, the limit is {limits.images}; leave some out")
        characters = sum(len(part) for part in parts if isinstance(part, str))
        if characters > limits.characters:
            raise PromptError(
                f"the prompt has {characters} characters of text, the limit is {limits.characters}; shorten it"
            )
        filled: list[str | Image.Image] = []
        seen = 0
        for part in parts:
            if not isinstance(part, str):
                filled.append(read_image(part, limits, name=f"image {seen + 1} of {count}"))
                seen += 1
            elif part:
                filled.append(_checked_text(part))
        self.parts = tuple(filled)
        self._digest: str | None = None
        self._image_digests: tuple[str, ...] | None = None

    @property
    def text(self) -> str:
        """The text with `<i>` at each image's place; `Prompt(p.text, p.images)` equals `p`."""
        return "".join(part if isinstance(part, str) else PLACE for part in self.parts)

    @property
    def images(self) -> tuple[Image.Image, ...]:
        """The images in order, upright RGB. Treat them as read-only: the digest is computed once."""
        return tuple(part for part in self.parts if isinstance(part, Image.Image))

    def image_sha256s(self) -> tuple[str, ...]:
        """Hex digest of each image's size and pixels, in order; identifies images that were seen before."""
        if self._image_digests is None:
            self._image_digests = tuple(
                hashlib.sha256(b"%dx%d:" % image.size + image.tobytes()).hexdigest() for image in self.images
            )
        return self._image_digests

    def sha256(self) -> str:
        """Hex digest of the content (text and pixels, not file bytes): the key of every condition cache."""
        if self._digest is None:
            digest, images = hashlib.sha256(), iter(self.image_sha256s())
            for part in self.parts:
                # Each part is framed by kind and length, so that no two prompts produce the same bytes.
                data = part.encode() if isinstance(part, str) else next(images).encode()
                digest.update(b"%s%d:" % (b"T" if isinstance(part, str) else b"I", len(data)))
                digest.update(data)
            self._digest = digest.hexdigest()
        return self._digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prompt) and self.sha256() == other.sha256()

    def __hash__(self) -> int:
        return hash(self.sha256())

    def __repr__(self) -> str:
        return f"Prompt({self.text!r}, images={len(self.images)})"


def read_image(
    picture: Picture, limits: PromptLimits = DEFAULT_LIMITS, name: str = "the image", at_least: int = 0
) -> Image.Image:
    """An upright RGB image that the caller owns, or an `ImageError` that names the image, the value and the limit.

    The size is checked before a pixel is decoded, so a decompression bomb costs its header only. With `at_least`, an
    encoded JPEG may come at a half, a quarter or an eighth of its size, its shorter side no shorter than that many
    pixels: decoding costs a fraction then.
    """
    if isinstance(picture, Image.Image):
        return _to_rgb(picture, limits, name)
    if isinstance(picture, os.PathLike):
        path = Path(picture)
        if not path.is_file():
            raise ImageError(f"{name}: there is no file {path}; check the path")
        size = path.stat().st_size
        source: io.BytesIO | Path = path
        name = f"{name} ({path.name})"
    elif isinstance(picture, bytes):
        size, source = len(picture), io.BytesIO(picture)
    else:
        raise ImageError(
            f"{name} is a {type(picture).__name__}; pass a PIL image, the bytes of a file, or a pathlib.Path"
        )
    if size == 0:
        raise ImageError(f"{name} is an empty file of 0 bytes; pass an image")
    if size > limits.encoded_bytes:
        raise ImageError(f"{name} has {size} bytes, the limit is {limits.encoded_bytes}; save it smaller")
    Image.init()  # Pillow builds differ in their formats; requesting a missing one would be a KeyError
    try:
        with Image.open(source, formats=[kind for kind in FORMATS if kind in Image.OPEN]) as opened:
            if at_least:
                _check_size(opened, limits, name)
                opened.draft(None, (at_least, at_least))
            return _to_rgb(opened, limits, name, own=True)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image that can be read; pass {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} has more pixels than the limit of {limits.pixels}; resize it first") from error
    except Exception as error:
        # Decoders raise all kinds of exceptions on malicious headers (AVIF a RuntimeError, TIFF a TypeError).
        raise ImageError(f"{name} is damaged and cannot be decoded ({error}); save it again") from error


def _check_size(image: Image.Image, limits: PromptLimits, name: str) -> None:
    width, height = image.size
    if width == 0 or height == 0:
        raise ImageError(f"{name} is {width}x{height} pixels; pass an image with at least one pixel")
    if width * height > limits.pixels:
        raise ImageError(
            f"{name} has {width}x{height} = {width * height} pixels, the limit is {limits.pixels}; resize it first"
        )
    if max(width, height) > limits.side_ratio * min(width, height):
        raise ImageError(
            f"{name} is {width}x{height}: one side is more than {limits.side_ratio} times the other; crop it first"
        )


def _to_rgb(image: Image.Image, limits: PromptLimits, name: str, own: bool = False) -> Image.Image:
    """Checked, upright, and RGB. What is our `own` may be changed in place; copying it takes as long as decoding it."""
    _check_size(image, limits, name)
    frames = getattr(image, "n_frames", 1)
    # An MPO is a still photo followed by a preview or gain map, as phones write them.
    if frames > 1 and image.format != "MPO":
        raise ImageError(
            f"{name} is animated ({frames} frames of {image.format}), the model takes still images; "
            "choose one: image.seek(k); image.convert('RGB')"
        )
    if image.mode in ("I", "F"):
        raise ImageError(f"{name} has mode {image.mode!r} without a known range; scale it to 8 bits per channel first")
    try:
        upright = image if own else image.copy()
        ImageOps.exif_transpose(upright, in_place=True)
        if upright.mode.startswith("I;16"):
            # Pillow would clip instead of scaling: everything above 255 would become white.
            upright = Image.fromarray((np.asarray(upright).astype(np.uint16) >> 8).astype(np.uint8))
        if upright.has_transparency_data:
            layered = upright.convert("RGBA")
            upright = Image.new("RGBA", layered.size, (255, 255, 255, 255))
            upright.alpha_composite(layered)
        return upright if upright.mode == "RGB" else upright.convert("RGB")
    except Exception as error:
        # On truncated or damaged files Pillow's decoders raise OSError, SyntaxError, ValueError, and many more.
        raise ImageError(f"{name} is damaged and cannot be decoded ({error}); save it again") from error


def _checked_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"the text is not valid Unicode at character {error.start}; decode it as UTF-8") from error
    return text


def _content_part(position: int, part: Mapping[str, Any], limits: PromptLimits) -> str | Picture:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("text", "input_text") and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "image" and "image" in part:
        image: Picture = part["image"]
        if isinstance(image, str):
            raise PromptError(f"part {position}: image is a str; pass a PIL image, bytes, or use type image_url")
        return image
    if kind in ("image_url", "input_image"):
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, Mapping) else url
        if isinstance(url, str):
            return _decode_data_url(url, limits, name=f"part {position}")
    raise PromptError(
        f"part {position} of type {kind!r} is not understood; use {{'type': 'text', 'text': ...}} "
        "or {'type': 'image_url', 'image_url': {'url': 'data:image/png;base64,...'}}"
    )


def _decode_data_url(url: str, limits: PromptLimits, name: str) -> bytes:
    head, comma, data = url.partition(",")
    if not head.lower().startswith("data:"):
        raise PromptError(f"{name}: {url[:60]!r} is not fetched here; download it and pass a data: URL or the bytes")
    if not comma or not head.lower().endswith(";base64"):
        raise PromptError(f"{name}: {head[:60]!r} is not a base64 data URL; write data:image/png;base64,...")
    # Base64 uses four characters for three bytes, so the limit can be checked before decoding.
    if len(data) * 3 // 4 > limits.encoded_bytes + 3:
        raise ImageError(
            f"{name} has about {len(data) * 3 // 4} bytes, the limit is {limits.encoded_bytes}; save it smaller"
        )
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"{name} is not valid base64 ({error}); encode the file's bytes again") from error
