"""The model that commands and endpoints choose by themselves."""

from pathlib import Path

import pytest

from kosmosg.errors import CheckpointError, ConfigError
from kosmosg.hub import MODELS, resolve_model
from kosmosg_platform.run_paths import STAGES, choose_model
from serving.config import load


def finish(output: Path, stage: str, settings: str = "{}\n") -> Path:
    """A finished run of a stage; its export folder."""
    export = output / stage / "key" / "export"
    export.mkdir(parents=True)
    (export / "experiment.yaml").write_text(settings)
    (output / stage / "export").symlink_to(export)
    return export


def test_the_furthest_stage_comes_first_then_the_demo_then_what_ships(tmp_path: Path) -> None:
    shipped = choose_model(tmp_path, "toyworld")
    assert (shipped.folder, shipped.name) == (resolve_model("toyworld:instruct"), "toyworld:instruct")
    for output in (tmp_path / "demo", tmp_path):
        for stage in STAGES:
            export = finish(output, stage)
            assert choose_model(tmp_path, "toyworld").folder == export.resolve()
            assert choose_model(tmp_path, "some/stable-diffusion").folder == export.resolve()


def test_it_is_the_model_that_the_endpoint_serves(tmp_path: Path) -> None:
    finish(tmp_path / "demo", "instruct")
    assert load("toyworld", [f"output={tmp_path}"]).chosen == choose_model(tmp_path, "toyworld")


def test_it_says_what_the_model_can_generate(tmp_path: Path) -> None:
    shipped = str(choose_model(tmp_path, "toyworld"))
    described = MODELS["toyworld"].description
    assert shipped == f"toyworld:instruct, {described}"
    assert "32 x 32 pixels" in described
    finish(tmp_path, "align", "decoder: toyworld\n")
    assert str(choose_model(tmp_path, "toyworld")) == f"{tmp_path / 'align' / 'export'}, {described}"
    finish(tmp_path, "instruct", "decoder: some/stable-diffusion\n")
    assert str(choose_model(tmp_path, "toyworld")).endswith(", trained for the decoder some/stable-diffusion")


def test_a_named_model_is_taken_and_its_absence_is_told(tmp_path: Path) -> None:
    finish(tmp_path, "instruct")
    assert choose_model(tmp_path, "toyworld", "toyworld:align").folder == resolve_model("toyworld:align")
    with pytest.raises(CheckpointError, match="toyworld:algn"):
        choose_model(tmp_path, "toyworld", "toyworld:algn")
    with pytest.raises(ConfigError, match="no trained model under"):
        choose_model(tmp_path / "empty", "some/stable-diffusion")
