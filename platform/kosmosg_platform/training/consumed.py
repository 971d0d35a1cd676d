"""Which records an optimizer step consumed, by arithmetic on the sample order: while training nothing is stored for it
but the samples that were replaced (`kosmosg_platform.training.replacement`).

Step s of a run with global batch G consumes positions [s G, (s + 1) G) of the order, however many workers there were
and however often the run was interrupted; so seed, batch size, shares and dataset sizes are all that is needed. Only
what rollbacks left out is read from the run's folder (`skipped_data`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kosmosg.data.packing import DocumentGroups
from kosmosg.data.templates.pretrain import PretrainTemplates
from kosmosg.errors import CheckpointError, ConfigError, DataError
from kosmosg_platform.config import validate
from kosmosg_platform.console import read_metrics
from kosmosg_platform.datasets.dataset import RecordDataset
from kosmosg_platform.run_paths import RunPaths
from kosmosg_platform.storage import read_json
from kosmosg_platform.training.checkpoints import MANIFEST, read_progress
from kosmosg_platform.training.held_out import RemainingRows, find_held_out
from kosmosg_platform.training.lr_schedule import TrainConfig
from kosmosg_platform.training.mixture import DataConfig, Mixture, find_mixture
from kosmosg_platform.training.replacement import FILE
from kosmosg_platform.training.sampler import MixtureSampler
from kosmosg_platform.training.skipped_data import SkippedData

SETTINGS = "experiment.yaml"
KEY = re.compile(r"[0-9a-f]{4,12}")


@dataclass(frozen=True)
class ConsumedRecord:
    """One record that a step consumed; the documents that share a row of text share its position."""

    step: int
    """Optimizer step, 0-based, as in metrics.jsonl and MLflow."""
    position: int
    """Of the sample, in the order of the whole run; the same for any number of workers."""
    kind: str
    """Kind of sample, as in `data.weights`."""
    dataset: Path
    """Folder of the dataset."""
    index: int
    """Of the record within it."""
    id: str
    """Of the record."""
    epoch: int
    """How many complete passes over the dataset came before."""
    instead_of: str | None = None
    """Id of the record that the order has here, when it could not be used and this one replaced it."""


@dataclass(frozen=True)
class TracedRun:
    """A training run, as its folder tells of it."""

    folder: Path
    train: TrainConfig
    mixture: Mixture
    documents_per_row: int
    """Documents of a sample of text, in stage 1."""
    held_out: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Samples of each kind that the run does not train on."""
    last_step: int | None = None
    """The last step that the checkpoint has seen, when the run was named by one."""
    skipped: SkippedData = field(default_factory=SkippedData)
    """Data that rollbacks left out."""
    verified: bool = True
    """Whether the run's folder tells which data it was trained on, so that they could be compared."""

    def consumed(self, step: int) -> list[ConsumedRecord]:
        """What the step consumed, in the order of the samples. Raises ConfigError for a step that the run never has."""
        if not 0 <= step < self.train.steps:
            raise ConfigError(f"--step: the run has the steps 0 to {self.train.steps - 1}, not {step}")
        sources = self.mixture.open(self.documents_per_row)
        left = {name: RemainingRows(source, self.held_out.get(name, ())) for name, source in sources.items()}
        sizes = {name: len(source) for name, source in left.items()}
        order = MixtureSampler(sizes, self.mixture.weights, self.train.seed, self.train.global_batch)
        data_step = self.skipped.data_step(step)
        first = data_step * self.train.global_batch
        lines = (line for line in read_metrics(self.folder / FILE) if line["step"] == step)
        replaced = {(line["kind"], line["seed"]): line for line in lines}
        wanted: dict[str, list[tuple[int, int, int, str | None]]] = {}  # kind -> position, epoch, index, instead of
        for position, sample in enumerate(order.step(data_step), start=first):
            source = sources[sample.source]
            line = replaced.get((sample.source, sample.seed))
            read, instead = (line["by"], line["id"]) if line else (sample.index, None)
            read = left[sample.source].place(read)
            members = source.members(read) if isinstance(source, DocumentGroups) else [read]
            wanted.setdefault(sample.source, []).extend((position, sample.epoch, index, instead) for index in members)
        found = []
        for kind, places in wanted.items():
            folder = self.mixture.folders[kind]
            ids = RecordDataset(folder).read_ids(index for _, _, index, _ in places)
            for (position, epoch, index, instead), record_id in zip(places, ids, strict=True):
                found.append(ConsumedRecord(step, position, kind, folder, index, record_id, epoch, instead))
        return sorted(found, key=lambda record: (record.position, record.index))


def open_run(name: str, output: Path) -> TracedRun:
    """A run by its folder, by one of its checkpoints, or by its key under `output`.

    Raises ConfigError when there is no such run, and DataError when its data are not what it was trained on.
    """
    place = Path(name)
    folder, last = _run_folder(place.resolve()) if place.is_dir() else (_by_key(name, output), None)
    settings = _settings(folder / SETTINGS)
    stage = folder.parent.name
    # The folder may have been moved together with its data since the settings were written.
    layout = RunPaths(folder.parents[1])
    mixture = find_mixture(stage, validate(DataConfig, settings.get("data") or {}), layout)
    verified = _compare(folder, mixture)
    templates = (settings.get("templates") or {}).get("pretrain") or {}
    together = templates.get("documents_per_row", PretrainTemplates().documents_per_row)
    train = validate(TrainConfig, settings["train"])
    together = together if stage == "pretrain" else 0
    held_out = find_held_out(mixture, (settings.get("data") or {}).get("validation", 0), together)
    skipped = SkippedData.read(folder)
    return TracedRun(folder, train, mixture, together, held_out, last, skipped, verified)


def _run_folder(place: Path) -> tuple[Path, int | None]:
    """The run that a folder is or lies in, and the last step of a checkpoint."""
    last = None
    if (place / MANIFEST).is_file() and place.parent.parent.name == "checkpoints":
        last = read_progress(place).step - 1
        if last < 0:
            raise CheckpointError(f"{place} was written before the first step; it has consumed nothing")
    for folder in (place, *list(place.parents)[:3]):
        if (folder / SETTINGS).is_file():
            return folder, last
    raise ConfigError(f"--run: {place} is neither a run nor a checkpoint of one; there is no {SETTINGS}")


def _by_key(key: str, output: Path) -> Path:
    found: list[Path] = []
    if KEY.fullmatch(key):
        parents = [path for parent in (output, output / "demo") for path in parent.glob(f"*/{key}*/{SETTINGS}")]
        found = sorted({path.parent.resolve() for path in parents})
    if not found:
        raise ConfigError(
            f"--run: there is neither a folder {key} nor a run of that key under {output}; give the folder "
            "OUTPUT/STAGE/KEY, one of its checkpoints, or --output"
        )
    if len(found) > 1:
        raise ConfigError(f"--run: {key} is the key of several runs: {', '.join(map(str, found))}; give a folder")
    return found[0]


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict) or "train" not in settings:
        raise DataError(f"{path} does not hold the settings of a training run: it has no section train")
    return settings


def _compare(folder: Path, mixture: Mixture) -> bool:
    """Whether the run tells its data; raises DataError when they are others now."""
    told: Any = None
    for file, *path in (("run.json", "data"), ("finished.json", "fingerprint", "data")):
        if told is None and (folder / file).is_file():
            told = read_json(folder / file)
            for name in path:
                told = told.get(name) if isinstance(told, dict) else None
    if not isinstance(told, dict):
        return False
    now = mixture.fingerprint()
    changed = sorted(name for name in {*told, *now} if told.get(name) != now.get(name))
    if changed:
        raise DataError(
            f"the data of {folder} have changed since it was trained ({', '.join(changed)}), so the order of its "
            "samples cannot be told; put the datasets back as they were"
        )
    return True
