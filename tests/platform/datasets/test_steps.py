"""The section `build`: a source and a list of steps, checked through the registries before anything starts."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from kosmosg.data.annotators import noun_chunks
from kosmosg.data.annotators.base import ANNOTATORS
from kosmosg.data.annotators.pretrained import require_model
from kosmosg.data.hash_list import write_hash_list
from kosmosg.data.image_hash import HashedImage
from kosmosg.data.sources.base import SOURCES
from kosmosg.errors import ConfigError, DataError
from kosmosg.plugins import load_entry
from kosmosg_platform.config import validate
from kosmosg_platform.datasets.pipeline import cpu_shares, grouped
from kosmosg_platform.datasets.steps import BuildConfig, PipelineStep
from tests.tiny_annotators import tiny_clipseg


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([{"use": "blurr"}], r"build\.steps\.0\.use: there is no 'blurr'; did you mean blur"),
        ([{}], r"build\.steps\.0\.use: name an annotator or a filter"),
        ([{"use": "sidecar", "templte": "x"}], r"build\.steps\.0\.templte: no such setting; there are template"),
        ([{"use": "sidecar", "template": "x"}], r"build\.steps\.0: .*no place \{name\}"),
        ([{"use": "sidecar", "actors": 0}], r"build\.steps\.0\.actors: 0 is no number of processes"),
        ([{"use": "nouns"}], r"build\.steps\.0: nouns needs caption; put it after a step that fills it"),
        ([{"use": "caption_length"}], r"build\.steps\.0: caption_length needs caption; put it after"),
        ([{"use": "sidecar"}, {"use": "toyworld_entities"}], r"build\.steps\.1: toyworld_entities cannot annotate"),
        ([{"use": "sidecar"}, {"use": "nouns"}], r"build\.steps: no step fills masks"),
        ([{"use": "image_size", "min_side": "big"}], r"build\.steps\.0\.min_side: .*valid integer"),
    ],
)
def test_a_wrong_list_of_steps_is_refused_with_the_path_of_the_mistake(steps: list[dict[str, Any]], told: str) -> None:
    config = validate(BuildConfig, {"source": {"use": "image_folder"}, "steps": steps})
    with pytest.raises(ConfigError, match=told):
        config.pipeline_steps(config.opened_source())


def test_a_wrong_source_is_refused_with_the_path_of_the_mistake() -> None:
    with pytest.raises(ConfigError, match=r"build\.source\.use: there is no 'toywrld'; did you mean toyworld"):
        validate(BuildConfig, {"source": {"use": "toywrld"}}).opened_source()
    with pytest.raises(ConfigError, match=r"build\.source\.shard_row: no such setting; there are square"):
        validate(BuildConfig, {"source": {"use": "image_folder", "shard_row": 3}}).opened_source()
    with pytest.raises(ConfigError, match="image_format"):
        validate(BuildConfig, {"compose": {"image_format": "psd"}})


def test_where_and_how_often_a_model_runs_shapes_no_record() -> None:
    steps = [{"use": "blip2"}, {"use": "language_model"}, {"use": "clipseg"}]
    config = validate(BuildConfig, {"source": {"use": "image_folder"}, "steps": steps})
    source = config.opened_source()
    found = [(step.name, step.actors, step.model) for step in config.pipeline_steps(source)]
    assert [(name, actors) for name, actors, _ in found] == [
        (name, (1, 1)) for name in ("caption", "entities", "masks")
    ]
    assert all(model for _, _, model in found)
    given = {"actors": 8, "gpus": 1, "device": "cuda"}
    faster = validate(BuildConfig, {"source": {"use": "image_folder"}, "steps": [steps[0] | given, *steps[1:]]})
    assert faster.settings(source) == config.settings(source)
    other = validate(
        BuildConfig, {"source": {"use": "image_folder"}, "steps": [steps[0] | {"batch_size": 3}, *steps[1:]]}
    )
    assert other.settings(source) != config.settings(source)


@pytest.mark.parametrize(
    ("pools", "light", "groups"),
    [([], 3, []), ([0], 0, [2]), ([2], 2, [0]), ([0, 1, 2], 0, [0, 0, 0]), ([0, 2], 0, [1, 0])],
)
def test_light_steps_run_where_their_rows_are(pools: list[int], light: int, groups: list[int]) -> None:
    """So a row changes its form three times at most: sample, Arrow row between processes, record."""
    steps = [PipelineStep(str(n), object, 4, actors=(int(n in pools), int(n in pools))) for n in range(3)]
    first, found = grouped(steps)
    assert len(first) == light
    assert [len(following) for _, following in found] == groups


@pytest.mark.parametrize(
    ("actors", "total", "shares"),
    [
        ([1, 1], 2, [0.5, 0.5]),
        ([1, 1], 3, [0.99, 0.99]),
        ([1, 1, 1], 2, [0.33] * 3),
        ([2], 1, [0.25]),
        ([], 2, []),
        ([4, 8], 64, [0.99, 0.99]),
    ],
)
def test_pools_leave_a_cpu_for_reading(actors: list[int], total: float, shares: list[float]) -> None:
    steps = [PipelineStep("step", object, 4, actors=(count, count)) for count in actors]
    assert cpu_shares(steps, total) == shares


def test_a_filter_with_a_model_has_processes_of_its_own_and_fills_nothing() -> None:
    classifier = {"use": "classifier", "model": "owner/name", "label": "nsfw", "batch_size": 7, "actors": [1, 3]}
    steps = [{"use": "sidecar"}, classifier, {"use": "nouns"}, {"use": "grabcut"}]
    config = validate(BuildConfig, {"source": {"use": "image_folder"}, "steps": steps})
    _, judge, *_ = config.pipeline_steps(config.opened_source())
    assert (judge.name, judge.fills, judge.model, judge.keep) == ("classifier", "", "owner/name", True)
    assert (judge.batch_size, judge.actors) == (7, (1, 3))


def test_a_list_that_was_made_anew_shapes_other_records(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    steps = [{"use": "contaminated", "hashes": str(path)}, {"use": "sidecar"}, {"use": "nouns"}, {"use": "grabcut"}]
    settings = []
    for number in (1, 2, 2):
        write_hash_list(path, [HashedImage("a", number, bytes(32))])
        config = validate(BuildConfig, {"source": {"use": "image_folder"}, "steps": steps})
        settings.append(config.settings(config.opened_source()))
    assert settings[0] != settings[1] == settings[2]


def test_a_missing_head_is_told_before_anything_starts(tmp_path: Path) -> None:
    tiny_clipseg(tmp_path / "model")
    steps = [
        {"use": "aesthetic", "model": str(tmp_path / "model"), "head": str(tmp_path / "absent")},
        {"use": "sidecar"},
        {"use": "nouns"},
        {"use": "grabcut"},
    ]
    config = validate(BuildConfig, {"source": {"use": "image_folder"}, "steps": steps})
    score, caption, *_ = config.pipeline_steps(config.opened_source())
    caption.require()
    with pytest.raises(DataError, match=r"the head '.*absent' is neither a .safetensors file"):
        score.require()


CAPTIONED = sorted(name for name in list(SOURCES) if "caption" in load_entry(SOURCES, name, "").hints)


@pytest.mark.parametrize("use", CAPTIONED)
def test_captions_of_people_are_read_by_grammar_and_their_entities_segmented_by_name(use: str) -> None:
    config = validate(BuildConfig, {"source": {"use": use}})
    steps = config.plain_steps(config.opened_source())
    assert [step["use"] for step in steps] == ["told", "noun_chunks", "clipseg"]
    assert validate(BuildConfig, {"source": {"use": use, "kind": "caption"}}).opened_source().steps == ()


@pytest.mark.parametrize("use", CAPTIONED)
def test_a_default_step_that_lacks_a_package_is_refused_with_what_to_do(
    use: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noun_chunks, "find_spec", lambda name: None)  # as where the extra is not installed
    config = validate(BuildConfig, {"source": {"use": use}})
    with pytest.raises(ConfigError, match=r"build\.steps\.1: .*pip install 'kosmosg\[spacy\]'") as told:
        config.pipeline_steps(config.opened_source())
    light = str(told.value).partition("build.steps=")[2].rstrip("'")
    assert light
    config = validate(BuildConfig, {"source": {"use": use}, "steps": yaml.safe_load(light)})
    assert not any(step.model for step in config.pipeline_steps(config.opened_source()))


def test_a_default_model_that_is_not_there_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    clipseg = load_entry(ANNOTATORS, "clipseg", "").settings
    monkeypatch.setattr(clipseg, "require", lambda self: require_model("./absent"))
    config = validate(BuildConfig, {"source": {"use": "webdataset"}})
    steps = config.pipeline_steps(config.opened_source())
    with pytest.raises(DataError, match=r"'./absent' is neither .*; clipseg is a default step of webdataset; build\."):
        steps[-1].require()
