"""The digest of a model is that of its content: the same for copies, another for any change that could be seen."""

import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from kosmosg import CheckpointError, KosmosG, KosmosGPipeline, KosmosGProcessor, node_cache
from kosmosg.checkpoint.digest import model_digest
from kosmosg.checkpoint.export import save_export


@pytest.fixture
def export(tiny_model: KosmosG, tiny_processor: KosmosGProcessor, tmp_path: Path) -> Path:
    return save_export(tiny_model, tiny_processor, tmp_path / "export", experiment={"output": "runs"}, card="a card")


def test_a_copy_anywhere_has_the_same_digest(export: Path, tmp_path: Path) -> None:
    shutil.copytree(export, tmp_path / "elsewhere" / "copy")
    (tmp_path / "link").symlink_to(export)
    digests = {model_digest(folder) for folder in (export, tmp_path / "elsewhere" / "copy", tmp_path / "link")}
    assert len(digests) == 1
    assert all(len(found) == 64 for found in digests)


def test_every_weight_and_configuration_file_counts(export: Path, tmp_path: Path) -> None:
    known = {model_digest(export)}
    counted = [path for path in export.iterdir() if path.name not in ("README.md", "experiment.yaml", "SHA256SUMS")]
    assert len(counted) >= 4
    for path in counted:
        shutil.rmtree(tmp_path / "changed", ignore_errors=True)
        shutil.copytree(export, tmp_path / "changed")
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        (tmp_path / "changed" / path.name).write_bytes(content)
        known.add(model_digest(tmp_path / "changed"))
    assert len(known) == len(counted) + 1


def test_what_tells_of_a_model_is_not_the_model(export: Path) -> None:
    before = model_digest(export)
    (export / "README.md").write_text("another card")
    (export / "experiment.yaml").write_text("output: elsewhere\n")
    (export / "aligner_decoder").mkdir()
    shutil.copy(export / "model.safetensors", export / "aligner_decoder")
    assert model_digest(export) == before


def test_a_model_trained_in_place_is_another_one(export: Path) -> None:
    before = model_digest(export)
    path = export / "model.safetensors"
    weights = {name: weight + 1 for name, weight in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    os.utime(path, ns=(1, 1))
    assert model_digest(export) != before


def test_a_file_is_read_once_until_it_changes(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = node_cache.hashlib.file_digest
    monkeypatch.setattr(
        node_cache.hashlib, "file_digest", lambda file, kind: read.append(file.name) or real(file, kind)
    )
    first = model_digest(export)
    assert len(read) >= 4
    read.clear()
    assert model_digest(export) == first
    assert read == []
    (export / "config.json").write_text((export / "config.json").read_text() + "\n")
    assert model_digest(export) != first
    assert [Path(name).name for name in read] == ["config.json"]


def test_the_parts_of_a_pipeline_count_together_or_alone(
    tiny_model: KosmosG, tiny_processor: KosmosGProcessor, tiny_sd_parts: Path, tmp_path: Path
) -> None:
    pipe = KosmosGPipeline(tiny_model, tiny_processor, decoder=tiny_sd_parts)
    pipe.save_pretrained(tmp_path / "pipeline")
    whole, unet = model_digest(tmp_path / "pipeline"), model_digest(tmp_path / "pipeline", ["unet", "vae"])
    (tmp_path / "pipeline" / "scheduler" / "scheduler_config.json").write_text("{}")
    assert model_digest(tmp_path / "pipeline", ["unet", "vae"]) == unet
    assert model_digest(tmp_path / "pipeline") != whole


def test_a_folder_without_weights_has_no_identity(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"there are no weights in .*; give an export"):
        model_digest(tmp_path)
