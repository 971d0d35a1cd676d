"""The README can be followed: every block runs as it stands, every link leads somewhere."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

from jobs.experiment import main

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
KOSMOSG = str(Path(sys.executable).parent / "kosmosg")


def blocks(language: str, text: str = README) -> list[str]:
    """The fenced blocks of a language; "" for those without one."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [block for found, block in fenced if found == language]


def commands(block: str) -> list[list[str]]:
    """The commands of a block, comments left out."""
    return [words for line in block.splitlines() if (words := shlex.split(line, comments=True))]


def kosmosg(words: list[str], folder: Path) -> str:
    """Run one command of a page in `folder`; gives what it printed."""
    result = subprocess.run([KOSMOSG, *words], capture_output=True, text=True, timeout=300, cwd=folder)
    assert result.returncode == 0, f"{shlex.join(words)}\n{result.stdout}\n{result.stderr}"
    return result.stdout + result.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder in which the paths of the README lead where they do in the repository, and results go elsewhere."""
    (tmp_path / "kosmosg").symlink_to(ROOT / "kosmosg")
    return tmp_path


def test_python_blocks_run_one_after_the_other(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    names: dict[str, object] = {}
    snippets = blocks("python")
    assert len(snippets) == 2
    for snippet in snippets:
        exec(snippet, names)
    assert isinstance(names["image"], Image.Image)
    assert Image.open(checkout / "out.png").size == (32, 32)


def test_the_commands_that_generate_and_plan(checkout: Path) -> None:
    (block,) = [block for block in blocks("bash") if "kosmosg generate" in block]
    for words in commands(block):
        told = kosmosg(words[1:], checkout)
        if words[1] == "generate":
            assert "toyworld:instruct" in told, "which model was chosen is printed"
    assert (checkout / "night.png").is_file()


@pytest.mark.slow
def test_the_jobs_run_one_after_the_other(
    ray_cluster: None, checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On one Ray cluster; the first as a program of its own, as `kosmosg` runs each."""
    monkeypatch.chdir(checkout)
    (block,) = [block for block in blocks("bash") if "kosmosg run" in block]
    first, *others = commands(block)
    kosmosg(first[1:], checkout)
    for words in others:
        assert words[:2] == ["kosmosg", "run"]
        with pytest.raises(SystemExit) as ended:
            main(words[2], import_module(f"jobs.{words[2]}").run, words[3:])
        assert ended.value.code == 0, capfd.readouterr().err
    assert (checkout / "runs/try/instruct/export/model.safetensors").is_file()


@pytest.mark.slow
def test_the_endpoint_starts_and_stops(checkout: Path) -> None:
    (block,) = [block for block in blocks("bash") if "kosmosg serve" in block]
    ((_, *words),) = commands(block)
    server = subprocess.Popen([KOSMOSG, *words, "--port", "8765"], cwd=checkout, start_new_session=True)
    try:
        url = "http://127.0.0.1:8765/openapi.json"
        deadline = time.monotonic() + 240
        while True:
            assert server.poll() is None, f"the server ended with {server.returncode}"
            try:
                assert urllib.request.urlopen(url, timeout=30).status == 200
                break
            except OSError:  # refused while it starts; on a busy machine the first answer may time out
                assert time.monotonic() < deadline, "the endpoint did not start within four minutes"
                time.sleep(1)
    finally:
        os.killpg(server.pid, signal.SIGINT)
        assert server.wait(60) in (0, 130, -signal.SIGINT)


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, flags=re.MULTILINE))
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_tree_of_the_readme_is_the_tree() -> None:
    """Each folder that the README's tree names is there."""
    (tree,) = [block for block in blocks("") if block.startswith("kosmosg/")]
    parent, named = ROOT, 0
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        folders = re.findall(r"([\w/]+)/(?= |$)", line.strip().split("   ")[0])
        if not indent:
            parent = ROOT / folders[0]
            assert parent.is_dir(), folders[0]
        for folder in folders if indent else []:
            assert (parent / folder).is_dir(), f"{parent.relative_to(ROOT)}/{folder}"
            named += 1
    assert named > 15


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), f"{page.name} links to {target}"
