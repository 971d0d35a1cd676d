"""The recipe for one's own photos works as it stands, with fewer steps: dataset, stage 3, an image, an endpoint."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "own_photos.md").read_text()
KOSMOSG = str(Path(sys.executable).parent / "kosmosg")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A subject in the middle of each photo, on a background of another colour; one has a caption beside it."""
    for name, color in (("dog/01", "saddlebrown"), ("dog/02", "saddlebrown"), ("mug/01", "crimson")):
        photo = Image.effect_noise((160, 160), 24).convert("RGB")
        ImageDraw.Draw(photo).ellipse((40, 36, 120, 128), fill=color)
        (tmp_path / "my_photos" / name).parent.mkdir(parents=True, exist_ok=True)
        photo.save(tmp_path / "my_photos" / f"{name}.jpg", quality=95)
    (tmp_path / "my_photos" / "dog" / "01.txt").write_text("a dog on a sofa")
    return tmp_path


def kosmosg(line: str, folder: Path) -> str:
    # As a shell reads it; the command is one line of the page.
    result = subprocess.run(line, shell=True, cwd=folder, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"
    return result.stdout + result.stderr


@pytest.mark.slow
def test_the_recipe_from_photos_to_an_endpoint(photos: Path) -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    build, instruct, generate, serve = (block.strip().replace("kosmosg", KOSMOSG, 1) for block in blocks)
    kosmosg(build, photos)
    assert (photos / "runs/mine/build_dataset/composition/sheet.png").is_file()
    kosmosg(instruct.replace("train.steps=2000", "train.steps=4 train.global_batch=4 scale.workers=1"), photos)
    kosmosg(generate, photos)
    assert Image.open(photos / "runs/mine/dog.png").size == (32, 32)
    export = photos / re.search(r"model=(\S+)", serve)[1]  # type: ignore[index]
    assert (export / "model.safetensors").is_file(), "what the endpoint is told to serve is there"
    shutil.rmtree(photos / "my_photos")
