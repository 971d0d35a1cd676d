"""A sample of text is one row: whole lines in order, all of a long document reachable, nothing around it matters."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kosmosg.data.packing import DocumentGroups, document_lines, text_row
from kosmosg.errors import ConfigError

BOS, EOS, LINE = 0, 2, 99
LONG = 1000


def words(line: str) -> list[int]:
    return [ord(letter) for letter in line if letter != " "]


def row(documents: list[str], length: int, number: float = 0.0) -> list[int]:
    return text_row(documents, length, words, BOS, LINE, EOS, lambda: number)


def test_every_line_is_closed_and_the_last_one_ends_the_document() -> None:
    assert document_lines("aa\n\nb", LONG, LINE, EOS) == [("aa", [LINE]), ("b", [EOS])]
    assert document_lines("a\n", LONG, LINE, EOS) == [("a", [EOS])]
    assert document_lines("a\n \nb", LONG, LINE, EOS) == [("a", [LINE]), (" ", [LINE]), ("b", [EOS])]
    assert document_lines("", LONG, LINE, EOS) == [("", [EOS])]


@given(st.text("ab \n", max_size=60), st.integers(1, 12))
def test_a_broken_line_loses_nothing(text: str, longest: int) -> None:
    lines = document_lines(text, longest, LINE, EOS)
    assert all(len(line) <= longest for line, _ in lines)
    assert [close for _, close in lines][-1] == [EOS]
    parts = "".join(line + ("\n" if close else "") for line, close in lines)
    assert parts.strip("\n") == "\n".join(line for line in text.split("\n") if line)


def test_documents_that_fit_stand_in_their_order() -> None:
    a, b, c = (ord(letter) for letter in "abc")
    assert row(["a\nb", "c"], 7) == [BOS, a, LINE, b, EOS, c, EOS]
    assert row(["a", ""], 7) == [BOS, a, EOS, EOS]


def test_a_line_as_long_as_a_row_is_cut() -> None:
    assert row(["abcdefgh"], 4) == [BOS, *words("abc")]


def test_no_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="rows of 1 tokens"):
        row(["a"], 1)


DOCUMENTS = st.lists(st.lists(st.text("abc ", max_size=9), max_size=12).map("\n".join), min_size=1, max_size=4)


@given(DOCUMENTS, st.integers(2, 16), st.floats(0, 1, exclude_max=True))
def test_a_row_is_a_stretch_of_whole_lines_that_could_not_be_longer(
    documents: list[str], length: int, number: float
) -> None:
    found = row(documents, length, number)
    lines = [
        [*words(text), *close][: length - 1]
        for document in documents
        for text, close in document_lines(document, LONG, LINE, EOS)
    ]
    assert found[0] == BOS
    assert 1 < len(found) <= length
    starts = []
    for start in range(len(lines)):
        taken, stop = [BOS], start
        while stop < len(lines) and len(taken) + len(lines[stop]) <= length:
            taken += lines[stop]
            stop += 1
        if taken == found:
            starts.append((start, stop))
    assert starts, "no stretch of lines gives this row"
    if sum(map(len, lines)) < length:
        assert (0, len(lines)) in starts
    assert row(documents, length, number) == found


@given(DOCUMENTS, st.integers(2, 16))
def test_every_line_is_in_some_row(documents: list[str], length: int) -> None:
    lines = [line for document in documents for line in document_lines(document, LONG, LINE, EOS)]
    rows = [row(documents, length, (step + 0.5) / (4 * len(lines))) for step in range(4 * len(lines))]
    for text, close in lines:
        tokens = [*words(text), *close][: length - 1]
        assert any(
            found[at : at + len(tokens)] == tokens for found in rows for at in range(1, len(found) - len(tokens) + 1)
        )


@pytest.mark.parametrize("separator", ["\n", " ", ""])
def test_a_document_of_a_million_characters_is_one_row_and_little_work(separator: str) -> None:
    rng = random.Random(1)
    text = separator.join("".join(rng.choices("abcdefgh", k=50)) for _ in range(20_000))
    read = 0

    def counting(line: str) -> list[int]:
        nonlocal read
        read += len(line)
        return words(line)

    found = [text_row([text], 2048, counting, BOS, LINE, EOS, lambda n=n: n / 10) for n in range(10)]
    assert all(1 < len(one) <= 2048 for one in found)
    assert len({tuple(one) for one in found}) == 10  # other epochs read other stretches
    assert read / 10 < 3 * 2048 * 8 * 2


@given(st.integers(0, 40), st.integers(1, 7))
def test_groups_hold_every_record_once_in_order(count: int, size: int) -> None:
    records = [{"id": index} for index in range(count)]
    groups = DocumentGroups(records, size)
    documents = [groups[index]["documents"] for index in range(len(groups))]
    assert [record for group in documents for record in group] == records
    assert all(len(group) == size for group in documents[:-1])
