"""Samples as Arrow tables, so that any engine can pass them from step to step and machine to machine.

One row is one source row: a sample in progress, a finished record, or a rejection. A rejected row stays in the table,
untouched by later steps, until it is written to quarantine, so that nothing is lost between steps.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from kosmosg.data.annotators.base import EntityMask, Reference, Sample, Span
from kosmosg.data.records import QuarantineRow
from kosmosg.data.sources.base import ReadyRow, RejectedRow, SourceRow

SPAN = pa.struct([("text", pa.string()), ("start", pa.int32()), ("end", pa.int32())])
_PIXELS = pa.struct([("shape", pa.list_(pa.int32())), ("data", pa.binary())])
CUT = pa.struct([("probability", _PIXELS), ("reference", _PIXELS), ("reference_mask", _PIXELS)])
_REFUSAL = pa.struct([(name, pa.string()) for name in ("id", "source", "stage", "reason", "message")])

ROWS = pa.schema(
    [
        ("chunk", pa.int32()),  # the piece of work that this row belongs to
        ("chunk_rows", pa.int32()),  # how many rows that piece has, so that a torn piece is noticed
        ("id", pa.string()),
        ("source", pa.string()),
        ("encoded", pa.binary()),
        ("sha256", pa.string()),
        ("hints", pa.string()),  # JSON
        ("caption", pa.string()),
        ("spans", pa.list_(SPAN)),
        ("cuts", pa.list_(CUT)),
        ("dropped", pa.list_(pa.string())),
        ("names", pa.string()),  # JSON: the annotators so far
        ("costs", pa.string()),  # JSON: what steps have spent on the rows of the chunk, on one of them
        ("refusal", _REFUSAL),
    ]
)


@dataclass
class PipelineRow:
    """One row between steps: a sample or a rejection, never both; neither for a piece of work without any row."""

    chunk: int
    chunk_rows: int
    sample: Sample | None = None
    refusal: QuarantineRow | None = None
    names: dict[str, str] = field(default_factory=dict)
    costs: dict[str, Any] = field(default_factory=dict)
    """Plain values that travel with the row, whatever becomes of it."""

    def refused(self, stage: str, reason: str, message: str) -> "PipelineRow":
        """The same row, rejected by a step."""
        if self.sample is None:
            raise ValueError("only a sample can be refused")
        told = QuarantineRow(id=self.sample.id, source=self.sample.source, stage=stage, reason=reason, message=message)
        return replace(self, sample=None, refusal=told)


def carry(rows: Sequence[SourceRow], chunk: int) -> tuple[list[PipelineRow], list[Mapping[str, Any]]]:
    """What a reader gave for one piece of work: rows for the annotators, and records that need none."""
    carried: list[PipelineRow] = []
    ready: list[Mapping[str, Any]] = []
    for row in rows:
        if isinstance(row, ReadyRow):
            ready.append(row.record)
        elif isinstance(row, RejectedRow):
            carried.append(PipelineRow(chunk, len(rows), refusal=row.refusal))
        else:
            carried.append(PipelineRow(chunk, len(rows), sample=row))
    return carried, ready


def to_table(rows: Sequence[PipelineRow]) -> pa.Table:
    """Rows as an Arrow table of schema `ROWS`."""
    return pa.Table.from_pylist([_plain(row) for row in rows], schema=ROWS)


def from_table(table: pa.Table) -> list[PipelineRow]:
    """The inverse of `to_table`."""
    return [_carried(row) for row in table.to_pylist()]


def _plain(row: PipelineRow) -> dict[str, Any]:
    plain: dict[str, Any] = {"chunk": row.chunk, "chunk_rows": row.chunk_rows, "refusal": row.refusal}
    if row.costs:
        plain["costs"] = json.dumps(row.costs)
    sample = row.sample
    if sample is None:
        return plain
    return plain | {
        "id": sample.id,
        "source": sample.source,
        "encoded": sample.encoded,
        "sha256": sample.sha256,
        "hints": json.dumps(dict(sample.hints)),
        "caption": sample.caption,
        "spans": [span._asdict() for span in sample.spans],
        "cuts": [packed_cut(cut) for cut in sample.cuts],
        "dropped": sample.dropped,
        "names": json.dumps(row.names),
    }


def packed_cut(cut: EntityMask) -> dict[str, Any]:
    """A mask in the form `CUT`."""
    reference = cut.reference
    return {
        "probability": _pack(cut.probability),
        "reference": _pack(np.asarray(reference.image)) if reference else None,
        "reference_mask": _pack(reference.mask.astype(np.uint8)) if reference else None,
    }


def _pack(pixels: NDArray[np.uint8]) -> dict[str, Any]:
    # Not PNG: these masks live for seconds, and decoding an image file costs more than decompressing its pixels.
    return {"shape": pixels.shape, "data": zlib.compress(np.ascontiguousarray(pixels).tobytes(), 1)}


def _unpack(packed: Mapping[str, Any]) -> NDArray[np.uint8]:
    return np.frombuffer(zlib.decompress(packed["data"]), dtype=np.uint8).reshape(packed["shape"])


def _carried(row: Mapping[str, Any]) -> PipelineRow:
    costs = json.loads(row["costs"] or "{}")
    if row["id"] is None:
        return PipelineRow(row["chunk"], row["chunk_rows"], refusal=row["refusal"], costs=costs)
    sample = Sample(
        id=row["id"],
        source=row["source"],
        encoded=row["encoded"],
        sha256=row["sha256"],
        hints=json.loads(row["hints"]),
        caption=row["caption"],
        spans=[Span(span["text"], span["start"], span["end"]) for span in row["spans"]],
        cuts=[unpacked_cut(cut) for cut in row["cuts"]],
        dropped=list(row["dropped"]),
    )
    return PipelineRow(row["chunk"], row["chunk_rows"], sample=sample, names=json.loads(row["names"]), costs=costs)


def unpacked_cut(plain: Mapping[str, Any]) -> EntityMask:
    """The inverse of `packed_cut`."""
    probability = _unpack(plain["probability"])
    if plain["reference"] is None:
        return EntityMask(probability)
    mask = _unpack(plain["reference_mask"]) > 0
    return EntityMask(probability, Reference(Image.fromarray(_unpack(plain["reference"])), mask))
