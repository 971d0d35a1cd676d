"""Registries: plug-ins fill them, and a name that is not there is told with the nearest one."""

import pytest

from kosmosg import ConfigError
from kosmosg.plugins import find_entry


def test_an_entry_is_found_by_its_name() -> None:
    assert find_entry({"blur": 1, "size": 2}, "size", "build.steps.0.use") == 2


def test_an_unknown_name_is_refused_with_the_nearest_one_and_all_of_them() -> None:
    with pytest.raises(
        ConfigError, match=r"build\.steps\.0\.use: there is no 'blurr'; did you mean blur\? .*blur, size"
    ):
        find_entry({"blur": 1, "size": 2}, "blurr", "build.steps.0.use")
