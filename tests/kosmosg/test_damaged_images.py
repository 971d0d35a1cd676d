"""Whatever is done to the bytes of an image, it opens or it is refused as an `ImageError`; nothing else comes out."""

import io
import random

import pytest
from PIL import Image

from kosmosg.errors import ImageError
from kosmosg.prompt import read_image


def encoded(form: str) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((40, 30), 60).convert("RGB").save(out, format=form)
    return out.getvalue()


def opens(data: bytes) -> bool:
    try:
        return read_image(data).mode == "RGB"
    except ImageError:
        return False


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
def test_a_picture_that_breaks_off_or_was_tampered_with(form: str) -> None:
    whole = encoded(form)
    assert opens(whole)
    cut_short = [opens(whole[:length]) for length in range(1, len(whole) // 2, 1 + len(whole) // 200)]
    assert not any(cut_short)
    chance = random.Random(form)
    for _ in range(150):
        spoilt = bytearray(whole)
        for _ in range(4):
            spoilt[chance.randrange(len(spoilt))] = chance.randrange(256)
        opens(bytes(spoilt))
