"""Captions of the source: without markup where that is asked for, and refused where there are none."""

import pytest

from kosmosg.data.annotators.base import ANNOTATORS, Rejection, Sample
from kosmosg.data.annotators.told import ToldCaptioner, ToldSettings, plain_text
from kosmosg.plugins import load_entry


def answer(caption: str | None, strip_markup: bool = True) -> str | Rejection:
    hints = {} if caption is None else {"caption": caption}
    (said,) = ToldCaptioner(strip_markup)([Sample("a.tar/1", "a.tar", b"", hints=hints)])
    return said


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("a dog &amp; a cat", "a dog & a cat"),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("a <b>red</b> <a href='x>y'>van</a>", "a red van"),
        ("<a title=it's>a dog</a>", "a dog"),
        ("<p class=x>a dog<br/>on the\nbeach</p>", "a dog on the beach"),
        ("I <3 cats", "I <3 cats"),
        ("3 < 5 and 7 > 5", "3 < 5 and 7 > 5"),
        ("a&nbsp;caf&eacute; in Li&#232;ge", "a café in Liège"),
        ("x<script>alert('&lt;')</script>y<!-- z -->", "x y"),
        ("&lt;html&gt; the book", "<html> the book"),
    ],
)
def test_markup_is_taken_out(written: str, read: str) -> None:
    assert answer(written) == read
    assert answer(written, strip_markup=False) == " ".join(written.split())


@pytest.mark.parametrize("written", [None, "", "  \n ", "<img src='a.jpg'/>", "&nbsp;"])
def test_no_caption_is_refused(written: str | None) -> None:
    said = answer(written)
    assert isinstance(said, Rejection)
    assert said.reason == "no-caption"
    assert "a.tar/1" in said.message


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "written",
    [
        "<" * 5000,
        "<a" * 2500,
        "<!--" * 1250,
        "<script>" * 600,
        "&" * 5000,
        "<a " * 1600,
        "<a '" * 1250,
        "<a b='\"" * 600,
    ],
)
def test_no_caption_takes_long(written: str) -> None:
    plain_text(written)


def test_it_is_an_entry() -> None:
    assert load_entry(ANNOTATORS, "told", "use") is ToldCaptioner
    assert ToldSettings().strip_markup
