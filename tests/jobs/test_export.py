"""`kosmosg run export`: a pipeline folder for diffusers, and folders that it must not write into."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from jobs.experiment import load
from jobs.export import run
from kosmosg import KosmosG, KosmosGPipeline, KosmosGProcessor
from kosmosg.checkpoint.export import save_export
from kosmosg.errors import CheckpointError


@pytest.fixture
def export(tmp_path: Path, tiny_model: KosmosG, tiny_processor: KosmosGProcessor) -> Path:
    return save_export(tiny_model, tiny_processor, tmp_path / "export")


def to_pipeline(export: Path, decoder: Path, dest: Path) -> Path:
    settings = [f"source={export}", f"decoder={decoder}", f"dest={dest}", f"output={export.parent / 'runs'}"]
    return run(load("export", "tiny", settings))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_pipeline_is_written_and_replaced(export: Path, tiny_sd_parts: Path, tiny_model: KosmosG) -> None:
    dest = to_pipeline(export, tiny_sd_parts, export.parent / "pipeline")
    again = contents(to_pipeline(export, tiny_sd_parts, dest))
    assert sorted(path.name for path in export.parent.iterdir()) == ["export", "pipeline"]
    assert "unet/diffusion_pytorch_model.safetensors" in again
    opened = KosmosGPipeline.from_pretrained(dest)
    ours = dict(tiny_model.named_parameters())
    assert all(torch.equal(value, ours[name]) for name, value in opened.model.named_parameters())


@pytest.mark.parametrize("foreign", ["notes.txt", "unet/notes.txt", "my_images/cat.png"])
def test_a_pipeline_with_a_file_of_the_users_stays(export: Path, tiny_sd_parts: Path, foreign: str) -> None:
    dest = to_pipeline(export, tiny_sd_parts, export.parent / "pipeline")
    (dest / foreign).parent.mkdir(exist_ok=True)
    (dest / foreign).write_text("mine")
    before = contents(export.parent)
    with pytest.raises(CheckpointError, match="which is no part of a Kosmos-G pipeline"):
        to_pipeline(export, tiny_sd_parts, dest)
    assert contents(export.parent) == before


def test_neither_a_stable_diffusion_nor_an_export_becomes_a_pipeline(export: Path, tiny_sd_parts: Path) -> None:
    """The first has the file names of a pipeline but for its text encoder, the second is what the job reads."""
    decoder = export.parent / "decoder"
    shutil.copytree(tiny_sd_parts, decoder)
    before = contents(export.parent)
    for dest in (decoder, export):
        with pytest.raises(CheckpointError, match="which is no part of a Kosmos-G pipeline"):
            to_pipeline(export, tiny_sd_parts, dest)
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(decoder / part)
    with pytest.raises(CheckpointError, match=r"its model_index\.json is missing or of something else"):
        to_pipeline(export, tiny_sd_parts, decoder)
    kept = {name: data for name, data in before.items() if not name.startswith(("decoder/text", "decoder/tok"))}
    assert contents(export.parent) == kept
    assert json.loads((decoder / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
