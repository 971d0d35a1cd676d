"""docs/toyworld.md says what the toy world is: its words and chances are those of the code, its example runs."""

import re
from pathlib import Path

import pytest

from kosmosg.toyworld.assets import TRAINED, toyworld_folder
from kosmosg.toyworld.benchmark import CHANCE
from kosmosg.toyworld.scene import COLORS, KINDS, PATTERNS, PLACES

PAGE = (Path(__file__).resolve().parents[2] / "docs/toyworld.md").read_text()


@pytest.mark.parametrize("words", [KINDS, PATTERNS, COLORS, tuple(PLACES.values())])
def test_its_words_are_those_of_the_world(words: tuple[str, ...]) -> None:
    assert f"| {', '.join(words)}" in PAGE


def test_its_models_and_their_size_are_what_ships() -> None:
    assert all(f"`toyworld:{model}`" in PAGE for model in TRAINED)
    megabytes = sum(path.stat().st_size for path in toyworld_folder().rglob("*") if path.is_file()) / 1e6
    told = re.search(r"`kosmosg/assets/toyworld`, (\d+) MB", PAGE)
    assert told is not None
    assert abs(int(told[1]) - megabytes) <= 1


def test_its_chances_are_those_of_the_benchmark() -> None:
    shown = {
        row[0]: row[-1] for row in (re.split(r" \| ", line.strip("| ")) for line in PAGE.splitlines() if "|" in line)
    }
    assert shown["shape, pattern"] == f"{CHANCE['shape']:.2f}, {CHANCE['pattern']:.2f}"
    assert shown["hue"] == f"{CHANCE['hue']:.0f}"
    assert float(shown["background"]) == pytest.approx(CHANCE["background"], abs=1e-9)
    assert float(shown["whole"]) == pytest.approx(CHANCE["whole"], abs=0.0005)


def test_its_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    assert blocks
    for block in blocks:
        exec(block, {})
    assert (tmp_path / "scene.png").is_file()
