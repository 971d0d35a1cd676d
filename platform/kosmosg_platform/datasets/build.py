"""Build a dataset folder from a source: missing shards are built, up-to-date ones are kept.

A shard is done if its receipt has the key of what would be built now: source piece, reader, annotators, options,
schema. An interrupted build therefore resumes where it stopped, a changed setting rebuilds everything, and a new photo
rebuilds one shard. The manifest is removed before the first change and written last.
"""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kosmosg.data.annotators.apply import UNEXPECTED
from kosmosg.data.composition import ComposeOptions
from kosmosg.data.records import SCHEMA_VERSION
from kosmosg.data.sources.base import Reader, WorkUnit
from kosmosg.errors import DataError
from kosmosg_platform.cluster.resources import WorkerDemand, require_resources
from kosmosg_platform.config import digest
from kosmosg_platform.datasets.dataset import MANIFEST, Shard, write_manifest
from kosmosg_platform.datasets.pipeline import RECEIPTS, PipelinePlan, run_pipeline
from kosmosg_platform.datasets.steps import PipelineStep
from kosmosg_platform.owned_folder import MARKER, claim_folder
from kosmosg_platform.progress import Progress
from kosmosg_platform.storage import write_json

SHARD_FILE = re.compile(r"(?P<partial>\.)?(?P<name>part-\d{5,})\.(?:parquet|json)(?:\.[\w.-]+)?")
PIPELINE_VERSION = 1  # increase it if the same source and settings would give different records

Say = Callable[[str], None]


@dataclass(frozen=True)
class BuildResult:
    """What a build did, and what the dataset now contains."""

    folder: Path
    kind: str
    rows: int  # records in the dataset
    refused: int  # rows in quarantine
    entities_left_out: Mapping[str, int]  # reason -> count
    reasons: Mapping[str, int]  # "stage: reason" -> count
    built_shards: int  # in this run
    kept_shards: int  # from earlier runs
    built_rows: int  # source rows that this run processed
    seconds: float

    @property
    def rate(self) -> float:
        """Source rows per second in this run; 0 if there was nothing to do."""
        return self.built_rows / self.seconds if self.built_rows else 0.0


def build(
    folder: Path,
    reader: Reader,
    steps: Sequence[PipelineStep],
    options: ComposeOptions,
    settings: Mapping[str, Any],
    limit: int | None = None,
    max_refused: float = 0.5,
    start_ray: Callable[[], None] = lambda: None,
    say: Say = print,
) -> BuildResult:
    """Build or finish the dataset `folder`, which must be new, empty, or written by an earlier build of this source.

    `settings` is everything that affects a record, as plain values: it goes into the manifest and into every key.
    `start_ray` is called only if something has to be built. `max_refused` is the share of rows in quarantine above
    which nothing is published. Raises DataError for an invalid source or model, or if too many rows were rejected, and
    ConfigError for a folder that is not ours, or if the cluster lacks the requested GPUs.
    """
    started = time.monotonic()
    works = reader.plan(limit)
    folder = claim(folder, reader)
    keys = shard_keys(reader, settings, works)
    missing = [work for work in works if not _is_done(folder, work.index, keys[work.index])]
    kept = len(works) - len(missing)
    built_rows = 0
    if missing:
        for step in steps:
            if step.model is not None:
                from kosmosg.data.annotators.pretrained import require_model  # imports torch and transformers

                require_model(step.model)
        start_ray()
        require_resources(*gpu_demands(steps))
        (folder / MANIFEST).unlink(missing_ok=True)
        if kept:
            say(f"{reader.kind}: {kept} of {len(works)} shards are there already, {len(missing)} to build")
        plan = PipelinePlan(folder, reader, tuple(steps), options, keys)
        refused = 0
        with Progress(reader.kind, len(missing), "shards") as shown:
            began = time.monotonic()
            for number, receipt in enumerate(run_pipeline(plan, missing), start=1):
                built_rows += receipt["rows"]
                refused += sum(receipt["reasons"].values())
                rate = built_rows / (time.monotonic() - began)
                shown.update(number, f"{built_rows:,} rows, {rate:,.1f} rows/s, {refused:,} refused")
    receipts = [_receipt(folder, work.index) for work in works]
    unwritten = [work.index for work, receipt in zip(works, receipts, strict=True) if receipt is None]
    if unwritten:
        raise RuntimeError(f"shards {unwritten[:5]} of {folder} were not written; run the same build again")
    found = [receipt for receipt in receipts if receipt is not None]
    _remove_leftovers(folder, {work.index for work in works})
    if missing or not (folder / MANIFEST).is_file():
        _refuse_to_publish(folder, found, max_refused)
        _publish(folder, reader, settings, found)
    return BuildResult(
        folder=folder,
        kind=reader.kind,
        rows=sum(receipt["data"]["rows"] for receipt in found),
        refused=sum(receipt["quarantine"]["rows"] for receipt in found if receipt["quarantine"]),
        entities_left_out=_sum(receipt["dropped"] for receipt in found),
        reasons=_sum(receipt["reasons"] for receipt in found),
        built_shards=len(missing),
        kept_shards=kept,
        built_rows=built_rows,
        seconds=time.monotonic() - started,
    )


def claim(folder: Path, reader: Reader) -> Path:
    """Claim the folder for builds of this source, which may then write and clean it. Raises ConfigError if not ours."""
    told = reader.describe()
    content = f"a dataset of {told['layout']}" + (f" {told['source']!r}" if "source" in told else "")
    if not (folder / MARKER).is_file() and _left_by_an_older_version(folder):
        write_json(folder / MARKER, {"job": "build_dataset", "content": ""})
    return claim_folder(folder, "build_dataset", content)


def _left_by_an_older_version(folder: Path) -> bool:
    """Whether the folder contains a dataset from before there were markers, and nothing else."""
    ours = {"data", "quarantine", RECEIPTS, MANIFEST, "sheet.png"}
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    receipts = list((folder / RECEIPTS).glob("part-*.json"))
    return bool(receipts) and found <= ours


def gpu_demands(steps: Sequence[PipelineStep]) -> list[WorkerDemand]:
    """The GPUs that the steps use at the same time. With fewer CPUs than actors, Ray Data runs fewer actors."""
    return [
        WorkerDemand(
            step.actors,
            cpus=0.0,
            gpus=step.gpus,
            workers_key=f"build.steps.{index}.actors",
            without_gpus=f"build.steps.{index}.gpus=0",
        )
        for index, step in enumerate(steps)
        if step.gpus
    ]


def shard_keys(reader: Reader, settings: Mapping[str, Any], works: Sequence[WorkUnit]) -> dict[int, str]:
    """For every shard, a hash of everything that its bytes depend on."""
    common = [SCHEMA_VERSION, PIPELINE_VERSION, reader.kind, reader.describe(), settings]
    return {work.index: digest([*common, work.digest()]) for work in works}


def _receipt(folder: Path, shard: int) -> dict[str, Any] | None:
    path = folder / RECEIPTS / f"part-{shard:05d}.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # missing or damaged: either way the shard is built again
    return found


def _is_done(folder: Path, shard: int, key: str) -> bool:
    receipt = _receipt(folder, shard)
    if receipt is None or receipt.get("key") != key or receipt.get("unexpected"):
        # Unexpected rejections are bugs or problems of the machine (a full GPU), so these rows are retried.
        return False
    files = [file for file in (receipt["data"], receipt["quarantine"]) if file]
    return all((folder / f["name"]).is_file() and (folder / f["name"]).stat().st_size == f["bytes"] for f in files)


def _refuse_to_publish(folder: Path, receipts: Sequence[Mapping[str, Any]], max_refused: float) -> None:
    rows = sum(receipt["rows"] for receipt in receipts)
    reasons = _sum(receipt["reasons"] for receipt in receipts)
    refused = sum(reasons.values())
    if rows and refused <= max_refused * rows and refused < rows:
        return
    if not rows:
        raise DataError(f"the source of {folder} has no rows; nothing is published")
    reason, count = max(reasons.items(), key=lambda item: item[1])
    example = next(receipt["example"][reason] for receipt in receipts if reason in receipt["example"])
    fault = "; this looks like a bug or a problem of the machine" if UNEXPECTED in reason else ""
    raise DataError(
        f"{refused:,} of {rows:,} rows were refused, more than build.max_refused={max_refused:g} allows; most often "
        f"({count:,} times) for {reason!r}, such as: {example}{fault}. All are listed in {folder / 'quarantine'}"
    )


def _publish(folder: Path, reader: Reader, settings: Mapping[str, Any], receipts: Sequence[Mapping[str, Any]]) -> None:
    annotators: dict[str, str] = {}
    for receipt in receipts:
        annotators |= receipt["annotators"]
    write_manifest(
        folder,
        reader.kind,
        [Shard(**receipt["data"]) for receipt in receipts],
        [Shard(**receipt["quarantine"]) for receipt in receipts if receipt["quarantine"]],
        config=settings,
        annotators=annotators,
        source=reader.describe(),
        extra={
            "refused": _sum(receipt["reasons"] for receipt in receipts),
            "entities_left_out": _sum(receipt["dropped"] for receipt in receipts),
        },
    )


def _remove_leftovers(folder: Path, shards: set[int]) -> None:
    """Remove files of shards that the source no longer has, and of killed writers; files with other names stay."""
    keep = {f"part-{shard:05d}" for shard in shards}
    for part in ("data", "quarantine", RECEIPTS):
        for path in (folder / part).glob("*part-*"):
            shard = SHARD_FILE.fullmatch(path.name)
            if shard and (shard["partial"] or shard["name"] not in keep):
                path.unlink(missing_ok=True)


def _sum(counts: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))
