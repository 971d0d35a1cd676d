"""Where a run came from: the tags by which MLflow shows source, user and commit."""

import getpass
import os
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path


def source_tags(description: str | None = None) -> dict[str, str]:
    """Source, user, commit and description, under the names that MLflow's pages read.

    Without a description there, the command that was typed takes its place.
    """
    commit, words = git_sha(), command()
    tags = {
        # The pages show what stands behind the last slash, which a setting like output=runs/mine must not decide.
        "mlflow.source.name": " ".join(words[:3]) if words[:2] == ["kosmosg", "run"] else words[0],
        "mlflow.note.content": description or f"`{shlex.join(words)}`",
        "mlflow.source.type": "JOB" if os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") else "LOCAL",
        "mlflow.user": user(),
        "git.sha": commit,
    }
    if commit != "unknown":
        tags["mlflow.source.git.commit"] = commit
    return tags


def command() -> list[str]:
    """The command that a user would type to start this process, as far as it is known."""
    program = Path(sys.argv[0])
    job = program.stem if program.stem != "__main__" else program.parent.name
    return ["kosmosg", "run", job, *sys.argv[1:]] if "jobs" in program.parts else [program.name, *sys.argv[1:]]


def user() -> str:
    """Who started this process, `unknown` where the machine does not tell."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return "unknown"


@cache
def git_sha() -> str:
    """The commit of the running code, `unknown` outside a repository."""
    if sha := os.environ.get("KOSMOSG_GIT_SHA"):
        return sha
    here = Path(__file__).parent
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return result.stdout.strip() or "unknown"
