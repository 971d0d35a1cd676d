"""Generates jobs/settings.json (see `jobs.settings`) and docs/configuration.md from the typed sections.

Run `make settings` after changing a setting; a test checks that both files are up to date.
"""

import json

from jobs.experiment import Experiment
from jobs.settings import HERE, JOBS, reads
from kosmosg_platform.config import describe

PAGE = HERE.parent / "docs" / "configuration.md"


def write() -> None:
    """Write both files."""
    (HERE / "settings.json").write_text(rendered_settings(), encoding="utf-8")
    PAGE.write_text(rendered_page(), encoding="utf-8")


def rendered_settings() -> str:
    """What settings.json should hold: key, default, description, and the jobs that read it."""
    rows = [json.dumps([*row, readers(row[0])], ensure_ascii=False) for row in described()]
    return "[\n" + ",\n".join(rows) + "\n]\n"


def rendered_page() -> str:
    """What docs/configuration.md should hold."""
    lines = [
        "# Configuration",
        "Every setting of every job, given as `key=value` on the command line or in a preset. This page is generated",
        "from the typed sections; do not edit it by hand. The last column lists the jobs that read a setting; all",
        "other jobs reject it.",
        "",
        "Precedence, lowest first: these defaults, the preset, the preset's `jobs.JOB`, the command line. A mapping",
        "given on the command line replaces the preset's; a dotted key changes one entry of it.",
    ]
    section = None
    for key, default, text in described():
        first = key.partition(".")[0]
        title = first if "." in key else "general"
        if title != section:
            lines += [
                "",
                f"## `{title}`" if title != "general" else "## General",
                "",
                "| key | default | meaning | read by |",
            ]
            lines.append("|---|---|---|---|")
            section = title
        cells = (f"`{key}`", f"`{default}`" if default else "", text.replace("|", "\\|"))
        lines.append(f"| {' | '.join(cells)} | {', '.join(readers(key))} |")
    return "\n".join(lines) + "\n"


def readers(key: str) -> list[str]:
    """The jobs that read a setting."""
    return [job for job in JOBS if reads(job, key)]


def described() -> list[tuple[str, str, str]]:
    """(dotted key, default, description) of every setting, those without a section first."""
    rows = list(describe(Experiment))
    general = [row for row in rows if "." not in row[0]]
    return general + [row for row in rows if "." in row[0]]
