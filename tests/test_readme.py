"""The README can be followed: its snippets run, its links lead somewhere, its commands exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as a finished run leaves it, with untrained weights of the toy world's shape."""
    from kosmosg import KosmosG, KosmosGConfig, KosmosGProcessor
    from kosmosg.checkpoint.export import save_export
    from kosmosg.toyworld.assets import toyworld_folder

    torch.manual_seed(0)
    processor = KosmosGProcessor.from_sentencepiece(
        str(toyworld_folder() / "sentencepiece.bpe.model"), image_size=32, num_image_tokens=16
    )
    folder = tmp_path_factory.mktemp("readme") / "export"
    save_export(KosmosG(KosmosGConfig.toyworld(processor.vocab_size)), processor, folder)
    return folder


def test_python_snippets_run(export: Path, tmp_path: Path) -> None:
    from kosmosg import KosmosGPipeline
    from kosmosg.checkpoint.export import load_export

    model, processor = load_export(export)
    pipe = KosmosGPipeline(model=model, processor=processor, decoder="toyworld")
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path / "pipeline")
    pictures = {
        name: Image.new("RGB", (32, 32), color)
        for name, color in {"cat": "red", "ball": "blue", "garden": "green"}.items()
    }
    names = {"stock_sd": pipe.decoder, "folder": tmp_path / "pipeline", **pictures}
    snippets = blocks("python")
    assert len(snippets) == 2
    for snippet in snippets:
        exec(snippet.replace('"runs/demo/instruct/export"', repr(str(export))), names)
    assert isinstance(names["image"], Image.Image)
    assert isinstance(names["image"], Image.Image)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), f"{page.name} links to {target}"


def test_commands_of_the_readme_exist() -> None:
    verbs = {
        shlex.split(line)[1] for block in blocks("bash") for line in block.splitlines() if line.startswith("kosmosg ")
    }
    assert {"run", "submit", "plan", "serve", "generate", "doctor"} <= verbs
    kosmosg = str(Path(sys.executable).parent / "kosmosg")
    for verb in verbs:
        result = subprocess.run([kosmosg, verb, "--help"], capture_output=True, text=True, timeout=60, cwd=ROOT)
        assert result.returncode == 0, result.stderr
        assert "Example" in result.stdout or "example" in result.stdout


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
