"""Which settings each job reads: for `--help`, error messages and documentation. Imports no torch, Ray or pydantic.

The settings themselves are declared in typed sections, next to what they configure; importing those takes seconds.
Therefore the text of `--help` is kept in settings.json, which `jobs.settings_page` generates from the sections.
"""

import ast
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

_RUN = ("output", "scale", "tracking")
_TRAIN = (*_RUN, "train", "engine", "model", "decoder", "parent", "data")


@dataclass(frozen=True)
class JobSettings:
    """What a job reads: names of sections, single settings, or parts of sections such as `templates.instruct`."""

    reads: tuple[str, ...]
    preset: str = "tiny"
    """The preset used if the user names none."""
    example: str = ""


JOBS = {
    "build_dataset": JobSettings(("output", "scale", "source", "dest", "limit", "build", "retry", "toyworld")),
    "hash_list": JobSettings(("output", "scale", "source", "dest", "limit", "build.source", "hash_list", "toyworld")),
    "precompute": JobSettings(("output", "scale", "model", "decoder", "parent", "data", "precompute")),
    "toyworld": JobSettings(("output", "tracking", "dest", "toyworld_build")),
    "pretrain": JobSettings((*_TRAIN, "pretrain", "templates.pretrain"), example="train.seed=1"),
    "align": JobSettings((*_TRAIN, "align"), example="train.seed=1"),
    "instruct": JobSettings((*_TRAIN, "instruct", "templates.instruct"), example="train.seed=1"),
    "generate": JobSettings(("output", "scale", "source", "dest", "limit", "decoder", "generate")),
    "evaluate": JobSettings((*_RUN, "decoder", "evaluate")),
    "export": JobSettings(("output", "source", "dest", "decoder")),
    "demo": JobSettings(("output", "tracking", "demo"), preset="minutes"),
    "ablation": JobSettings(("output", "tracking", "dest", "ablation")),
    "rehearse": JobSettings((*_TRAIN, "pretrain", "align", "instruct", "templates", "rehearse"), preset="paper"),
    "plan": JobSettings(
        (*_TRAIN, "pretrain", "align", "instruct", "templates", "build", "toyworld", "plan"), example="scale.workers=2"
    ),
}
COMMANDS = ("plan", "rehearse")
"""Jobs that are commands of their own: they start nothing."""
JOBS_OF_JOBS = ("demo", "ablation")
"""Jobs that start other jobs, to which they pass `JOB.settings`."""


def reads(job: str, key: str) -> bool:
    """Whether a job reads a setting, by its dotted key."""
    return any(key == part or key.startswith(f"{part}.") or part.startswith(f"{key}.") for part in JOBS[job].reads)


def usage(job: str) -> str:
    """The help page of a job: what it does, an example, presets, settings with defaults."""
    own = JOBS[job]
    command = f"kosmosg {job}" if job in COMMANDS else f"kosmosg run {job}"
    presets = ", ".join(sorted(path.stem for path in (HERE / "presets").glob("*.yaml")))
    lines = [
        f"usage: {command} [PRESET] [key=value ...]",
        "",
        _docstring(job).strip(),
        "",
        f"example: {command} {own.preset} output=/tmp/try {own.example}".rstrip(),
        f"presets: {presets} (default: {own.preset}), or the path of a YAML file, such as a saved experiment.yaml",
        "",
        "settings, with their defaults:",
    ]
    for key, default, text in settings(job):
        lines += [f"  {key} = {default}", f"      {text}"]
    return "\n".join(lines)


def print_usage(job: str) -> None:
    """`usage`, on standard output, whose reader (`| head`) may close it before the end."""
    try:
        print(usage(job), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed when Python ends


def settings(job: str) -> Iterator[tuple[str, str, str]]:
    """(dotted key, default, description) of everything that a job reads."""
    for key, default, text, readers in json.loads((HERE / "settings.json").read_text(encoding="utf-8")):
        if job in readers:
            yield key, default, text


def answer_help(command: Sequence[str]) -> None:
    """Print the help page and end the process where `command` is `python -m jobs.JOB ... --help`."""
    modules = [word.removeprefix("jobs.") for word in command if word.startswith("jobs.")]
    if modules and modules[0] in JOBS and {"-h", "--help"} & set(command):
        print_usage(modules[0])
        sys.exit(0)


def _docstring(job: str) -> str:
    """Of the job's module, read from its source."""
    path: Any = HERE / f"{job}.py"
    if not path.is_file():
        path = HERE / job / "__init__.py"
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
