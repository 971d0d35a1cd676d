"""A protocol's id is equal exactly where everything that moves a number is equal, and says when it was changed."""

import dataclasses

import pytest

from kosmosg.errors import ConfigError
from kosmosg.eval.protocol import PROTOCOLS, Protocol, find_protocol
from kosmosg.plugins import load_plugins

KOSMOSG = PROTOCOLS["dreambench-kosmosg"]


def test_every_protocol_has_an_id_of_its_own() -> None:
    load_plugins()
    ids = {protocol.protocol_id for protocol in PROTOCOLS.values()}
    assert len(ids) == len(PROTOCOLS) == 6
    assert all(len(identifier) == 10 for identifier in ids)


def test_what_was_published_stands_in_the_protocols() -> None:
    """The settings of the original's scripts (sample_kosmosg_dreambench.py, sample_kosmosg_coco.py)."""
    coco = PROTOCOLS["coco-kosmosg"]
    assert (KOSMOSG.solver, KOSMOSG.steps, KOSMOSG.guidance, KOSMOSG.batch) == ("dpms", 100, 7.5, 5)
    assert (KOSMOSG.pictures, KOSMOSG.count, KOSMOSG.noise, KOSMOSG.seed) == (4, 25, "batch", 0)
    assert (coco.solver, coco.steps, coco.guidance, coco.batch, coco.size) == ("ddim", 250, 3.0, 16, 512)
    assert (coco.count, coco.noise, coco.resize) == (30_000, "batch", "tf1")


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Protocol)])
def test_every_setting_is_in_the_id_but_not_what_is_written_about_it(field: str) -> None:
    value = getattr(KOSMOSG, field)
    other = {"x": "y"} if isinstance(value, dict) else f"{value}?" if isinstance(value, str) else (value or 0) + 1
    changed = dataclasses.replace(KOSMOSG, **{field: other})
    assert (changed.protocol_id == KOSMOSG.protocol_id) == (field in ("name", "source"))


def test_batch_counts_only_where_pictures_share_its_noise() -> None:
    alone = PROTOCOLS["dreambench"]
    assert alone.changed(batch=7).protocol_id == alone.protocol_id
    assert KOSMOSG.changed(batch=7).protocol_id != KOSMOSG.protocol_id


def test_a_changed_protocol_tells_what_was_changed() -> None:
    assert KOSMOSG.deviations() == []
    assert KOSMOSG.label == f"dreambench-kosmosg@{KOSMOSG.protocol_id}"
    changed = KOSMOSG.changed(steps=2, guidance=None)
    assert changed.deviations() == ["steps 2 instead of 100"]
    assert changed.label.startswith("dreambench-kosmosg (changed)@")


def test_digests_of_data_and_weights_are_part_of_the_id_and_no_deviation() -> None:
    weights = {"dino": "a" * 64, "clip": "b" * 64}
    measured = KOSMOSG.measured("data", weights)
    assert measured.deviations() == []
    ids = {
        KOSMOSG.protocol_id,
        measured.protocol_id,
        KOSMOSG.measured("other", weights).protocol_id,
        KOSMOSG.measured("data", weights | {"clip": "c" * 64}).protocol_id,
    }
    assert len(ids) == 4
    with pytest.raises(ConfigError, match="uses the networks clip, dino, digests were given for dino"):
        KOSMOSG.measured("data", {"dino": "a"})


def test_an_unknown_protocol_names_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"there is no 'kosmos'; did you mean .* choose one of coco-clean, coco-kosmosg, .*toyworld"
    ):
        find_protocol("kosmos")
