"""The endpoint's settings: presets, mistakes, and the cluster file of the documentation."""

import re
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from kosmosg.errors import ConfigError
from kosmosg.hub import resolve_model
from kosmosg_platform.config import validate
from serving.config import PRESETS, ServingConfig, load

DOCS = Path(__file__).resolve().parents[2] / "docs" / "serving.md"


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_presets_resolve(preset: str) -> None:
    config = load(preset)
    assert config.decoder == "toyworld"
    assert config.defaults.steps <= config.limits.steps


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("decoding.max_batch_row=4", "no such setting; did you mean decoding.max_batch_rows?"),
        ("decoding.max_batch_rows=1", "decoding.max_batch_rows: Input should be greater than or equal to 2"),
        ("defaults.scheduler=magic", "defaults.scheduler: there is no 'magic'; choose one of dpms"),
        ("defaults.guidance=31", "defaults.guidance: 31.0 is above limits.guidance, 30.0"),
        ("precision=int8", "precision: Input should be 'fp32', 'bf16' or 'fp16'"),
    ],
)
def test_mistakes_name_their_setting(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load("tiny", [setting])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("decoding.rows", "decoding.max_batch_rows"),
        ("decoding.orders", "decoding.max_concurrent"),
        ("encoding.batch", "encoding.max_batch_size"),
    ],
)
def test_a_renamed_setting_is_refused_with_its_new_name(old: str, new: str) -> None:
    section, key = old.split(".")
    with pytest.raises(ConfigError, match=re.escape(new)):
        load("tiny", [f"{old}=4"])
    with pytest.raises(ConfigError, match=re.escape(new)):
        validate(ServingConfig, {section: {key: 4}})  # as `serve deploy` gives it


def test_without_a_model_it_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no trained model under"):
        _ = load("tiny", [f"output={tmp_path}", "decoder=some/stable-diffusion"]).chosen.folder


def test_the_toy_world_is_served_from_what_ships(tmp_path: Path) -> None:
    assert load("toyworld", [f"output={tmp_path}"]).chosen.folder == resolve_model("toyworld:instruct")
    assert load("toyworld", ["model=toyworld:align"]).chosen.folder == resolve_model("toyworld:align")


def test_the_cluster_file_of_the_documentation_is_one() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    deployed = ServeDeploySchema.model_validate(yaml.safe_load(block))
    (application,) = deployed.applications
    assert application.import_path == "serving.app:build"
    assert validate(ServingConfig, application.args).decoding.max_batch_rows == 16
