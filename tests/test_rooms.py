"""The rooms: one name for one thing, one idea a file, packages that say what they are for, tests that mirror them."""

import ast
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "kosmosg": ROOT / "kosmosg",
    "kosmosg_platform": ROOT / "platform" / "kosmosg_platform",
    "jobs": ROOT / "jobs",
    "serving": ROOT / "serving",
}
LINES = 350
BY_STAGE = {"pretrain.py", "align.py", "instruct.py"}
"""Entries of the rooms that have one file for each stage: objective, template, collate."""
ENTRY_OF_EVERY_REGISTRY = {"__init__.py", "base.py"}
ENTRIES_OF_ONE_NAME = {"clip.py"}
"""A network whose weights are converted and which makes features as well."""


def sources() -> Iterator[tuple[str, Path]]:
    """Every source file that git knows, with the import package it belongs to."""
    listing = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for line in listing.splitlines():
        path = ROOT / line
        for package, folder in PACKAGES.items():
            if path.is_relative_to(folder) and path.exists():
                yield package, path


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def test_no_public_class_name_exists_twice() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for _, path in sources():
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(str(path.relative_to(ROOT)))
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


def test_no_file_name_exists_twice_in_a_package() -> None:
    """But `base`, which every registry has, entries of two registries, and the rooms with one file for each stage."""
    homes: dict[tuple[str, str], list[str]] = defaultdict(list)
    for package, path in sources():
        if path.name not in ENTRY_OF_EVERY_REGISTRY | BY_STAGE | ENTRIES_OF_ONE_NAME:
            homes[package, path.name].append(str(path.relative_to(ROOT)))
    assert {name: files for (_, name), files in homes.items() if len(files) > 1} == {}


def test_no_source_file_is_longer_than_one_idea() -> None:
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for _, path in sources()}
    assert {name: lines for name, lines in sizes.items() if lines > LINES} == {}


@pytest.mark.parametrize(
    "folder",
    sorted({path.parent for _, path in sources() if (path.parent / "__init__.py").is_file()}),
    ids=lambda folder: str(folder.relative_to(ROOT)),
)
def test_every_package_says_what_it_is_for_and_names_its_modules(folder: Path) -> None:
    """Whoever opens a room reads in one docstring what it is for and what lies where."""
    told = ast.get_docstring(parsed(folder / "__init__.py")) or ""
    assert len(told) > 40, f"{folder.name}/__init__.py has no docstring that says what the package is for"
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}
    rooms = {path.parent.name for path in folder.glob("*/__init__.py")}
    assert [name for name in sorted(modules | rooms) if f"`{name}`" not in told] == []


def test_tests_mirror_the_tree() -> None:
    """A folder of tests is a folder of the source."""
    homes = {
        "kosmosg": PACKAGES["kosmosg"],
        "platform": PACKAGES["kosmosg_platform"],
        "jobs": PACKAGES["jobs"],
        "serving": PACKAGES["serving"],
    }
    for top, source in homes.items():
        for test in (ROOT / "tests" / top).rglob("test_*.py"):
            room = test.parent.relative_to(ROOT / "tests" / top)
            assert (source / room).is_dir(), f"{test.relative_to(ROOT)} tests no folder of {source.relative_to(ROOT)}"
