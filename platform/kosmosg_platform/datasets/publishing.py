"""What the receipts of a build become: a manifest, unless too little is left; and what earlier builds left, removed.

The manifest is written last. Until a file that it names is replaced, the dataset of before can be read.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kosmosg.data.annotators.apply import UNEXPECTED
from kosmosg.data.sources.base import Reader
from kosmosg.errors import DataError
from kosmosg_platform.datasets.chunks import CHUNKS, RECEIPTS
from kosmosg_platform.datasets.dataset import Shard, read_manifest, write_manifest
from kosmosg_platform.datasets.steps import PipelineStep
from kosmosg_platform.stores.node_copy import bucket_of, drop

SHARD_FILE = re.compile(r"(?P<partial>\.)?(?P<name>part-\d{5,})\.(?:parquet|json)(?:\.[\w.-]+)?")
SCORES = "scores"  # the stage of rows outside of a threshold on the metadata of their source


def published_shards(folder: Path) -> set[str]:
    """The shards that the manifest of an earlier build names; none where there is no manifest."""
    try:
        return {Path(shard["name"]).stem for shard in read_manifest(folder)["shards"]}
    except DataError:
        return set()


def is_published(folder: Path, receipts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the manifest names these very shards: it names fewer after new ones were built and not published."""
    try:
        manifest = read_manifest(folder)
    except DataError:
        return False
    told = (manifest["shards"], manifest["quarantine"]["shards"])
    return told == (
        [each["data"] for each in receipts],
        [each["quarantine"] for each in receipts if each["quarantine"]],
    )


def refuse_to_publish(
    folder: Path, receipts: Sequence[Mapping[str, Any]], steps: Sequence[PipelineStep], max_refused: float
) -> None:
    """Raise DataError when nothing, or too little, is left. What filters reject was meant to go, and does not count."""
    rows = sum(receipt["rows"] for receipt in receipts)
    reasons = total(receipt["reasons"] for receipt in receipts)
    faults = {reason: count for reason, count in reasons.items() if not _by_a_filter(reason, steps)}
    faulty, rejected = sum(faults.values()), sum(reasons.values())
    if rows and faulty <= max_refused * rows and rejected < rows:
        return
    if not rows:
        raise DataError(f"the source of {folder} has no rows; nothing is published")
    told = faults if faulty > max_refused * rows else reasons
    reason, count = max(told.items(), key=lambda item: item[1])
    example = next(receipt["example"][reason] for receipt in receipts if reason in receipt["example"])
    fault = "; this looks like a bug or a problem of the machine" if UNEXPECTED in reason else ""
    limit = f", more than build.max_refused={max_refused:g} allows" if told is faults else ", so no row is left"
    raise DataError(
        f"{sum(told.values()):,} of {rows:,} rows were refused{limit}; most often ({count:,} times) for {reason!r}, "
        f"such as: {example}{fault}. All are listed in {folder / 'quarantine'}"
    )


def _by_a_filter(reason: str, steps: Sequence[PipelineStep]) -> bool:
    """Whether a reason ("stage: reason") is a filter's, or that of a threshold on the source's own scores."""
    return reason.partition(": ")[0] in {SCORES, *(step.name for step in steps if not step.fills)}


def publish(
    folder: Path,
    reader: Reader,
    steps: Sequence[PipelineStep],
    plain: Mapping[str, Any],
    receipts: Sequence[Mapping[str, Any]],
) -> None:
    annotators: dict[str, str] = {}
    for receipt in receipts:
        annotators |= receipt["annotators"]
    refused = total(receipt["reasons"] for receipt in receipts)
    filtered = sum(count for reason, count in refused.items() if _by_a_filter(reason, steps))
    written = sum(receipt["data"]["rows"] for receipt in receipts)
    write_manifest(
        folder,
        reader.kind,
        [Shard(**receipt["data"]) for receipt in receipts],
        [Shard(**receipt["quarantine"]) for receipt in receipts if receipt["quarantine"]],
        config=plain,
        annotators=annotators,
        source=reader.describe(),
        extra={
            "counts": {
                "read": sum(receipt["rows"] for receipt in receipts),
                "written": written,
                "filtered": filtered,
                "quarantined": sum(refused.values()) - filtered,
            },
            "refused": refused,
            "entities_left_out": total(receipt["dropped"] for receipt in receipts),
        },
    )


def remove_leftovers(folder: Path, shards: set[str]) -> None:
    """Files of shards that the source no longer has, and of writers that were killed; files of other names stay."""
    bucket = bucket_of(folder)
    for part in ("data", "quarantine", RECEIPTS):
        found = {path.name for path in (folder / part).glob("*part-*")}
        if bucket is not None:
            found |= {name.rpartition("/")[2] for name in bucket.list(part)}
        for name in sorted(found):
            shard = SHARD_FILE.fullmatch(name)
            if shard and (shard["partial"] or shard["name"] not in shards):
                drop(folder / part / name)
    if (folder / CHUNKS).is_dir():
        drop(folder / CHUNKS)


def total(counts: Any) -> dict[str, int]:
    summed: Counter[str] = Counter()
    for count in counts:
        summed.update(count)
    return dict(sorted(summed.items()))
