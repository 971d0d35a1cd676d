"""Which records are held out, and that nothing else changes."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kosmosg.errors import ConfigError
from kosmosg_platform.training.held_out import RemainingRows, choose_held_out, find_held_out, shares_of, training_rows
from kosmosg_platform.training.mixture import Mixture
from tests.made_records import records, write_dataset


@given(ids=st.lists(st.text(max_size=3), min_size=2, max_size=60), data=st.data())
def test_the_same_ids_are_held_out_whatever_their_order_and_the_rest_is_left(
    ids: list[str], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(ids) - 1))
    held = choose_held_out(ids, count)
    if len(held) < len(ids):
        left = RemainingRows(ids, held)
        assert [left[place] for place in range(len(left))] == [
            one for index, one in enumerate(ids) if index not in held
        ]
        assert not {left[place] for place in range(len(left))} & {ids[index] for index in held}
    assert len(held) >= count
    shuffled = data.draw(st.permutations(ids))
    assert {shuffled[index] for index in choose_held_out(shuffled, count)} == {ids[index] for index in held}


def test_kinds_of_one_dataset_hold_out_the_same_records(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_dataset(folder, "composition", records("composition", 40))
    mixture = Mixture({"composition": folder, "t2i": folder}, {"composition": 2.0, "t2i": 1.0})
    held = find_held_out(mixture, 9)
    assert held["composition"] == held["t2i"]
    assert len(held["composition"]) == 6
    assert find_held_out(mixture, 0) == {}
    sources = mixture.open()
    left = training_rows(sources, held)["t2i"]
    assert len(left) == 34
    trained = {left[index]["id"] for index in range(len(left))}
    assert not trained & {sources["t2i"][index]["id"] for index in held["t2i"]}
    assert training_rows(sources, {})["t2i"] is sources["t2i"]
    with pytest.raises(ConfigError, match=r"data\.validation: 40 records would be held out of 40"):
        find_held_out(mixture, 60)


def test_every_kind_gets_at_least_one() -> None:
    assert shares_of(10, {"a": 8.0, "b": 1.9, "c": 0.1}) == {"a": 8, "b": 2, "c": 1}
