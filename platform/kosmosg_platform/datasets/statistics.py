"""Statistics of a dataset: what the manifest counts, and the distributions of a sample of records.

    DEST/statistics.json

A dataset of nine million records is not read: a seeded choice of shards, and of row groups within each, stands for it,
and the file says how many records that were. Masks are decoded, crops are not read, and neither are images whose size
stands in the record. The same dataset and seed give the same file.
"""

import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from kosmosg.data.image_bytes import FORMATS, decode_mask
from kosmosg.data.records import record_kind
from kosmosg.errors import DataError
from kosmosg_platform.datasets.dataset import read_manifest
from kosmosg_platform.datasets.shard_files import shard_file

STATISTICS = "statistics.json"
VERSION = 1

TEXTS = ("caption", "instruction", "text")
"""Fields of records that hold words."""
BINS = 24
WORDS = 50  # of entities, the most frequent ones
PHRASES = 100_000  # different ones that are counted
ARTICLE = re.compile(r"^(a|an|the) ")
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for bytes that are no image."""


@dataclass(frozen=True)
class SampleLimits:
    """How much of a dataset is read for its statistics."""

    records: int = 8192
    """About; a dataset with fewer is read whole if it fits into `bytes`."""
    shards: int = 64
    """Shards that the records come from, at most."""
    bytes: int = 512 * 2**20
    """Of the columns that are needed, as they are stored; about."""
    seed: int = 0
    """Of the choice."""


@dataclass
class _Read:
    """What has been read for the statistics."""

    records: int = 0
    row_groups: int = 0
    shards: int = 0


def measure(folder: Path, limits: SampleLimits | None = None) -> dict[str, Any]:
    """The statistics of a finished dataset. Raises DataError when it is none, or when a shard cannot be read."""
    limits = limits or SampleLimits()
    manifest = read_manifest(folder)
    read = _Read()
    numbers: dict[str, list[float]] = {}
    phrases: Counter[str] = Counter()
    fields = record_kind(manifest["kind"]).images
    for rows in _sampled(folder, manifest, limits, read):
        for record in rows:
            for name, values in _numbers(record, fields):
                numbers.setdefault(name, []).extend(value for value in values if math.isfinite(value))
            for phrase in _phrases(record):
                if phrase in phrases or len(phrases) < PHRASES:
                    phrases[phrase] += 1
    return {
        "version": VERSION,
        "kind": manifest["kind"],
        "dataset": manifest["sha256"],
        "records": manifest["rows"],
        "shards": len(manifest["shards"]),
        "bytes": sum(shard["bytes"] for shard in manifest["shards"]),
        "counts": counts(manifest),
        "refused": manifest.get("refused", {}),
        "entities_left_out": manifest.get("entities_left_out", {}),
        "based_on": {**asdict(read), "seed": limits.seed},
        "distributions": {name: distribution(name, values) for name, values in numbers.items() if values},
        "entity_words": dict(sorted(phrases.items(), key=lambda item: (-item[1], item[0]))[:WORDS]),
    }


def counts(manifest: Mapping[str, Any]) -> dict[str, int]:
    """Rows that were read, written, filtered and quarantined; older manifests do not tell filters apart."""
    told: dict[str, int] | None = manifest.get("counts")
    if told is not None:
        return told
    refused = manifest["quarantine"]["rows"]
    return {"read": manifest["rows"] + refused, "written": manifest["rows"], "filtered": 0, "quarantined": refused}


def distribution(name: str, values: Sequence[float]) -> dict[str, Any]:
    """A histogram and a few figures of some numbers.

    Bin i holds the numbers in [edges[i], edges[i+1]), the last one also its right edge; `beyond` counts the largest
    ones, at most a hundredth, where they would leave everything else in one bin.
    """
    found = np.asarray(values, dtype=np.float64)
    edges = _edges(name, found)
    beyond = int((found > edges[-1]).sum())
    heights, _ = np.histogram(found, edges)
    return {
        "count": len(found),
        "smallest": _rounded(found.min()),
        "median": _rounded(np.median(found)),
        "mean": _rounded(found.mean()),
        "largest": _rounded(found.max()),
        "edges": [_rounded(edge) for edge in edges],
        "counts": heights.tolist(),
        "beyond": beyond,
    }


def _edges(name: str, values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    if name in ("entity_score", "entity_area") and values.min() >= 0 and values.max() <= 1:
        return np.linspace(0, 1, 21)
    low, high = float(values.min()), float(values.max())
    usual = float(np.quantile(values, 0.99))
    if high - low > 3 * (usual - low) > 0:
        high = usual
    if (values == np.round(values)).all():
        width = max(1, math.ceil((math.floor(high) - low + 1) / BINS))
        bins = math.ceil((math.floor(high) - low + 1) / width)
        return low + width * np.arange(bins + 1, dtype=np.float64)
    return np.linspace(low, high, BINS + 1) if high > low else np.asarray([low - 0.5, low + 0.5])


def _rounded(value: Any) -> float | int:
    number = float(f"{float(value):.6g}")
    return int(number) if number.is_integer() else number


def _sampled(
    folder: Path, manifest: Mapping[str, Any], limits: SampleLimits, read: _Read
) -> Iterator[list[dict[str, Any]]]:
    """Rows of chosen row groups, one group at a time, with the fields that are measured."""
    random = Random(limits.seed)
    shards = [shard for shard in manifest["shards"] if shard["rows"]]
    whole = sum(shard["rows"] for shard in shards) <= limits.records
    chosen = sorted(random.sample(range(len(shards)), min(len(shards), limits.shards)))
    for number in chosen:
        path = shard_file(folder, shards[number])
        rows_left = math.inf if whole else math.ceil(limits.records / len(chosen))
        bytes_left = limits.bytes / len(chosen)
        try:
            with pq.ParquetFile(path) as file:
                leaves = _leaves(file.schema, record_kind(manifest["kind"]).schema)
                groups = list(range(file.metadata.num_row_groups))
                random.shuffle(groups)
                read.shards += 1
                for group in groups:
                    if rows_left <= 0 or bytes_left <= 0:
                        break
                    held = file.metadata.row_group(group)
                    rows_left -= held.num_rows
                    bytes_left -= sum(held.column(leaf).total_compressed_size for leaf in leaves)
                    names = [file.schema.column(leaf).path for leaf in leaves]
                    rows = file.read_row_group(group, columns=names, use_threads=False)
                    read.records += held.num_rows
                    read.row_groups += 1
                    for batch in rows.to_batches(max_chunksize=64):
                        yield batch.to_pylist()
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"shard {path} cannot be read ({error}); run the same build again to mend it") from error


def _leaves(stored: Any, form: pa.Schema) -> list[int]:
    """The columns, as Parquet counts them, that are measured."""
    wanted = {*TEXTS, "width", "height", "parts"}
    if "width" not in form.names:
        wanted |= {name for name in form.names if pa.types.is_binary(form.field(name).type)}
    inner = {"text", "box", "mask", "score"}
    found = []
    for leaf in range(len(stored)):
        path = stored.column(leaf).path.split(".")
        if path[0] in wanted or (path[0] == "entities" and inner & set(path)):
            found.append(leaf)
    return found


def _numbers(record: Mapping[str, Any], images: Sequence[str]) -> Iterator[tuple[str, list[float]]]:
    """Names of distributions, and what a record adds to each."""
    sizes = list(_sizes(record, images))
    yield "image_width", [float(width) for width, _ in sizes]
    yield "image_height", [float(height) for _, height in sizes]
    yield "image_aspect", [width / height for width, height in sizes]
    for name in TEXTS:
        if record.get(name) is not None:
            yield f"{name}_words", [float(len(record[name].split()))]
    if "parts" in record:
        yield "text_words", [float(sum(len((part["text"] or "").split()) for part in record["parts"]))]
        yield "images", [float(sum(part["image"] is not None for part in record["parts"]))]
    if "entities" in record:
        entities = record["entities"]
        yield "entities", [float(len(entities))]
        yield "entity_score", [float(entity["score"]) for entity in entities]
        yield "entity_area", list(_areas(record))


def _sizes(record: Mapping[str, Any], images: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Width and height of every image, from the record where they stand there, else from the image's header."""
    if record.get("width") and record.get("height"):
        yield record["width"], record["height"]
        return
    encoded = [record.get(name) for name in images] + [part["image"] for part in record.get("parts", ())]
    for data in encoded:
        if data:
            try:
                with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                    yield image.size
            except UNREADABLE:
                continue  # training will say so; here it has no size to count


def _areas(record: Mapping[str, Any]) -> Iterator[float]:
    """The part of the image that each entity covers: the mask's share of its box, and the box's of the image."""
    pixels = (record.get("width") or 0) * (record.get("height") or 0)
    for entity in record["entities"]:
        left, top, right, bottom = entity["box"]
        try:
            share = float(decode_mask(entity["mask"]).mean())
        except UNREADABLE:
            continue
        if pixels:
            yield share * (right - left) * (bottom - top) / pixels


def _phrases(record: Mapping[str, Any]) -> Iterable[str]:
    """What its entities are called, without article and capitals."""
    for entity in record.get("entities") or ():
        yield ARTICLE.sub("", " ".join(entity["text"].casefold().split()))
