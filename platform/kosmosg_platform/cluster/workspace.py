"""The checkout that contains `jobs/` and `serving/`, which run from a checkout or an image, not from the wheel.

The command line starts them as modules in another process, so this package never imports them.
"""

import ast
import difflib
import itertools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import kosmosg_platform
from kosmosg.errors import ConfigError

RENAMED_JOBS = {"foundation": "toyworld", "proof": "ablation"}


def find(start: Path | None = None) -> Path:
    """The checkout around `start` (the current folder), else the one this package is installed from.

    Raises ConfigError when there is neither.
    """
    here = (start or Path.cwd()).resolve()
    installed = Path(kosmosg_platform.__file__).resolve().parents[2]
    for folder in (here, *here.parents, installed):
        if _is_checkout(folder):
            return folder
    raise ConfigError(
        f"{here} is not inside a kosmosg checkout, and this installation holds none; "
        "clone the repository and run the command there"
    )


def _is_checkout(folder: Path) -> bool:
    project = folder / "pyproject.toml"
    return (folder / "jobs").is_dir() and project.is_file() and 'name = "kosmosg"' in project.read_text("utf-8")


def jobs(checkout: Path) -> list[str]:
    """The jobs of a checkout: modules of `jobs`, except shared ones, and runnable packages."""
    folder = checkout / "jobs"
    shared = {"experiment", "settings", "settings_page", "stored_results"}
    modules = {path.stem for path in folder.glob("[a-z]*.py")} - shared
    return sorted(modules | {path.parent.name for path in folder.glob("*/__main__.py")})


def summaries(checkout: Path) -> list[tuple[str, str]]:
    """Each job with the first sentence of its docstring."""
    return [
        (job, _first_sentence(ast.get_docstring(ast.parse(_source(checkout, job))) or "")) for job in jobs(checkout)
    ]


def presets(checkout: Path, package: str = "jobs") -> list[tuple[str, str]]:
    """Each preset of `jobs` or `serving` with the first sentence of the comment on top of it."""
    found = []
    for path in sorted((checkout / package / "presets").glob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
        found.append((path.stem, _first_sentence(" ".join(line.lstrip("# ") for line in comment))))
    return found


def settings(checkout: Path, job: str) -> list[tuple[str, str]]:
    """Each setting that a job reads, with its description."""
    table = checkout / "jobs" / "settings.json"
    if not table.is_file():
        return []
    return [(key, text) for key, _, text, readers in json.loads(table.read_text("utf-8")) if job in readers]


def _source(checkout: Path, job: str) -> str:
    module = checkout / "jobs" / f"{job}.py"
    return (module if module.is_file() else checkout / "jobs" / job / "__init__.py").read_text(encoding="utf-8")


def _first_sentence(text: str) -> str:
    return " ".join(text.split()).partition(". ")[0].rstrip(".")


def require_job(checkout: Path, job: str) -> None:
    """Raises ConfigError, with the nearest name, when there is no such job."""
    known = jobs(checkout)
    if job in RENAMED_JOBS:
        raise ConfigError(f"the job {job!r} is called {RENAMED_JOBS[job]!r} now")
    if job not in known:
        close = difflib.get_close_matches(job, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(f"there is no job {job!r} in {checkout / 'jobs'}; {hint}jobs: {', '.join(known)}")


def environment(checkout: Path) -> dict[str, str]:
    """Environment variables with which a process finds the checkout's packages from any working directory."""
    paths = [str(checkout), str(checkout / "platform"), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Safe path: a user's folder that happens to be called `jobs` must not take precedence over ours.
    ours = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    # Otherwise transformers reports at every start which of its optional packages are missing, and MLflow how it
    # creates its tables.
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "MLFLOW_LOGGING_LEVEL": "ERROR"}
    return {**quiet, **os.environ, **ours}


def execute(checkout: Path, module: str, arguments: Sequence[str]) -> NoReturn:
    """Become `python -m MODULE ARGUMENTS`; exit code, Ctrl-C and relative paths are those of the program."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], environment(checkout))
