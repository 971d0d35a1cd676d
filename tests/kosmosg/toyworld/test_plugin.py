"""The plug-in fills every registry, and what it names exists; settings that use its words agree with it."""

from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest

from jobs.experiment import EDIT_KINDS, EditKind
from kosmosg.data.annotators.base import ANNOTATORS
from kosmosg.data.filters.base import FILTERS
from kosmosg.data.records import RECORD_KINDS
from kosmosg.data.sources.base import SOURCES
from kosmosg.errors import ConfigError, DataError
from kosmosg.eval.benchmarks.base import BENCHMARKS
from kosmosg.hub import MODELS
from kosmosg.plugins import load_entry, load_plugins
from kosmosg.shapes import MODEL_SHAPES
from kosmosg.toyworld import scene

load_plugins()


def test_every_registry_has_its_entry() -> None:
    assert all("toyworld" in registry for registry in (SOURCES, MODELS, MODEL_SHAPES, BENCHMARKS))
    assert {"toyworld_captions", "toyworld_entities", "toyworld_masks"} <= set(ANNOTATORS)
    assert "questions" in RECORD_KINDS


@pytest.mark.parametrize(
    "target",
    [
        *SOURCES.values(),
        *ANNOTATORS.values(),
        *FILTERS.values(),
        *BENCHMARKS.values(),
    ],
)
def test_what_an_entry_names_exists(target: str) -> None:
    module, _, name = target.partition(":")
    assert callable(getattr(import_module(module), name))


def test_the_settings_know_the_kinds_of_edits_that_there_are() -> None:
    assert EDIT_KINDS == scene.EDIT_KINDS
    assert get_args(EditKind) == get_args(scene.EditKind)


def toyworld(**settings: Any) -> Any:
    return load_entry(SOURCES, "toyworld", "build.source.use")(**settings)


def test_the_source_makes_only_the_datasets_that_are_asked_for() -> None:
    assert set(toyworld(scenes=3).open(None)) == {"composition"}
    both = toyworld(scenes=3, edits=2, questions=1).open(None)
    assert {name: reader.kind for name, reader in both.items()} == {
        "composition": "composition",
        "edit": "edit",
        "questions": "caption",
    }


def test_wrong_words_are_refused() -> None:
    with pytest.raises(ConfigError, match="edit_kinds: there is no 'size'"):
        toyworld(scenes=3, edit_kinds=("size",))
    with pytest.raises(ConfigError, match="generates its data and does not read"):
        toyworld(scenes=3).open(Path("photos"))
    with pytest.raises(DataError, match="source: say what to read"):
        load_entry(SOURCES, "image_folder", "build.source.use")().open(None)
