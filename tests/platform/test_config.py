"""Presets, overlays and overrides become one checked value; every mistake names its dotted path."""

import dataclasses
from pathlib import Path

import pytest
from pydantic import Field

from kosmosg.errors import ConfigError
from kosmosg_platform.config import Section, describe, digest, flatten, parse_override, plain, resolve, to_yaml


@dataclasses.dataclass(frozen=True)
class Objective:
    weight: float = 1.0
    names: tuple[str, ...] = ()


class Optimizer(Section):
    rate: float = Field(default=0.1, gt=0)
    """How fast."""
    folder: Path | None = None
    """Where."""


class Whole(Section):
    steps: int = 5
    """How long."""
    optimizer: Optimizer = Optimizer()
    extra: Optimizer | None = None
    objective: Objective = Objective()
    shares: dict[str, float] = Field(default_factory=dict)


@pytest.fixture
def presets(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(
        "steps: 7\noptimizer: {rate: 0.5}\njobs:\n  learn:\n    optimizer: {folder: a/b}\n    shares: {x: 1}\n"
    )
    (tmp_path / "broken.yaml").write_text("steps: [1\n")
    (tmp_path / "list.yaml").write_text("- 1\n")
    return tmp_path


def test_order_is_defaults_preset_overlay_overrides(presets: Path) -> None:
    other = resolve(Whole, "small", "play", [], presets)
    assert (other.steps, other.optimizer.rate, other.optimizer.folder) == (7, 0.5, None)
    mine = resolve(Whole, "small", "learn", ["optimizer.rate=2", "shares.y=3"], presets)
    assert mine.optimizer == Optimizer(rate=2.0, folder=Path("a/b"))
    assert mine.shares == {"x": 1.0, "y": 3.0}


def test_what_was_resolved_is_a_preset_again(presets: Path, tmp_path: Path) -> None:
    value = resolve(Whole, "small", "learn", ["objective.names=[a, b]", "extra.rate=1"], presets)
    saved = tmp_path / "experiment.yaml"
    saved.write_text(to_yaml(value))
    assert resolve(Whole, str(saved), "learn", [], presets) == value
    assert digest(value) == digest(plain(value))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stps=3", r"^stps: no such setting; did you mean steps\?$"),
        ("optimizer.rat=3", r"^optimizer.rat: no such setting; did you mean optimizer.rate\?$"),
        ("objective.wight=3", r"^objective.wight: no such setting; did you mean objective.weight\?$"),
        ("extra.zzz=3", r"^extra.zzz: no such setting; under extra there are folder, rate$"),
        ("steps=many", r"^steps: .*valid integer.*given: 'many'"),
        ("optimizer.rate=-1", r"^optimizer.rate: .*greater than 0.*given: -1"),
        ("optimizer=3", r"^optimizer: .*given: 3"),
        ("objective.weight=x", r"^objective.weight: .*given: 'x'"),
        ("steps", r"^steps: settings are given as key=value"),
        ("a..b=1", r"^a..b=1: settings are given as key=value"),
    ],
)
def test_a_mistake_names_its_path(presets: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(Whole, "small", "learn", [override], presets)


def test_presets_that_cannot_be_read(presets: Path) -> None:
    with pytest.raises(ConfigError, match="no 'smal'; choose one of broken, list, small or the path"):
        resolve(Whole, "smal", "learn", [], presets)
    with pytest.raises(ConfigError, match="not readable as YAML"):
        resolve(Whole, "broken", "learn", [], presets)
    with pytest.raises(ConfigError, match="must hold keys and values"):
        resolve(Whole, "list", "learn", [], presets)
    with pytest.raises(ConfigError, match=r"no 'nowhere.yaml'"):
        resolve(Whole, "nowhere.yaml", "learn", [], presets)


def test_a_value_cannot_be_changed() -> None:
    with pytest.raises(Exception, match="frozen"):
        Whole().steps = 3  # type: ignore[misc]


def test_override_values_are_yaml() -> None:
    assert parse_override("a.b=[1, x]") == {"a": {"b": [1, "x"]}}
    assert parse_override("a=") == {"a": ""}
    assert parse_override("a=null") == {"a": None}
    assert parse_override("url=http://h:1/x?a=b") == {"url": "http://h:1/x?a=b"}
    assert parse_override("text=a: b: c") == {"text": "a: b: c"}


def test_every_key_is_described() -> None:
    rows = {path: (default, text) for path, default, text in describe(Whole)}
    assert rows["optimizer.rate"] == ("0.1", "How fast.")
    assert rows["objective.weight"][0] == "1.0"
    assert set(flatten(plain(Whole()))) - {"extra"} <= set(rows)
