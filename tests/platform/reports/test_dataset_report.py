"""The report of a dataset: self-contained, safe, the same every time, and it shows everything that is told of it."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kosmosg_platform.datasets.dataset import read_manifest
from kosmosg_platform.reports.dataset_report import REJECTED, is_current, rejected_rows, write_dataset_report
from kosmosg_platform.reports.record_card import CHARACTERS, fitted, marked, record_card
from kosmosg_platform.storage import read_json
from tests.made_records import NOUNS, composition, records, rejections, write_dataset

KINDS = ("composition", "edit", "caption", "text", "interleaved")
HOSTILE = '</p><script>alert(1)</script><img src="http://evil.example/x" onerror=alert(2)> {{ 7*7 }} \u202e\x00\x1b[31m'
VOID = {"meta", "img", "br", "hr", "link", "input", "rect"}


class Page(HTMLParser):
    """What a page consists of; refuses tags that are not closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.images: list[bytes] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "img":
            source = dict(attrs)["src"] or ""
            assert source.startswith("data:image/jpeg;base64,")
            self.images.append(base64.b64decode(source.partition(",")[2]))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "title"):
            self.words += data


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("words", ["in the snow", HOSTILE])
def test_every_kind_has_a_whole_and_harmless_page(tmp_path: Path, kind: str, words: str) -> None:
    rejected = rejections({f"decode: {words if words == HOSTILE else 'unreadable'}": 3}, message=words)
    folder = write_dataset(tmp_path / "data", kind, records(kind, 9, words=words), rejected=rejected)
    page = Page(write_dataset_report(folder))
    assert not {"script", "iframe", "object", "link", "form", "a"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "href") or value.startswith("data:image/jpeg;base64,")
        assert name != "style" or re.fullmatch(r"(--mark: #[0-9a-f]{6}|width: [\d.]+%)", value)
    assert "9 written" in page.words
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e]", page.words)
    if words == HOSTILE:
        assert "<script>alert(1)</script>" in page.words
        assert "{{ 7*7 }}" in page.words
    for data in page.images:
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == "JPEG"
            assert max(image.size) <= 320
    assert bool(page.images) == (kind != "text")


def test_the_same_dataset_gives_the_same_bytes(tmp_path: Path) -> None:
    pages = []
    for name in ("one", "two"):
        rejected = rejections({"decode: unreadable": 30, "blur: blurred": 2})
        folder = write_dataset(tmp_path / name, "composition", records("composition", 60), 3, rejected)
        pages.append((write_dataset_report(folder).read_bytes(), (folder / "statistics.json").read_bytes()))
    assert pages[0] == pages[1]


def test_it_says_what_was_built_what_was_left_out_and_why(tmp_path: Path) -> None:
    rejected = rejections({"decode: unreadable": 30, "blur: blurred": 2})
    folder = write_dataset(tmp_path, "composition", records("composition", 8), 2, rejected, filters=["blur"])
    words = Page(write_dataset_report(folder)).words
    for told in (
        "40 read = 8 written + 2 filtered + 30 quarantined",
        "folder of photos",
        "blip2",
        "model=Some/captioner-2, prompt=a photo of",
        "captions of Some/captioner-2",
        read_manifest(folder)["sha256"],
        "unreadable",
        "blurred/1: it cannot be used",
        "too-small",
        "Based on all 8 records.",
        "licence: CC BY 2.0; author: N. N.",
    ):
        assert told in words, told
    assert read_json(folder / "statistics.json")["counts"]["quarantined"] == 30


def test_a_dataset_whose_rows_were_all_of_use_has_a_page_too(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, "text", [], rejected=[])
    assert "0 read = 0 written" in Page(write_dataset_report(folder)).words


def test_it_is_current_until_the_dataset_changes(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, "text", records("text", 5))
    assert not is_current(folder)
    write_dataset_report(folder)
    assert is_current(folder)
    write_dataset(folder, "text", records("text", 6))
    assert not is_current(folder)
    write_dataset_report(folder)
    (folder / "statistics.json").write_text("{")
    assert not is_current(folder)


@settings(max_examples=12)
@given(
    counts=st.dictionaries(st.sampled_from(["a: x", "a: y", "b: x", "c: z"]), st.integers(1, 40), min_size=1),
    shards=st.integers(1, 6),
    seed=st.integers(0, 3),
)
def test_of_every_reason_as_many_rejected_rows_as_there_are_but_no_more_than_shown(
    counts: dict[str, int], shards: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = rejections(counts)
    Random(seed).shuffle(rows)
    folder = write_dataset(tmp_path_factory.mktemp("rejected"), "text", records("text", 2), shards, rows)
    shown = list(rejected_rows(folder, read_manifest(folder), seed))
    labels = [f"{row['stage']}: {row['reason']}" for row in shown]
    assert {label: labels.count(label) for label in set(labels)} == {
        label: min(count, REJECTED) for label, count in counts.items()
    }
    assert len({(row["stage"], row["id"]) for row in shown}) == len(shown)
    assert all(row in rows for row in shown)


@settings(max_examples=25)
@given(number=st.integers(0, 1000))
def test_a_marked_caption_reads_as_the_caption_and_marks_its_entities(number: int) -> None:
    record = composition(Random(number), number)
    pieces = marked(record["caption"], record["entities"])
    assert "".join(words for words, _ in pieces) == record["caption"]
    assert [words for words, colour in pieces if colour] == [entity["text"] for entity in record["entities"]]
    assert len({colour for _, colour in pieces if colour}) == len(record["entities"])


@given(spans=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=5))
def test_spans_that_overlap_or_leave_the_caption_lose_no_character(spans: list[tuple[int, int]]) -> None:
    caption = "a cat and a dog in the snow"
    entities = [{"start": start, "end": end} for start, end in spans]
    assert "".join(words for words, _ in marked(caption, entities)) == caption


def test_boxes_are_drawn_where_the_entity_is() -> None:
    record = composition(Random(5), 1)
    record["entities"] = record["entities"][:1]
    record["entities"][0]["box"] = [4, 4, 20, 20]
    card = record_card(record, ["image"])
    image = Image.open(io.BytesIO(card.figures[0].data)).convert("RGB")
    scale = image.width / record["width"]
    assert scale == int(scale) > 1, "pixel art grows by whole numbers"
    red, green, blue = image.getpixel((round(12 * scale), round(4 * scale) + 1))
    assert (red, green, blue) == pytest.approx((0xD1, 0x24, 0x2F), abs=40)
    assert [figure.caption.partition(",")[0] for figure in card.figures[1:]] == [
        f"{record['entities'][0]['text']}: crop",
        f"{record['entities'][0]['text']}: cut-out",
    ]


@pytest.mark.parametrize("field", ["image", "crop", "mask"])
def test_an_image_that_cannot_be_decoded_is_said_and_stops_nothing(tmp_path: Path, field: str) -> None:
    made = records("composition", 3)
    holder = made[1] if field == "image" else made[1]["entities"][0]
    holder[field] = b"<html>"
    words = Page(write_dataset_report(write_dataset(tmp_path, "composition", made))).words
    assert "(cannot be decoded)" in words


def test_a_long_text_is_cut_and_says_how_long_it_is(tmp_path: Path) -> None:
    made = [*records("text", 1), {"id": "long", "text": "word " * 100_000, "source": "t"}]
    folder = write_dataset(tmp_path, "text", made)
    path = write_dataset_report(folder)
    assert "(500,000 characters)" in path.read_text()
    assert path.stat().st_size < 20_000 + 4 * CHARACTERS


@settings(max_examples=25)
@given(width=st.integers(1, 2000), height=st.integers(1, 2000))
def test_thumbnails_fit_and_are_never_empty(width: int, height: int) -> None:
    shown, scale = fitted(Image.new("RGB", (width, height)), 128)
    assert 1 <= min(shown.size) <= max(shown.size) <= 128
    assert scale <= 1 or scale == int(scale)


def test_nouns_are_counted_without_their_article(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, "composition", records("composition", 60))
    write_dataset_report(folder)
    assert set(read_json(folder / "statistics.json")["entity_words"]) == set(NOUNS)
