"""Which answers of models stay in a dataset's folder: those of the last few builds, so that going back is cheap.

    DEST/.answers/used.json        the steps of the last builds that kept answers, newest first, and bytes of all

A step whose model, prompt or other settings have changed answers under another key (`answers`), and its old answers
would lie there for ever. When a build has published its dataset, the answers of all but the last `keep` different
settings are removed, and so are those for rows that are no longer in the source.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kosmosg.errors import DataError
from kosmosg_platform.datasets.answers import ANSWERS, place_of
from kosmosg_platform.datasets.steps import PipelineStep
from kosmosg_platform.storage import read_json, write_json

USED = "used.json"
_PLACE = re.compile(r"\w+-\w{1,16}")
_FILE = re.compile(r"(?P<content>[0-9a-f]{32})\.(?:arrow|partial)")


@dataclass(frozen=True)
class KeptAnswers:
    """What a dataset keeps of the answers of models."""

    bytes: int = 0
    removed: int = 0
    """Bytes that this build has removed."""


def tidy_answers(
    folder: Path, steps: Sequence[PipelineStep], keep: int, contents: Callable[[], Collection[str]] | None
) -> KeptAnswers:
    """Remove the answers that the last `keep` settings do not need; `folder` holds the dataset that was published.

    `contents` gives the digests of all chunks of the build; None leaves the answers for other rows alone, where nothing
    was built. Only files that are named as builds name them are removed.
    """
    place = folder / ANSWERS
    told = _told(place)
    current = sorted(place_of(folder, step).name for step in steps if step.keep)
    if not place.is_dir() or (not current and not told["builds"]):
        return KeptAnswers()
    builds = [current, *(build for build in told["builds"] if build != current)][:keep]
    if contents is None and builds == told["builds"]:
        return KeptAnswers(told["bytes"])
    wanted = {name for build in builds for name in build}
    known = None if contents is None else set(contents())
    left = removed = 0
    for path in place.iterdir():
        if not path.is_dir() or not _PLACE.fullmatch(path.name):
            continue
        for file in path.iterdir():
            ours = _FILE.fullmatch(file.name)
            size = file.stat().st_size
            if ours and (path.name not in wanted or not (known is None or ours["content"] in known)):
                file.unlink()
                removed += size
            else:
                left += size
        if path.name not in wanted and not any(path.iterdir()):
            path.rmdir()
    write_json(place / USED, {"builds": builds, "bytes": left})
    return KeptAnswers(left, removed)


def kept_bytes(folder: Path) -> int:
    """Bytes of the answers that a dataset keeps, as its last build left them."""
    return int(_told(folder / ANSWERS)["bytes"])


def _told(place: Path) -> dict[str, Any]:
    """What `used.json` says; nothing where it is not there or damaged: the last builds are then forgotten."""
    try:
        found = read_json(place / USED)
        return {"builds": [list(build) for build in found["builds"]], "bytes": int(found["bytes"])}
    except (OSError, DataError, KeyError, TypeError, ValueError):
        return {"builds": [], "bytes": 0}
