"""Names of models and files in the settings: found wherever a worker runs, or refused before one starts."""

import shutil
from pathlib import Path

import pytest

from kosmosg.checkpoint.sums import write_sums
from kosmosg.errors import ConfigError
from kosmosg.hub import resolve_model
from kosmosg_platform.run_paths import RunPaths
from kosmosg_platform.training.initial_model import InitialModel, ModelConfig, tokenizer_path


def test_a_relative_path_is_kept_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "sentencepiece.bpe.model").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    model = ModelConfig(tokenizer="words")
    monkeypatch.chdir("/")
    assert tokenizer_path(model.tokenizer) == tmp_path / "words" / "sentencepiece.bpe.model"


def test_names_that_are_no_paths_stay_as_they_are() -> None:
    model = ModelConfig(init="tiny", tokenizer="toyworld", vision="openai/clip-vit-large-patch14")
    assert (model.init, model.tokenizer, model.vision) == ("tiny", "toyworld", "openai/clip-vit-large-patch14")


def test_a_missing_tokenizer_is_told_before_anything_starts() -> None:
    origin = InitialModel(ModelConfig(tokenizer="nowhere/sentencepiece.bpe.model"), "toyworld", None)
    with pytest.raises(ConfigError, match="there is no nowhere/sentencepiece"):
        origin.fingerprint()


def test_what_ships_has_names(tmp_path: Path) -> None:
    given = InitialModel.of("instruct", ModelConfig(), "toyworld", "toyworld:align", RunPaths(tmp_path))
    begun = InitialModel.of("pretrain", ModelConfig(init="toyworld:align"), "toyworld", None, RunPaths(tmp_path))
    assert given.parent == begun.parent == resolve_model("toyworld:align")
    with pytest.raises(ConfigError, match=r"^parent: .*'toyworld:decoder'.*toyworld:pretrain, toyworld:align"):
        InitialModel.of("instruct", ModelConfig(), "toyworld", "toyworld:decoder", RunPaths(tmp_path))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_parent_is_refused_before_anything_starts(tmp_path: Path, name: str) -> None:
    parent = shutil.copytree(resolve_model("toyworld:align"), tmp_path / "parent")
    write_sums(parent)
    given = InitialModel(ModelConfig(), "toyworld", parent)
    whole = given.fingerprint()
    content = bytearray((parent / name).read_bytes())
    content[len(content) // 2] ^= 1
    (parent / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^parent: .*{name} has the sha256 \w{{64}}, SHA256SUMS says \w{{64}}"):
        given.fingerprint()
    shutil.copy2(resolve_model("toyworld:align") / name, parent / name)
    assert given.fingerprint() == whole
