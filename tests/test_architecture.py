"""The walls of the house: who may import whom, and what must never lie where."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
TOP_LEVEL_FOLDERS = {"platform", "jobs", "serving", "kosmosg", "tests", "docs"}


def tracked_files() -> list[Path]:
    """Files that git knows, so that build products and results never count."""
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(line) for line in listing.splitlines()]


def run_python(code: str, cwd: Path = ROOT) -> str:
    result = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_layers_hold() -> None:
    """kosmosg < kosmosg_platform < jobs, serving; the contracts stand in pyproject.toml."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_circles_between_rooms() -> None:
    """A room is a folder without sub-folders; a module that lies beside rooms is a room of its own."""
    graph = grimp.build_graph("kosmosg", "kosmosg_platform", "jobs", "serving", cache_dir=None)
    packages = {module.rpartition(".")[0] for module in graph.modules} - {""}
    mixed = {package.rpartition(".")[0] for package in packages}  # those that hold other packages

    def room(module: str) -> str:
        package = module if module in packages else module.rpartition(".")[0]
        return module if package in mixed else package

    arrows: dict[str, set[str]] = {room(module): set() for module in graph.modules}
    for module in graph.modules:
        imported = {room(other) for other in graph.find_modules_directly_imported_by(module)}
        arrows[room(module)] |= imported - {room(module)}
    TopologicalSorter(arrows).prepare()  # raises CycleError, which names the circle


def test_importing_the_library_is_light_and_writes_nothing(tmp_path: Path) -> None:
    code = """
import os, sys
before = set(os.listdir("."))
import kosmosg
heavy = sorted({"ray", "deepspeed", "mlflow", "torch", "diffusers"} & set(sys.modules))
print(heavy, sorted(set(os.listdir(".")) - before))
"""
    assert run_python(code, cwd=tmp_path) == "[] []"


def test_using_the_library_pulls_in_no_orchestration(tmp_path: Path) -> None:
    code = """
import sys
from kosmosg import KosmosG, KosmosGConfig, KosmosGPipeline, KosmosGProcessor, Prompt
import kosmosg.stages, kosmosg.convert, kosmosg.diffusion.decoder
print(sorted({"ray", "deepspeed", "mlflow", "pydantic"} & set(sys.modules)))
"""
    assert run_python(code, cwd=tmp_path) == "[]"


def test_platform_folder_never_shadows_the_standard_library() -> None:
    """With an `__init__.py` in it, `import platform` at the root would find our folder, and torch would break."""
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert run_python("import platform; print(platform.system())") == "Linux" or sys.platform != "linux"
    assert "kosmosg" not in run_python("import platform; print(platform.__file__)").replace(str(ROOT), "")


def test_import_root_holds_nothing_named_like_a_dependency() -> None:
    assert {p.name for p in (ROOT / "platform").iterdir() if p.name != "__pycache__"} == {"kosmosg_platform", "infra"}


def test_tests_are_no_package() -> None:
    assert [f for f in tracked_files() if f.parts[0] == "tests" and f.name == "__init__.py"] == []


def test_top_level_is_the_agreed_one() -> None:
    folders = {f.parts[0] for f in tracked_files() if len(f.parts) > 1 and not f.parts[0].startswith(".")}
    assert folders <= TOP_LEVEL_FOLDERS, folders - TOP_LEVEL_FOLDERS
    assert {"platform", "jobs", "serving", "kosmosg", "tests"} <= folders


def test_no_landfill_modules() -> None:
    names = {"utils", "util", "common", "helpers", "misc", "scripts", "examples"}
    assert [f for f in tracked_files() if names & {*f.parts[:-1], f.stem}] == []


@pytest.mark.parametrize("limit", [500])
def test_files_stay_readable(limit: int) -> None:
    """A file past the review stop holds more than one idea."""
    sizes = {f: len((ROOT / f).read_text().splitlines()) for f in tracked_files() if f.suffix == ".py"}
    assert {f: n for f, n in sizes.items() if n > limit} == {}


def test_nothing_is_unpickled() -> None:
    """Weights are safetensors, or loaded with weights_only=True: a checkpoint must never run code."""
    offenders = []
    for file in tracked_files():
        if file.suffix != ".py" or file.parts[0] == "tests":
            continue
        for number, line in enumerate((ROOT / file).read_text().splitlines(), 1):
            unsafe_load = "torch.load(" in line and "weights_only=True" not in line
            if unsafe_load or "import pickle" in line or "weights_only=False" in line:
                offenders.append(f"{file}:{number}: {line.strip()}")
    assert offenders == []


def test_nothing_outside_imports_the_toy_world() -> None:
    """It is a plug-in: the registries name it. Only its own two jobs and tests know it."""
    its_own = ("kosmosg/toyworld/", "jobs/ablation/", "jobs/toyworld.py", "tests/")
    offenders = []
    for file in tracked_files():
        if file.suffix != ".py" or file.as_posix().startswith(its_own):
            continue
        tree = ast.parse((ROOT / file).read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            offenders += [f"{file}:{node.lineno}" for name in names if name.startswith("kosmosg.toyworld")]
    assert sorted(set(offenders)) == []
