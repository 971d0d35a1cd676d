"""Columns beside a dataset that a frozen model has computed for it: where they lie, and records read with them.

    DEST/precomputed/target_posterior-<digest>/    a dataset of its own: a row for each record of DEST, in its order
    DEST/precomputed/text_states-<digest>/

The digest names everything that the values depend on beside the records: the weights of the model, sizes, tokenizers.
So columns of several decoders lie side by side, and a stage only finds those of its own. `kosmosg run precompute` makes
them (`kosmosg_platform.inference.precompute`).
"""

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kosmosg.data.precomputed import STORED_AS
from kosmosg.errors import DataError
from kosmosg_platform.config import digest
from kosmosg_platform.datasets.dataset import MANIFEST, RecordDataset, read_manifest
from kosmosg_platform.stores.node_copy import bring, bucket_of

PRECOMPUTED = "precomputed"


def column_folder(dataset: Path, column: str, identity: Mapping[str, Any]) -> Path:
    """The folder of a column. `identity` is all that the values depend on beside the records, JSON-like."""
    return dataset / PRECOMPUTED / f"{column}-{digest(dict(identity))[:16]}"


def is_started(dataset: Path, column: str) -> bool:
    """Whether there is anything of a column of this name, whatever its values depend on."""
    bucket = bucket_of(dataset)
    if bucket is not None:
        return any(name.startswith(f"{PRECOMPUTED}/{column}-") for name in bucket.list(PRECOMPUTED))
    return any((dataset / PRECOMPUTED).glob(f"{column}-*"))


def is_complete(dataset: Path, column: Path) -> bool:
    """Whether a column is there for the dataset as it is now; one of an earlier state of the dataset is not."""
    if not bring(column / MANIFEST).is_file():
        return False
    built: bool = read_manifest(column)["source"]["sha256"] == read_manifest(dataset)["sha256"]
    return built


def empty_states(column: Path) -> Tensor:
    """(Q, D) the text encoder's states of the empty caption, which a column of text states also holds."""
    manifest = read_manifest(column)
    values = np.frombuffer(base64.b64decode(manifest["empty"]), STORED_AS).astype(np.float32)
    return torch.from_numpy(values.reshape(manifest["config"]["shape"]))


class RecordsWithColumn:
    """Records of a dataset, each with its value of a precomputed column: `dataset[i]` is a dict as before.

    Raises DataError if the two do not belong together.
    """

    def __init__(self, records: RecordDataset, column: RecordDataset) -> None:
        if len(records) != len(column):
            raise DataError(
                f"{column.folder} has {len(column)} rows, its dataset {records.folder} {len(records)}; "
                "run `kosmosg run precompute` again"
            )
        self.records = records
        self.column = column

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record, value = self.records[index], self.column[index]
        if record["id"] != value["id"]:
            raise DataError(
                f"row {index} of {self.column.folder} is of {value['id']!r}, that of its dataset {record['id']!r}; "
                "run `kosmosg run precompute` again"
            )
        return {**record, self.column.kind: value[self.column.kind]}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))
