"""What Tab offers, as the shells ask for it, and how fast."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.settings import JOBS, reads, settings

ROOT = Path(__file__).resolve().parents[3]
KOSMOSG = Path(sys.executable).parent / "kosmosg"


def ask(shell: str, *words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    line = {"COMP_WORDS": "\n".join(["kosmosg", *words]), "COMP_CWORD": str(len(words))}
    zsh = {"_TYPER_COMPLETE_ARGS": " ".join(["kosmosg", *words])}
    environment = os.environ | {"_KOSMOSG_COMPLETE": f"complete_{shell}"} | (line if shell == "bash" else zsh)
    return subprocess.run([KOSMOSG], capture_output=True, text=True, timeout=60, env=environment, cwd=cwd)


def offered(*words: str) -> list[str]:
    return ask("bash", *words).stdout.split()


def test_jobs_are_offered() -> None:
    assert offered("run", "") == sorted(JOBS)
    assert offered("run", "e") == ["evaluate", "export"]
    assert offered("submit", "al") == ["align"]


@pytest.mark.parametrize("job", JOBS)
def test_presets_and_the_settings_that_a_job_reads_are_offered(job: str) -> None:
    command = ["plan"] if job == "plan" else ["run", job]
    found = offered(*command, "")
    presets = sorted(path.stem for path in (ROOT / "jobs" / "presets").glob("*.yaml"))
    assert found == [*presets, *(f"{key}=" for key, _, _ in settings(job))]
    assert all(reads(job, word.rstrip("=")) for word in found[len(presets) :])
    after = offered(*command, "tiny", "")
    assert after == found[len(presets) :], "there is one preset at most"


def test_a_part_of_a_key_is_completed() -> None:
    assert offered("run", "align", "gpu", "train.st") == ["train.steps="]
    assert offered("run", "align", "evaluate.") == [], "a key that `align` refuses"
    assert "toyworld" in offered("serve", "")


def test_zsh_shows_what_each_means() -> None:
    shown = ask("zsh", "run", "alig").stdout
    assert "align" in shown
    assert "Stage 2" in shown


@pytest.mark.parametrize("words", [("run", ""), ("run", "instruct", "tiny", "train.")])
def test_the_answer_is_there_within_a_second_of_work(words: tuple[str, ...]) -> None:
    children = os.times().children_user + os.times().children_system
    began = time.perf_counter()
    assert ask("bash", *words).stdout
    used = os.times().children_user + os.times().children_system - children
    assert used < 1, f"{used:.2f} s of CPU, {time.perf_counter() - began:.2f} s of time"


def test_outside_of_any_checkout_nothing_breaks(tmp_path: Path) -> None:
    answer = ask("bash", "run", "", cwd=tmp_path)
    assert (answer.returncode, answer.stderr) == (0, "")


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="is about bash")
def test_bash_takes_the_script_and_leaves_the_cursor_behind_equals_signs() -> None:
    environment = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    script = subprocess.run(
        [KOSMOSG, "--show-completion", "bash"], capture_output=True, text=True, timeout=60, env=environment, check=True
    ).stdout
    assert "compopt -o nospace" in script
    press_tab = f"""{script}
compopt() {{ echo compopt "$@"; }}
PATH={KOSMOSG.parent}:$PATH
COMP_WORDS=(kosmosg run align gpu train.st) COMP_CWORD=4
_kosmosg_completion kosmosg; echo "${{COMPREPLY[@]}}"
COMP_WORDS=(kosmosg run pret) COMP_CWORD=2
_kosmosg_completion kosmosg; echo "${{COMPREPLY[@]}}"
"""
    answer = subprocess.run(["/bin/bash", "-c", press_tab], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert answer.stdout.splitlines() == ["compopt -o nospace", "train.steps=", "pretrain"], answer.stderr
