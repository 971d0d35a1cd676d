"""Which records a stage trains on, in which shares: the section `data`, and the mixture that it means."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from kosmosg.data.packing import DocumentGroups
from kosmosg.data.records import RecordKind, SampleKind, dataset_folder, record_kind, stage_samples
from kosmosg.errors import ConfigError
from kosmosg_platform.config import Section
from kosmosg_platform.console import echo
from kosmosg_platform.datasets.dataset import RecordDataset, read_manifest
from kosmosg_platform.run_paths import RunPaths, require_dataset
from kosmosg_platform.stores.location import Location, told
from kosmosg_platform.stores.node_copy import bring

DIGEST_CHARACTERS = 36
"""Of a dataset's digest in MLflow, which takes no more."""


class DataConfig(Section):
    """The dataset folders of a run, as `build_dataset` writes them, on a disk or in an object store (s3://, gs://,
    hdfs://). If one is null, it is looked for in `folder`."""

    folder: Location | None = None
    """Parent of the dataset folders: its `composition`, `edit`, ... are used; null means <output>/build_dataset."""
    composition: Location | None = None
    """Records of kind composition."""
    edit: Location | None = None
    """Records of kind edit."""
    captions: Location | None = None
    """Records of kind caption, with or without images."""
    text: Location | None = None
    """Records of kind text."""
    interleaved: Location | None = None
    """Records of kind interleaved."""
    datasets: dict[str, Location] = Field(default_factory=dict)
    """Records of kinds added by plug-ins, by kind, such as the toy world's {questions: FOLDER}."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Share of each kind of sample: text, caption, interleaved (pretrain), caption (align), composition, edit, t2i
    (instruct), and those of plug-ins. Kinds without records are skipped. Empty takes the paper's mixture."""
    max_seq_len: int | None = Field(default=None, ge=8)
    """Maximum row length in tokens; longer rows are truncated. Null means 86 for align, else the model's maximum."""
    empty_captions: float = Field(default=0.0, ge=0, le=1)
    """Probability that `align` replaces a caption by the empty one, so that the null condition is aligned too."""
    pad_captions: bool = False
    """Let `align` pad every batch to `max_seq_len`. Its loss counts pads, so without this the loss depends on how
    samples are split over workers."""
    validation: int = Field(default=0, ge=0)
    """Samples, over all kinds by their shares, that are never trained on: every `train.validate_every` steps the loss
    is measured on them, with dropout off. 0 holds out none."""
    precomputed: Literal["auto", "always", "never"] = "auto"
    """Columns of `precompute` that replace the VAE in stage 3 and the text encoder in stage 2: read where all datasets
    have them (`auto`), required, or ignored."""
    scaled_decoding: bool = False
    """Let `instruct` decode JPEGs of a prompt at a half, a quarter or an eighth of their size, no smaller than what the
    vision tower takes. Costs a third or less; pixels differ by a few levels from those of the whole image, scaled."""


@dataclass(frozen=True)
class Mixture:
    """The sources of a stage: dataset folder and share of each kind of sample."""

    folders: Mapping[str, Path]
    weights: Mapping[str, float]
    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What is read of each kind's records; all of them where it is empty."""

    def open(
        self, documents_per_row: int = 0, fields: Callable[[str], Sequence[str]] | None = None
    ) -> dict[str, RecordDataset | DocumentGroups]:
        """The datasets by kind of sample; in stage 1 a sample of text is a group of `documents_per_row` records.

        `fields` gives what to read of records of a kind; null reads all that the kind of sample needs.
        """
        datasets = {}
        for name, folder in self.folders.items():
            columns = self.fields.get(name) or None
            if fields is not None:
                wanted = fields(read_manifest(folder)["kind"])
                columns = tuple(one for one in wanted if columns is None or one in columns)
            datasets[name] = RecordDataset(folder, columns=columns)
        return {
            name: DocumentGroups(one, documents_per_row) if documents_per_row and name == "text" else one
            for name, one in datasets.items()
        }

    def tracked(self) -> list[dict[str, str]]:
        """The datasets as MLflow lists them; the digest is the start of the sha256 of a dataset's manifest."""
        found = []
        for name, folder in sorted(self.folders.items()):
            dataset = RecordDataset(folder)
            found.append(
                {
                    "name": name,
                    "digest": dataset.manifest["sha256"][:DIGEST_CHARACTERS],
                    "source": json.dumps({"uri": told(folder)}),
                    "profile": json.dumps({"num_rows": len(dataset), "share": self.weights[name]}),
                    "context": "training",
                }
            )
        return found

    def fingerprint(self) -> dict[str, Any]:
        """Digest of contents and share of each source, for the run's identity."""
        return {
            name: {"sha256": RecordDataset(folder).manifest["sha256"], "weight": float(self.weights[name])}
            for name, folder in sorted(self.folders.items())
        }


def find_mixture(stage: str, data: DataConfig, layout: RunPaths) -> Mixture:
    """Which records a stage reads, in which shares. Kinds without records are skipped, with one log line.

    Raises ConfigError for an unknown kind, for a configured folder that is not a finished dataset, and if nothing is
    left.
    """
    samples = stage_samples(stage)
    _refuse_unknown(stage, data, samples)
    given = dict(data.weights) or {name: sample.share for name, (_, sample) in samples.items()}
    weights = {name: float(weight) for name, weight in given.items() if weight > 0}
    if not weights:
        raise ConfigError("data.weights: all shares are 0; give at least one kind a share")
    folders = {name: _serving(kind, sample, data, layout) for name, (kind, sample) in samples.items()}
    found = {name: folder for name in weights if (folder := folders[name]) is not None}
    missing = [name for name in weights if name not in found]
    if not found:
        kind = samples[missing[0]][0]
        last = (kind, *record_kind(kind).served_by)[-1]
        require_dataset(_folder(last, data, layout), _setting(last))
        raise ConfigError(
            f"data: no records under {told(_parent(data, layout))} serve {stage}, which reads images of them"
        )
    if missing:
        settings = ", ".join(f"data.{_setting(samples[name][0])}=FOLDER" for name in missing)
        echo(
            f"{stage}: no records under {told(_parent(data, layout))} for {', '.join(missing)} ({settings}), skipping; "
            f"training on {', '.join(found)}"
        )
    fields = {name: samples[name][1].fields for name in found}
    return Mixture(found, {name: weights[name] for name in found}, fields)


def _refuse_unknown(stage: str, data: DataConfig, samples: Mapping[str, object]) -> None:
    unknown = set(data.weights) - set(samples)
    if unknown:
        raise ConfigError(f"data.weights.{min(unknown)}: {stage} has no such kind; it knows {', '.join(samples)}")
    for kind in data.datasets:
        record_kind(kind)


def _serving(kind: str, sample: SampleKind, data: DataConfig, layout: RunPaths) -> Path | None:
    """The first finished dataset that provides a kind of sample. A folder named in the settings must exist."""
    for candidate in (kind, *record_kind(kind).served_by):
        folder = _folder(candidate, data, layout)
        if _given(candidate, data) is not None:
            require_dataset(folder, _setting(candidate))
        if not bring(folder / "manifest.json").is_file():
            continue
        record: RecordKind = record_kind(candidate)
        dataset = RecordDataset(folder, record.stored_as or candidate)
        without_image = len(dataset) == 0 or dataset[0].get("image") is None
        if not (sample.needs_image and without_image):
            return folder
    return None


def _setting(kind: str) -> str:
    """The setting, under `data`, for the folder of a kind."""
    name = dataset_folder(kind)
    return name if name in DataConfig.model_fields else f"datasets.{kind}"


def _given(kind: str, data: DataConfig) -> Path | None:
    return data.datasets.get(kind) or getattr(data, dataset_folder(kind), None)


def _folder(kind: str, data: DataConfig, layout: RunPaths) -> Path:
    given = _given(kind, data)
    return given.absolute() if given is not None else _parent(data, layout) / dataset_folder(kind)


def _parent(data: DataConfig, layout: RunPaths) -> Path:
    return data.folder.absolute() if data.folder else layout.job("build_dataset")
