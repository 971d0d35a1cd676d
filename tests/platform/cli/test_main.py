"""The command as a shell sees it: output, sentence, exit code."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import typer.main
from PIL import Image
from safetensors.torch import save_file

from kosmosg import KosmosG, KosmosGProcessor
from kosmosg.checkpoint.export import save_export
from kosmosg_platform.cli.main import app
from kosmosg_platform.cluster import workspace

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[3]
VERBS = {
    "run",
    "submit",
    "status",
    "logs",
    "stop",
    "plan",
    "serve",
    "generate",
    "import",
    "doctor",
    "trace",
    "rehearse",
    "track",
}


def kosmosg(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "kosmosg", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env=os.environ | {"TRANSFORMERS_VERBOSITY": "error"},
    )


def sentence(result: subprocess.CompletedProcess[str]) -> str:
    """The one line that a mistake may print."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_every_verb_has_help_with_an_example_that_can_be_pasted() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert set(commands) == VERBS
    for name, command in commands.items():
        assert f"Example: kosmosg {name}" in (command.help or ""), name
        if name not in ("plan", "rehearse"):  # their help is that of the job
            example = (command.help or "").partition("Example: ")[2].strip()
            assert f"Example: {example}\n" in kosmosg(name, "-h").stdout, "on one line, however narrow the terminal is"


@pytest.mark.parametrize("words", [[], *([verb] for verb in sorted(VERBS)), ["run", "align"], ["run", "align", "tiny"]])
def test_h_is_short_for_help(words: list[str]) -> None:
    short, long = kosmosg(*words, "-h"), kosmosg(*words, "--help")
    assert (short.returncode, short.stdout) == (0, long.stdout), short.stderr
    assert "example" in short.stdout.lower()


def test_help_of_what_starts_jobs_lists_all_of_them_and_the_presets_with_a_line_each() -> None:
    root = workspace.find()
    for verb in ("run", "submit"):
        shown = " ".join(kosmosg(verb, "-h").stdout.split())
        for name, meaning in [*workspace.summaries(root), *workspace.presets(root)]:
            assert meaning
            assert f"{name} {meaning}" in shown, name


def test_help_is_there_at_once() -> None:
    began = time.process_time()
    code = (
        "import sys, kosmosg_platform.cli.main; print({'torch', 'ray', 'httpx', 'yaml', 'pydantic'} & set(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "set()"
    shown = kosmosg("--help")
    assert shown.returncode == 0
    assert all(verb in shown.stdout for verb in VERBS)
    assert time.process_time() - began < 1
    assert kosmosg().stdout == shown.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["rnu"], "No such command 'rnu'. Did you mean 'run'?"),
        (["run"], "Missing argument 'JOB'"),
        (["run", "pretrian"], "there is no job 'pretrian'"),
        (["run", "pretrain", "tiny", "train.stpes=3"], "train.stpes: no such setting; did you mean train.steps?"),
        (["logs", "x", "--address", "ray://head:1"], "not the URL of a dashboard"),
        (["generate", "<i> and <i>", "--image", "README.md"], "2 places <i> but 1 images"),
        (["generate", "<i>", "--image", "nowhere.png"], "there is no file nowhere.png"),
        (["generate", "<i>", "--image", "README.md"], "not an image that can be read"),
        (["generate", "x", "-o", "out.gif"], "--output: out.gif should end in one of"),
        (["generate", "x", "--size", "big"], "--size: 'big' is not WIDTHxHEIGHT"),
        (["generate", "x", "--url", "http://127.0.0.1:9"], "did not answer"),
        (["generate", "x", "--model", "docs"], "docs"),
        (["serve", "tiny", "model=docs"], "docs is no export"),
        (["serve", "tiny", "limits.nn=1"], "limits.nn: no such setting; did you mean limits.n?"),
        (["serve", "tiny", "defaults.steps=500"], "defaults.steps: 500 is above limits.steps, 100"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments: list[str], told: str) -> None:
    assert told in sentence(kosmosg(*arguments))


def test_a_job_gets_its_arguments_and_gives_its_exit_code(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "kosmosg"\n')
    (tmp_path / "jobs" / "__init__.py").touch()
    (tmp_path / "jobs" / "echo.py").write_text("import os, sys\nprint(sys.argv[1:], os.getcwd())\nsys.exit(5)\n")
    below = tmp_path / "below"
    below.mkdir()
    done = kosmosg("run", "echo", "tiny", "a=1", "--help", cwd=below)
    assert done.returncode == 5
    assert done.stdout == f"['tiny', 'a=1', '--help'] {below}\n", "relative paths are those of the caller"


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory, tiny_model: KosmosG, tiny_processor: KosmosGProcessor) -> Path:
    return save_export(tiny_model, tiny_processor, tmp_path_factory.mktemp("cli") / "export")


def test_generate_draws_here(export: Path, tiny_sd_parts: Path, tmp_path: Path) -> None:
    cat = tmp_path / "cat.png"
    Image.new("RGB", (50, 40), "orange").save(cat)
    ask = ["generate", "<i> at sea", "--image", cat, "--model", export, "--decoder", tiny_sd_parts, "--steps", 2]
    drawn = kosmosg(*ask, "--seed", 3, "-n", 2, "-o", tmp_path / "new" / "out.webp", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stdout.split() == [str(tmp_path / "new" / f"out-{i}.webp") for i in (1, 2)]
    assert "seed 3" in drawn.stderr
    first, second = (Image.open(path) for path in drawn.stdout.split())
    assert (first.format, first.size) == ("WEBP", (16, 16))
    assert first.tobytes() != second.tobytes()


def test_import_refuses_what_is_no_published_checkpoint_and_leaves_nothing(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file({"gpt_model.decoder.layer_norm.weight": torch.zeros(4)}, weights)
    told = sentence(kosmosg("import", "reference", weights, tmp_path / "out"))
    assert "gpt_model.decoder" in told
    assert not (tmp_path / "out").exists()


def test_plan_counts_the_papers_model() -> None:
    shown = kosmosg("plan", "paper", "engine.precision=bf16")
    assert shown.returncode == 0, shown.stderr
    assert "instruct: 1.6 billion trainable" in shown.stdout
    assert "205 million samples" in shown.stdout
    assert "V100 32 GB   REFUSED: has no bf16; use engine.precision=fp16" in shown.stdout


def test_only_jobs_are_offered_as_jobs() -> None:

    named = "ablation align build_dataset demo evaluate export generate hash_list instruct plan precompute pretrain "
    named += "rehearse toyworld"
    assert workspace.jobs(workspace.find()) == named.split()


def test_help_may_be_cut_off_by_its_reader() -> None:
    command = f"{sys.executable} -m jobs.align --help | head -1; exit ${{PIPESTATUS[0]}}"
    shown = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("usage: kosmosg run align")
