"""The settings of a training run that are worth a column in MLflow; all of them are in its experiment.yaml."""

from typing import Any

from kosmosg_platform.config import Section, flatten, plain

ALWAYS = (
    "train.steps",
    "train.global_batch",
    "train.lr",
    "train.seed",
    "engine.precision",
    "engine.zero_stage",
    "scale.workers",
)
"""What every comparison of runs asks for, whether it is the default or not."""
_ELSEWHERE = ("output", "tracking", "train.restart")
_SHARED = ("train", "scale", "engine", "model", "data", "parent", "decoder")


def changed_settings(experiment: Section, stage: str) -> dict[str, Any]:
    """What a stage reads and the settings change from its default, and `ALWAYS`, by dotted key."""
    given, usual = flatten(plain(experiment)), flatten(plain(type(experiment)()))
    read = (*_SHARED, stage, f"templates.{stage}")
    return {
        key: value
        for key, value in given.items()
        if any(key == part or key.startswith(f"{part}.") for part in read)
        and not any(key == part or key.startswith(f"{part}.") for part in _ELSEWHERE)
        and (key in ALWAYS or key not in usual or value != usual[key])
    }
