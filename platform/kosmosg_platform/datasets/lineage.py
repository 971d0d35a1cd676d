"""Where a record came from: its shard and row, the item of the source, the annotators and settings that made it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kosmosg.errors import DataError
from kosmosg_platform.config import flatten
from kosmosg_platform.datasets.dataset import RecordDataset
from kosmosg_platform.datasets.listing import LISTING

ANNOTATED = ("captioner", "entity_finder", "segmenter")
"""Fields of a record that name what has made it."""


@dataclass(frozen=True)
class RecordOrigin:
    """What is known of how a record, or a rejected row, came to be."""

    id: str
    dataset: Path
    kind: str
    shard: str
    """File, relative to the dataset folder."""
    row: int
    """Within the shard, from 0."""
    index: int | None
    """Within the dataset, from 0; None for a rejected row."""
    rejected: Mapping[str, str]
    """Step, reason and message of a rejected row; empty for a record."""
    record: Mapping[str, Any]
    """The record's own fields, but its images and words."""
    provenance: Mapping[str, Any]
    """Licence, author and address, as far as the source told."""
    item: Mapping[str, Any]
    """The item of the source that it was read from; empty where the listing is gone or does not tell."""
    source: Mapping[str, Any]
    """Layout, place and settings of the source."""
    annotators: Mapping[str, str]
    """What made it, by field, with model ids."""
    config: Mapping[str, Any]
    """Steps with their settings, and how records were cut."""

    def facts(self) -> dict[str, str]:
        """Everything as dotted names and text, in the order in which a person would ask."""
        told: dict[str, Any] = {"id": self.id, "dataset": str(self.dataset), "kind": self.kind}
        told |= {"shard": self.shard, "row": self.row}
        if self.index is not None:
            told["record"] = self.index
        steps = self.config.get("steps", ())
        sections: dict[str, Any] = {
            "rejected": self.rejected,
            "source": self.source,
            "item": self.item,
            "origin": self.record,
            "provenance": self.provenance,
            "annotators": self.annotators,
            "steps": {str(number): step for number, step in enumerate(steps, start=1)},
            "settings": {name: value for name, value in self.config.items() if name != "steps"},
        }
        told |= flatten({name: values for name, values in sections.items() if values})
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in told.items()}


def trace_record(folder: Path, record_id: str) -> RecordOrigin:
    """How the record of that id came into a dataset, or why it did not.

    Raises DataError when the folder is no finished dataset, and when neither a record nor a rejected row has the id.
    """
    dataset = RecordDataset(folder)
    found = dataset.find(record_id)
    if found is not None:
        index, shard, row = found
        return _origin(dataset, shard, row, index, dataset[index])
    for entry in dataset.manifest["quarantine"]["shards"]:
        ids = pq.read_table(folder / entry["name"], columns=["id"]).column("id")
        row = pc.index(ids, pa.scalar(record_id)).as_py()
        if row >= 0:
            told = pq.read_table(folder / entry["name"]).slice(row, 1).to_pylist()[0]
            return _origin(dataset, entry["name"], row, None, told)
    raise DataError(
        f"{folder} has neither a record nor a rejected row with the id {record_id!r}, among {len(dataset):,} records "
        f"and {dataset.manifest['quarantine']['rows']:,} rejected rows"
    )


def _origin(dataset: RecordDataset, shard: str, row: int, index: int | None, told: Mapping[str, Any]) -> RecordOrigin:
    manifest = dataset.manifest
    own = {name: told[name] for name in ("source", "sha256", "width", "height") if told.get(name) is not None}
    made = {name: told[name] for name in ANNOTATED if told.get(name)}
    return RecordOrigin(
        id=told["id"],
        dataset=dataset.folder,
        kind=dataset.kind,
        shard=shard,
        row=row,
        index=index,
        rejected={} if index is not None else {name: told[name] for name in ("stage", "reason", "message")},
        record=own,
        provenance=_provenance(told.get("provenance")),
        item=_item(dataset.folder, Path(shard).stem, told["id"], told["source"]),
        source=manifest["source"],
        annotators=made or manifest["annotators"],
        config=manifest["config"],
    )


def _provenance(text: str | None) -> dict[str, Any]:
    try:
        told = json.loads(text or "{}")
    except ValueError:
        told = text
    return told if isinstance(told, dict) else {"text": told}


def _item(folder: Path, shard: str, record_id: str, source: str) -> dict[str, Any]:
    """What the listing knows of the item behind a record; only where it is certain which one that is.

    An item of one row has the record's id for a key; one of many rows is known by its file, where it is the only one of
    that file in the shard.
    """
    path = folder / LISTING / f"{shard}.parquet"
    if not path.is_file():
        return {}
    items = pq.read_table(path)
    for mask in (pc.equal(items.column("key"), record_id), pc.equal(items.column("place"), source)):
        found = items.filter(mask)
        if found.num_rows == 1:
            names = ("key", "place", "start", "length", "stamp")
            row: dict[str, Any] = found.select(names).to_pylist()[0]
            return {name: value for name, value in row.items() if value not in ("", 0) or name == "start"}
    return {}
