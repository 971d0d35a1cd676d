"""The job that draws a file of prompts: what it leaves, what it refuses, what it does again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from jobs import generate
from jobs.experiment import load
from kosmosg import KosmosG, KosmosGPipeline, KosmosGProcessor, Prompt
from kosmosg.checkpoint.export import save_export
from kosmosg.checkpoint.sums import write_sums
from kosmosg.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory, tiny_model: KosmosG, tiny_processor: KosmosGProcessor) -> Path:
    return save_export(tiny_model, tiny_processor, tmp_path_factory.mktemp("generate") / "export")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Four prompts, of which one has a missing image and one is too long for the model."""
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    lines = [
        {"id": "sea", "text": "<i> at sea", "images": ["red.png"], "seed": 5},
        {"text": "a cat in the snow"},
        {"id": "lost", "text": "<i>", "images": ["nowhere.png"]},
        {"id": "long", "text": "a cat and a dog " * 400},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(prompts: Path, export: Path, decoder: Path, *settings: str) -> Path:
    common = [f"source={prompts}", f"generate.model={export}", f"decoder={decoder}", f"output={prompts.parent}"]
    return generate.run(load("generate", "tiny", [*common, "generate.n=2", "generate.steps=3", *settings]))


@pytest.mark.parametrize("mine", ["images/sea-1.png", "results.jsonl", "sheet.png"])
def test_files_of_the_users_are_not_overwritten(
    prompts: Path, export: Path, tiny_sd_parts: Path, tmp_path: Path, mine: str
) -> None:
    dest = tmp_path / "album"
    (dest / mine).parent.mkdir(parents=True)
    (dest / mine).write_text("mine")
    with pytest.raises(ConfigError, match=f"holds {mine.split('/')[0]}, which the job generate would overwrite"):
        run(prompts, export, tiny_sd_parts, f"dest={dest}")
    assert (dest / mine).read_text() == "mine"


@pytest.mark.slow
def test_pictures_results_and_a_second_run(
    ray_cluster: None,
    prompts: Path,
    export: Path,
    tiny_sd_parts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dest = run(prompts, export, tiny_sd_parts)
    assert dest == tmp_path / "generate" / "prompts"
    rows = {row["id"]: row for row in map(json.loads, (dest / "results.jsonl").read_text().splitlines())}
    assert list(rows) == ["sea", "00001", "lost", "long"], "the order of the file"
    assert rows["sea"]["files"] == ["images/sea-1.png", "images/sea-2.png"]
    assert rows["sea"]["seeds"] == [5, 6]
    assert "there is no file" in rows["lost"]["error"]
    assert "tokens" in rows["long"]["error"]
    assert Image.open(dest / "sheet.png").width > 100
    assert "4 images for 2 prompts, 4 generated now" in capsys.readouterr().out

    pipeline = KosmosGPipeline.from_pretrained(export, decoder=str(tiny_sd_parts))
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(6)
    prompt = Prompt("<i> at sea", images=[tmp_path / "red.png"])
    alone = pipeline(prompt, num_inference_steps=3, generator=noise).images[0]
    drawn = Image.open(dest / "images" / "sea-2.png")
    assert np.abs(np.asarray(drawn).astype(int) - np.asarray(alone).astype(int)).max() <= 2

    (dest / "images" / "00001-1.png").unlink()
    Image.new("RGB", (40, 40), "blue").save(tmp_path / "nowhere.png")
    stamp = (dest / "images" / "sea-1.png").stat().st_mtime_ns
    run(prompts, export, tiny_sd_parts)
    assert "6 images for 3 prompts, 4 generated now" in capsys.readouterr().out
    assert (dest / "images" / "sea-1.png").stat().st_mtime_ns == stamp, "what is there is not drawn again"
    Image.new("RGB", (40, 40), "green").save(tmp_path / "red.png")
    run(prompts, export, tiny_sd_parts, "limit=1")
    assert "2 images for 1 prompt, 2 generated now" in capsys.readouterr().out, "a changed image is another prompt"


@pytest.mark.slow
def test_a_model_that_was_retrained_in_place_gets_new_images(
    ray_cluster: None, prompts: Path, export: Path, tiny_sd_parts: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(export, model)
    dest = run(prompts, model, tiny_sd_parts, "limit=1")
    before = (dest / "images" / "sea-1.png").read_bytes()
    weights = load_file(model / "model.safetensors")
    save_file({name: tensor + 0.3 for name, tensor in weights.items()}, model / "model.safetensors", {"format": "pt"})
    write_sums(model)
    assert run(prompts, model, tiny_sd_parts, "limit=1") == dest
    assert (dest / "images" / "sea-1.png").read_bytes() != before


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 1 is not JSON"),
        ('{"txt": "a"}', "fields are id, images, negative, seed, text"),
        ('{"text": "a", "id": "../up"}', "names files"),
        ('{"text": "a", "seed": -1}', "a number from 0 on"),
        ('{"text": "a", "id": "x"}\n{"text": "b", "id": "x"}', "'x' in lines 1 and 2"),
        ("", "holds no prompts"),
    ],
)
def test_a_bad_file_is_told_before_anything_starts(
    tmp_path: Path, export: Path, tiny_sd_parts: Path, line: str, told: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(line)
    with pytest.raises(DataError, match=told.replace("/", "/")):
        run(path, export, tiny_sd_parts)


def test_there_must_be_something_to_draw(tmp_path: Path, export: Path) -> None:
    with pytest.raises(ConfigError, match="give a file of prompts"):
        generate.run(load("generate", "tiny", [f"output={tmp_path}", f"generate.model={export}"]))
    with pytest.raises(ConfigError, match="there is no file"):
        run(tmp_path / "none.jsonl", export, export)
