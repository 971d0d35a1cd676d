"""Packs hold whole lines in order, as full as they can be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kosmosg.data.packing import document_lines, pack_lines
from kosmosg.errors import ConfigError

BOS, EOS, LINE = 0, 2, 99


def words(line: str) -> list[int]:
    return [ord(letter) for letter in line if letter != " "]


def test_every_line_is_closed_and_the_last_one_ends_the_document() -> None:
    a, b = ord("a"), ord("b")
    assert document_lines("aa\n\nb", words, LINE, EOS) == [[a, a, LINE], [b, EOS]]
    assert document_lines("a\n", words, LINE, EOS) == [[a, EOS]]
    assert document_lines("a\n \nb", words, LINE, EOS) == [[a, LINE], [LINE], [b, EOS]]  # a blank is a line
    assert document_lines("", words, LINE, EOS) == [[EOS]]


def test_a_line_that_fits_exactly_stays_and_the_next_opens_a_pack() -> None:
    lines = [[11, LINE], [12, EOS], [13, EOS]]
    assert list(pack_lines(lines, 5, BOS)) == [[BOS, 11, LINE, 12, EOS], [BOS, 13, EOS]]
    assert list(pack_lines(lines, 4, BOS)) == [[BOS, 11, LINE], [BOS, 12, EOS], [BOS, 13, EOS]]


def test_a_line_as_long_as_a_pack_is_cut() -> None:
    assert list(pack_lines([[1, 2, 3, LINE]], 4, BOS)) == [[BOS, 1, 2, 3]]
    assert list(pack_lines([[1, 2, 3, 4, 5, LINE], [6, EOS]], 4, BOS)) == [[BOS, 1, 2, 3], [BOS, 6, EOS]]


def test_no_text_gives_no_pack_and_no_room_is_refused() -> None:
    assert list(pack_lines([], 8, BOS)) == []
    with pytest.raises(ConfigError, match="packs of 1 tokens"):
        list(pack_lines([[5]], 1, BOS))


@given(st.lists(st.lists(st.integers(3, 98), min_size=1, max_size=12), max_size=30), st.integers(2, 16))
def test_packs_keep_order_and_length_and_could_not_be_fuller(lines: list[list[int]], length: int) -> None:
    packs = list(pack_lines(lines, length, BOS))
    cut = [line[: length - 1] for line in lines]
    assert [token for pack in packs for token in pack[1:]] == [token for line in cut for token in line]
    assert all(pack[0] == BOS and 1 < len(pack) <= length for pack in packs)
    following = iter(cut)
    line = next(following, [])
    for pack in packs:
        room = length - 1
        while line and len(line) <= room:
            room -= len(line)
            line = next(following, [])
        assert len(pack) == length - room
