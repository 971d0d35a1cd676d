"""Exact match: what is counted towards which group."""

import pytest

from kosmosg.eval.metrics.exact_match import exact_match


def test_each_answer_counts_towards_all_its_groups() -> None:
    found = exact_match(
        ["red", "Red", "two", ""],
        ["red", "red", "two", "one"],
        [("all", "color"), ("all", "color"), ("all",), ("all",)],
    )
    assert found == {"all": 0.5, "color": 0.5}
    assert exact_match([], [], []) == {}


@pytest.mark.parametrize("wrong", [(["a"], [], []), ([], ["a"], [()]), (["a"], ["a"], [])])
def test_one_answer_and_one_set_of_groups_for_each_case(wrong: tuple[list[str], list[str], list[tuple[()]]]) -> None:
    with pytest.raises(ValueError, match="give one for each"):
        exact_match(*wrong)
