"""Shell completion, and the lists in `--help`: jobs, presets and settings of the surrounding checkout.

They are read from files (docstrings, the first lines of presets, jobs/settings.json), so that no slow import delays the
prompt. Outside a checkout there is nothing to offer, which is not an error.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
import typer.core

from kosmosg.errors import ConfigError
from kosmosg_platform.cluster import workspace

Offer = tuple[str, str]
"""A completion and its description."""


def offer_jobs(incomplete: str) -> list[Offer]:
    """Jobs, with the first sentence of their docstrings."""
    return _matching(_of_checkout(workspace.summaries), incomplete)


def offer_words(context: typer.Context, incomplete: str) -> list[Offer]:
    """For `run JOB`, `submit JOB` and `plan`: presets until one is given, then settings that the job reads."""
    job = str(context.params.get("job") or context.info_name)
    presets = _of_checkout(workspace.presets)
    given = set(context.params.get("words") or ())
    has_preset = any(word.endswith((".yaml", ".yml")) for word in given) or bool(given & {name for name, _ in presets})
    settings = _of_checkout(lambda root: workspace.settings(root, job))
    offers = [] if has_preset else presets
    return _matching([*offers, *((f"{key}=", text) for key, text in settings)], incomplete)


def offer_endpoint_presets(incomplete: str) -> list[Offer]:
    """Of `serve`."""
    return _matching(_of_checkout(lambda root: workspace.presets(root, "serving")), incomplete)


def _matching(offers: list[Offer], incomplete: str) -> list[Offer]:
    return [offer for offer in offers if offer[0].startswith(incomplete)]


def _of_checkout(read: Callable[[Path], list[Offer]]) -> list[Offer]:
    try:
        return read(workspace.find())
    except ConfigError:
        return []


class JobCommand(typer.core.TyperCommand):
    """A command that starts jobs: its help ends with a list of the jobs and presets."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Called when help is shown, so that nothing is read before."""
        for title, read in (("Jobs", workspace.summaries), ("Presets", workspace.presets)):
            if offers := _of_checkout(read):
                with formatter.section(title):
                    formatter.write_dl(offers)
        super().format_epilog(ctx, formatter)


def keep_the_cursor_behind_equals_signs() -> None:
    """bash adds a space after a completion, but after `train.steps=` the value follows directly."""
    from typer import _completion_shared

    scripts = _completion_shared._completion_scripts
    ending = "    return 0\n}"
    nospace = '    [[ "${COMPREPLY[0]}" == *= ]] && compopt -o nospace\n'
    scripts["bash"] = scripts["bash"].replace(ending, nospace + ending)
