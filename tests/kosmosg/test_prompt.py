"""`Prompt` keeps order and content, and refuses what it cannot keep in one clear sentence."""

import base64
import io
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops

from kosmosg import ImageError, KosmosGError, Prompt, PromptError
from kosmosg.prompt import PromptLimits, read_image

RED = Image.new("RGB", (8, 6), "red")
BLUE = Image.new("RGB", (5, 9), "blue")


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def test_places_become_images_in_order() -> None:
    prompt = Prompt("<i> in the style of <i>", images=[RED, BLUE])
    kinds = [part if isinstance(part, str) else part.size for part in prompt.parts]
    assert kinds == [(8, 6), " in the style of ", (5, 9)]
    assert prompt.text == "<i> in the style of <i>"
    assert [image.size for image in prompt.images] == [(8, 6), (5, 9)]


def test_the_same_content_is_the_same_prompt_however_it_is_given() -> None:
    by_text = Prompt("a cat<i>sleeping in<i>", images=[RED, BLUE])
    by_parts = Prompt.from_parts(["a cat", RED, "sleeping in", encoded(BLUE)])
    by_messages = Prompt.from_messages(
        [
            {"type": "text", "text": "a cat"},
            {"type": "image_url", "image_url": {"url": data_url(encoded(RED))}},
            {"type": "input_text", "text": "sleeping in"},
            {"type": "input_image", "image_url": data_url(encoded(BLUE))},
        ]
    )
    assert by_text == by_parts == by_messages
    assert len({by_text, by_parts, by_messages}) == 1


@given(st.lists(st.one_of(st.text(max_size=8).filter(lambda text: "<i>" not in text), st.sampled_from([RED, BLUE]))))
def test_text_and_images_rebuild_the_prompt(parts: list[str | Image.Image]) -> None:
    prompt = Prompt.from_parts(parts, PromptLimits(images=1000))
    if "<i>" not in "".join(part if isinstance(part, str) else "\0" for part in prompt.parts):
        assert Prompt(prompt.text, prompt.images, PromptLimits(images=1000)) == prompt


def test_digest_tells_order_content_and_framing_apart() -> None:
    digests = {
        prompt.sha256()
        for prompt in (
            Prompt(""),
            Prompt("a"),
            Prompt("<i>", [RED]),
            Prompt("<i>", [BLUE]),
            Prompt("<i>", [RED.transpose(Image.Transpose.ROTATE_90)]),
            Prompt("a<i>", [RED]),
            Prompt("<i>a", [RED]),
            Prompt("<i><i>", [RED, BLUE]),
            Prompt("<i><i>", [BLUE, RED]),
        )
    }
    assert len(digests) == 9


def test_images_are_known_by_their_pixels() -> None:
    first, second = Prompt("<i> and <i>", [RED, encoded(RED)]).image_sha256s()
    assert first == second == Prompt("another <i>", [RED]).image_sha256s()[0]
    assert Prompt("<i>", [BLUE]).image_sha256s() != (first,)
    assert Prompt("a cat").image_sha256s() == ()


def test_a_prompt_owns_its_pixels() -> None:
    image = RED.copy()
    prompt = Prompt("<i>", [image])
    before = prompt.images[0].tobytes()
    image.paste("blue", (0, 0, 8, 6))
    assert prompt.images[0].tobytes() == before


def test_markup_of_the_tokenizer_is_ordinary_text() -> None:
    assert Prompt("an <image> of </s> <I>").parts == ("an <image> of </s> <I>",)


def test_the_empty_prompt_has_no_parts() -> None:
    assert Prompt("").parts == ()
    assert Prompt.from_parts([]) == Prompt("") == Prompt.from_parts([""])


@pytest.mark.parametrize(
    ("text", "images", "said"),
    [("<i> and <i>", [RED], "2 places"), ("a cat", [RED], "0 places"), ("<i>", [RED, BLUE], "2 images")],
)
def test_places_and_images_must_agree(text: str, images: list[Image.Image], said: str) -> None:
    with pytest.raises(PromptError, match=said):
        Prompt(text, images)


@pytest.mark.parametrize("images", [RED, b"bytes", "cat.png", None, (image for image in [RED])])
def test_images_come_as_a_list(images: object) -> None:
    with pytest.raises(PromptError, match=rf"got one {type(images).__name__}; pass a list, such as images=\[image\]"):
        Prompt("<i>", images)


def test_a_str_among_the_images_is_not_taken_for_text() -> None:
    """The name of a file would else be read as words, and the image in it never."""
    with pytest.raises(ImageError, match=r"image 2 of 2 is the str 'cat\.png'; a path is a pathlib\.Path"):
        Prompt("<i> and <i>", [RED, "cat.png"])


def test_limits_name_value_limit_and_remedy() -> None:
    with pytest.raises(PromptError, match=r"17 images, the limit is 16; leave some out"):
        Prompt("<i>" * 17, [RED] * 17)
    with pytest.raises(PromptError, match=r"40000 characters of text, the limit is 32000; shorten"):
        Prompt("word " * 8000)
    with pytest.raises(ImageError, match=r"image 1 of 1 has 20x20 = 400 pixels, the limit is 399; resize"):
        Prompt("<i>", [Image.new("RGB", (20, 20))], PromptLimits(pixels=399))
    with pytest.raises(ImageError, match=r"bytes, the limit is 10; save it smaller"):
        Prompt("<i>", [encoded(RED)], PromptLimits(encoded_bytes=10))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (["<i> in", RED], "part 0 is text with <i>"),
        ("text", "list of text and images"),
        ([3], "image 1 of 1 is a int"),
    ],
)
def test_wrong_parts(parts: object, said: str) -> None:
    with pytest.raises(KosmosGError, match=said):
        Prompt.from_parts(parts)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}, "not fetched here"),
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "not fetched here"),
        ({"type": "image_url", "image_url": {"url": "data:image/png,abc"}}, "not a base64 data URL"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,@@@"}}, "not valid base64"),
        ({"type": "image_url", "image_url": {"url": data_url(b"hello")}}, "not an image"),
        ({"type": "audio", "audio": "x"}, "type 'audio' is not understood"),
        ({"type": "text"}, "type 'text' is not understood"),
        ("text", "type None is not understood"),
        ({"type": "image", "image": "cat.png"}, "image is a str"),
    ],
)
def test_wrong_message_parts(part: object, said: str) -> None:
    with pytest.raises(KosmosGError, match=said):
        Prompt.from_messages([part])


def test_a_data_url_beyond_the_limit_is_not_decoded() -> None:
    url = "data:image/png;base64," + "A" * 4000
    with pytest.raises(ImageError, match="about 3000 bytes, the limit is 100"):
        Prompt.from_messages([{"type": "image_url", "image_url": {"url": url}}], PromptLimits(encoded_bytes=100))


def hollow_png(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return content


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_bomb_costs_its_header_only(side: int) -> None:
    with pytest.raises(ImageError, match=r"pixels.*limit.* 64000000.*resize"):
        read_image(hollow_png(side, side))


def test_images_that_cannot_be_used() -> None:
    with pytest.raises(ImageError, match="0x0 pixels"):
        read_image(Image.new("RGB", (0, 0)))
    with pytest.raises(ImageError, match="0 bytes"):
        read_image(b"")
    with pytest.raises(ImageError, match="damaged"):
        read_image(encoded(Image.effect_noise((64, 64), 90), "JPEG")[:600])
    with pytest.raises(ImageError, match="more than 100 times"):
        read_image(Image.new("RGB", (1, 101)))
    with pytest.raises(ImageError, match="without a known range"):
        read_image(Image.new("F", (4, 4)))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animated_pictures_are_refused_and_the_remedy_works(kind: str) -> None:
    content = encoded(RED, kind, save_all=True, append_images=[BLUE.resize(RED.size)])
    with pytest.raises(ImageError, match=rf"animated \(2 frames of {kind}\).*convert"):
        read_image(content)
    opened = Image.open(io.BytesIO(content))
    opened.seek(1)
    red, _, blue = read_image(opened.convert("RGB")).getpixel((3, 3))
    assert blue > red


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(ImageError, match=r"there is no file .*cat\.png"):
        Prompt("<i>", [tmp_path / "cat.png"])
    RED.save(tmp_path / "cat.png")
    assert Prompt("<i>", [tmp_path / "cat.png"]) == Prompt("<i>", [RED])


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "1", "LA", "YCbCr", "RGBA", "LAB", "HSV"])
def test_every_common_mode_becomes_rgb(mode: str) -> None:
    source = Image.new("RGB", (4, 4), "white").convert("RGBA" if mode == "LA" else "RGB")
    image = source.convert("L").convert("LA") if mode == "LA" else None
    if mode in ("LAB",):
        image = Image.new("LAB", (4, 4), (255, 128, 128))
    result = read_image(image or source.convert(mode))
    assert result.mode == "RGB"
    assert min(result.getpixel((1, 1))) >= 250


def test_cmyk_jpeg_keeps_its_colour() -> None:
    red, green, blue = read_image(encoded(Image.new("RGB", (16, 16), "red").convert("CMYK"), "JPEG")).getpixel((5, 5))
    assert red > 200 > 60 > max(green, blue)


def test_transparency_becomes_white_and_16_bits_are_scaled() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    assert [read_image(encoded(image)).getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]
    deep = Image.new("I;16", (2, 2), 32768)
    assert read_image(encoded(deep)).getpixel((0, 0)) == (128, 128, 128)


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    assert read_image(encoded(RED, "JPEG", exif=exif)).size == (6, 8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [(800, 600), (600, 800), (130, 4000), (128, 128), (100, 90)])
def test_a_size_that_is_enough_is_a_lower_limit_and_changes_what_is_seen_little(
    kind: str, size: tuple[int, int]
) -> None:
    tiles = Image.linear_gradient("L").resize(size).convert("RGB")
    whole = read_image(encoded(tiles, kind))
    part = read_image(encoded(tiles, kind), at_least=128)
    assert min(part.size) >= min(128, *size)
    assert (part.size == whole.size) == (kind != "JPEG" or min(size) < 256)
    assert abs(part.width / part.height - size[0] / size[1]) < 0.1 * size[0] / size[1]
    difference = ImageChops.difference(part.resize((16, 16)), whole.resize((16, 16)))
    assert max(high for _, high in difference.getextrema()) <= 6


def test_limits_are_those_of_the_whole_image_however_little_of_it_is_decoded() -> None:
    data = encoded(RED.resize((800, 600)), "JPEG")
    with pytest.raises(ImageError, match="800x600"):
        read_image(data, PromptLimits(pixels=100_000), at_least=32)
    with pytest.raises(ImageError, match="damaged"):
        read_image(data[: len(data) // 2], at_least=32)


def test_exif_orientation_is_applied_to_a_part_of_the_pixels_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = read_image(encoded(RED.resize((800, 600)), "JPEG", exif=exif), at_least=64)
    assert photo.size[0] < photo.size[1] < 800
