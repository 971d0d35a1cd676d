"""What people write as a caption is kept; markup, addresses, broken encodings and other languages are turned down."""

import gzip
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kosmosg.data.annotators.base import Sample
from kosmosg.data.filters.caption_markup import CaptionMarkupFilter, is_letter
from kosmosg.data.filters.function_words import ENGLISH, OTHERS, FunctionWordFilter
from kosmosg.errors import ConfigError

GOOD = [
    "A dog runs along the beach with a frisbee.",
    'Two kids, aged 4 & 6, sitting on a bench: "Look!" says one.',
    "Café in Montréal – people are sitting outside…",
    "A woman’s hand holding a “vintage” camera",
    "a cat and a dog and a bird and a fish",
    "CAFÉ’S FINEST CROISSANTS",
    "the sign says SÃO PAULO",
    "a sign “IRMÃ” on a door",
    "PÅ… a sign in Swedish",
    "voilà – a plate of crêpes",
    "girl in a t-shirt no. 7 at 5 p.m.",
    "people < 5 years old",
    "a dog.A cat is behind it",
    "R&B singer on stage",
    "The letter Ã",
]
BAD = {
    "markup": [
        "<p>A dog", "A dog<br/> and a cat", 'A <a href="x">dog</a>', "Fish &amp; chips", "A dog&nbsp;runs",
        "&#39;hello&#39;", "[url=x]A dog", "text <!-- comment --> more",
    ],
    "address": [
        "A dog http://example.org/a", "see HTTPS://EXAMPLE.ORG", "www.example.de a dog", "write to me@example.fr now",
        "Photo by example.com",
    ],
    "file-name": ["IMG_1234.JPG", "dog.png", "DSC00123", "dscn 4711 dog", "img-0042 beach", "a/b/c/photo_final-2.jpeg"],
    "few-letters": ["", "   ", "12345", "!!! ??? a", "10 x 20 / 30 x 40", "$ 49.99", "★★★★★ ok"],
    "foreign-letters": ["Собака бежит по пляжу", "沙滩上的一只狗", "a кошка", "一只狗 dog", "समुद्र तट पर एक कुत्ता"],
    "repetition": ["dog dog dog dog dog dog", "sale sale sale sale sale sale sale now", "a b a b a b a b a b a b"],
}  # fmt: skip
ACCENTED = [
    "crème brûlée on a table", "señorita in the mañana", "Müller's Straße", "São João fair", "Ångström ÅÄÖ",
    "it’s “here” – now…", "naïve café", "собака", "πλατεία", "犬と猫", "a dog 🐕 runs", "Žižkov řeka", "1 € for 5 °C",
]  # fmt: skip


def reason(judge: CaptionMarkupFilter | FunctionWordFilter, caption: str) -> str | None:
    found = judge(Sample("1", "test", b"", caption=caption))
    return found.reason if found else None


@pytest.mark.parametrize("caption", GOOD)
def test_captions_are_kept(caption: str) -> None:
    assert reason(CaptionMarkupFilter(), caption) is None


@pytest.mark.parametrize(
    ("expected", "caption"), [(why, caption) for why, captions in BAD.items() for caption in captions]
)
def test_what_is_no_caption_is_turned_down_by_name(expected: str, caption: str) -> None:
    assert reason(CaptionMarkupFilter(), caption) == expected


@pytest.mark.parametrize("caption", ACCENTED)
def test_utf8_read_as_windows_1252_is_noticed_and_the_right_reading_is_not(caption: str) -> None:
    judge = CaptionMarkupFilter(max_foreign=1.0, min_letters=0.0)
    assert reason(judge, caption) is None
    broken = "".join(
        bytes([byte]).decode("cp1252") if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else chr(byte)
        for byte in caption.encode()
    )
    assert reason(judge, broken) == "mojibake"
    assert reason(judge, caption.encode().decode("ascii", errors="replace")) == "mojibake"


@given(st.text(max_size=200))
def test_any_text_gets_an_answer(caption: str) -> None:
    reason(CaptionMarkupFilter(), caption)
    reason(FunctionWordFilter(), caption)


@given(letters=st.integers(0, 20), digits=st.integers(0, 20), share=st.floats(0, 1))
def test_the_share_of_letters_is_a_threshold(letters: int, digits: int, share: float) -> None:
    found = reason(CaptionMarkupFilter(min_letters=share), "b" * letters + " " + "7" * digits)
    enough = letters > 0 and letters >= share * (letters + digits)
    assert (found == "few-letters") == (not enough)


def test_marks_belong_to_their_letters() -> None:
    assert all(is_letter(sign) for sign in "aéकुत्ता狗e\u0301")
    assert not any(is_letter(sign) for sign in "1 ,★&")


OTHER_CAPTIONS = {
    "German": "Ein Hund läuft mit einem Ball über den Strand",
    "French": "Un chien court sur la plage avec une balle",
    "Spanish": "Un perro corre por la playa con una pelota",
    "Portuguese": "Um cachorro corre na praia com uma bola",
    "Italian": "Un cane corre sulla spiaggia con una palla",
    "Dutch": "Een hond rent met een bal over het strand",
    "Polish": "Pies biegnie po plaży z piłką i dziecko stoi przy nim",
    "Swedish": "En hund springer på stranden med en boll",
    "Turkish": "Bir köpek ve bir çocuk kumsalda top ile oynuyor",
}


@pytest.mark.parametrize("language", OTHER_CAPTIONS)
def test_sentences_of_other_languages_are_turned_down_by_their_small_words(language: str) -> None:
    found = FunctionWordFilter()(Sample("1", "test", b"", caption=OTHER_CAPTIONS[language]))
    assert found is not None
    assert found.reason == "other-language"
    assert language in found.message


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "Hund, Strand",
        "Brown dog",
        "la la la",
        *GOOD,
        "A man in a café called Le Chien et la Lune on the corner of the street",
    ],
)
def test_without_evidence_a_caption_is_kept(caption: str) -> None:
    if caption == "la la la":
        assert reason(FunctionWordFilter(min_foreign=4), caption) is None
    else:
        assert reason(FunctionWordFilter(), caption) is None


def test_a_share_of_english_words_can_be_asked_for() -> None:
    judge = FunctionWordFilter(min_english=0.2)
    assert reason(judge, "brown dog beach frisbee") == "no-english"
    assert reason(judge, "a brown dog on the beach") is None
    assert reason(judge, "") is None


def test_no_word_is_evidence_for_english_and_against_it() -> None:
    from kosmosg.data.filters import function_words

    for language, known in function_words._OTHERS.items():
        assert not known & set(ENGLISH.split())
        assert len(known) > 15, language
    assert set(OTHER_CAPTIONS) == set(OTHERS)


def test_real_english_captions_are_kept(shared_data: Path) -> None:
    """Flickr30k: of 29,000 captions some dozens go, for what does stand in them ("&amp;", "ambra.com"); none for its
    language, encoding or letters."""
    path = shared_data / "data" / "captions" / "flickr30k.train.1.txt.gz"
    if not path.is_file():
        pytest.skip("the captions of Flickr30k are not here")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        captions = [line.strip() for line in lines]
    assert len(captions) == 29_000
    assert [caption for caption in captions if reason(FunctionWordFilter(), caption)] == []
    reasons = Counter(reason(CaptionMarkupFilter(), caption) for caption in captions)
    assert set(reasons) <= {None, "markup", "address", "repetition"}
    assert reasons[None] > 28_950


@pytest.mark.parametrize(
    "make",
    [
        lambda: CaptionMarkupFilter(min_letters=1.2),
        lambda: CaptionMarkupFilter(max_foreign=-1),
        lambda: CaptionMarkupFilter(max_repetition=2),
        lambda: FunctionWordFilter(min_foreign=0),
        lambda: FunctionWordFilter(min_english=1.5),
    ],
)
def test_settings_without_sense_are_refused(make: object) -> None:
    with pytest.raises(ConfigError):
        make()  # type: ignore[operator]
