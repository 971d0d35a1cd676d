"""Names of models and files in the settings: found wherever a worker runs, or refused before one starts."""

from pathlib import Path

import pytest

from kosmosg.errors import ConfigError
from kosmosg.foundation import world_model
from kosmosg_platform.sources import ModelConfig, Origin, tokenizer_path
from kosmosg_platform.storage import Layout


def test_a_relative_path_is_kept_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "sentencepiece.bpe.model").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    model = ModelConfig(tokenizer="words")
    monkeypatch.chdir("/")
    assert tokenizer_path(model.tokenizer) == tmp_path / "words" / "sentencepiece.bpe.model"


def test_names_that_are_no_paths_stay_as_they_are() -> None:
    model = ModelConfig(init="tiny", tokenizer="world", vision="openai/clip-vit-large-patch14")
    assert (model.init, model.tokenizer, model.vision) == ("tiny", "world", "openai/clip-vit-large-patch14")


def test_a_missing_tokenizer_is_told_before_anything_starts() -> None:
    origin = Origin(ModelConfig(tokenizer="nowhere/sentencepiece.bpe.model"), "world", None)
    with pytest.raises(ConfigError, match="there is no nowhere/sentencepiece"):
        origin.facts()


def test_what_ships_has_names(tmp_path: Path) -> None:
    given = Origin.of("instruct", ModelConfig(), "world", "world:align", Layout(tmp_path))
    begun = Origin.of("pretrain", ModelConfig(init="world:align"), "world", None, Layout(tmp_path))
    assert given.parent == begun.parent == world_model("align")
    with pytest.raises(ConfigError, match="world:foundation: the small world ships with pretrain, align, instruct"):
        Origin.of("instruct", ModelConfig(), "world", "world:foundation", Layout(tmp_path))
