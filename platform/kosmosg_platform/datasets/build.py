"""Build a dataset folder from a source: missing shards are built, up-to-date ones are kept.

A shard is done when its receipt carries the key of what would be built now: listed items, reader, steps, options,
schema. So a build that was killed resumes with the chunk where it stopped, a changed setting rebuilds what depends on
it, and new photos make new shards. The manifest is removed before the first file that it names is replaced, and written
last: while only new shards are made, the dataset of before can be read.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from kosmosg.data.annotators.apply import UNEXPECTED
from kosmosg.data.composition import ComposeOptions
from kosmosg.data.records import SCHEMA_VERSION
from kosmosg.data.sources.base import Reader
from kosmosg_platform.cluster.resources import WorkerDemand, require_resources
from kosmosg_platform.config import digest
from kosmosg_platform.datasets.chunks import (
    CHUNKS,
    RECEIPTS,
    Chunk,
    bring_chunk,
    chunks_of,
    finish_shard,
    read_counts,
    write_plan,
)
from kosmosg_platform.datasets.dataset import MANIFEST
from kosmosg_platform.datasets.kept_steps import KeptAnswers, tidy_answers
from kosmosg_platform.datasets.listing import LISTING, ListedShard, write_listing
from kosmosg_platform.datasets.pipeline import PipelinePlan, run_pipeline
from kosmosg_platform.datasets.precomputed import PRECOMPUTED
from kosmosg_platform.datasets.publishing import (
    is_published,
    publish,
    published_shards,
    refuse_to_publish,
    remove_leftovers,
    total,
)
from kosmosg_platform.datasets.steps import PipelineStep
from kosmosg_platform.faults import told_in_a_sentence
from kosmosg_platform.owned_folder import MARKER, claim_folder
from kosmosg_platform.progress import Progress
from kosmosg_platform.storage import write_json
from kosmosg_platform.stores.folder_sync import FolderSync
from kosmosg_platform.stores.node_copy import bring_folder, bucket_of, drop

PIPELINE_VERSION = 2  # raise it when the same source and settings would give other records

BUILT_APART = ("data", "quarantine", CHUNKS, MANIFEST, PRECOMPUTED)
"""What of a dataset's folder is not kept the same on a node and in a store: sent and removed one by one."""

FINISHING = 8  # shards that are put together at the same time

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
    answers: KeptAnswers

    @property
    def rate(self) -> float:
        """Source rows per second in this run; 0 if there was nothing to do."""
        return self.built_rows / self.seconds if self.built_rows else 0.0


@dataclass(frozen=True)
class BuildSettings:
    """What shapes a dataset beside its source: the section `build`, checked."""

    steps: Sequence[PipelineStep] = ()
    options: ComposeOptions = field(default_factory=ComposeOptions)
    plain: Mapping[str, Any] = field(default_factory=dict)
    """All of it that shapes a record, as plain values: part of the manifest and of every key."""
    shard_rows: int = 4096
    shard_bytes: int = 256 * 2**20
    chunk_rows: int = 64
    max_refused: float = 0.5
    """Share of rows in quarantine above which nothing is published."""
    keep_answers: int = 3
    """Of how many last settings the answers of models are kept."""
    retry: str = ""
    """Stage, reason or "stage: reason": shards with such rejections are built again."""


def build(
    folder: Path,
    reader: Reader,
    settings: BuildSettings,
    limit: int | None = None,
    start_ray: Callable[[], object] = lambda: None,
    say: Say = lambda text: None,
    sync: FolderSync | None = None,
) -> BuildResult:
    """Build or finish the dataset `folder`, which must be new, empty, or written by an earlier build of this source.

    `sync` keeps the small files of a stored folder, all but `BUILT_APART`. `start_ray` is called only when something
    has to be built. Raises DataError for a bad source or model, or when too
    much was refused, ConfigError for a folder that is not ours and when the cluster lacks the GPUs that were asked for,
    and UnavailableError for a store that stays away or a disk that is full.
    """
    with told_in_a_sentence(folder):
        return _build(folder, reader, settings, limit, start_ray, say, sync)


def _build(
    folder: Path,
    reader: Reader,
    settings: BuildSettings,
    limit: int | None,
    start_ray: Callable[[], object],
    say: Say,
    sync: FolderSync | None,
) -> BuildResult:
    started = time.monotonic()
    next(reader.items(), None)  # a source that cannot be read is refused before anything is written
    folder = claim(folder, reader)
    shards = write_listing(folder, reader, settings.shard_rows, settings.shard_bytes, limit)
    keys = shard_keys(reader, settings.plain, shards)
    there = _stored_sizes(folder)
    missing = [shard for shard in shards if not _is_done(folder, shard.name, keys[shard.name], settings.retry, there)]
    kept = len(shards) - len(missing)
    built_rows = 0
    if missing:
        for step in settings.steps:
            step.require()
        start_ray()
        require_resources(*gpu_demands(settings.steps))
        if kept:
            say(f"{reader.kind}: {kept} of {len(shards)} shards are there already, {len(missing)} to build")
        if sync is not None:
            sync.once()  # the listing, which all nodes read
            bring_folder(folder, CHUNKS)  # of a build that was killed, maybe on another machine
        built_rows = _build_shards(folder, reader, settings, missing, keys)
        if sync is not None:
            sync.once()  # the receipts of other nodes
    receipts = [_receipt(folder, shard.name) for shard in shards]
    unwritten = [shard.name for shard, receipt in zip(shards, receipts, strict=True) if receipt is None]
    if unwritten:
        raise RuntimeError(f"shards {unwritten[:5]} of {folder} were not written; run the same build again")
    found = [receipt for receipt in receipts if receipt is not None]
    gone = published_shards(folder) - {shard.name for shard in shards}
    if gone:
        drop(folder / MANIFEST)  # before the files that it names are removed
    remove_leftovers(folder, {shard.name for shard in shards})
    if missing or not is_published(folder, found):
        drop(folder / MANIFEST)
        refuse_to_publish(folder, found, settings.steps, settings.max_refused)
        publish(folder, reader, settings.steps, settings.plain, found)
    answers = tidy_answers(
        folder,
        settings.steps,
        settings.keep_answers,
        partial(_contents, folder, shards, keys, settings.chunk_rows) if missing else None,
    )
    return BuildResult(
        folder=folder,
        kind=reader.kind,
        rows=sum(receipt["data"]["rows"] for receipt in found),
        refused=sum(receipt["quarantine"]["rows"] for receipt in found if receipt["quarantine"]),
        entities_left_out=total(receipt["dropped"] for receipt in found),
        reasons=total(receipt["reasons"] for receipt in found),
        built_shards=len(missing),
        kept_shards=kept,
        built_rows=built_rows,
        seconds=time.monotonic() - started,
        answers=answers,
    )


def _contents(folder: Path, shards: Sequence[ListedShard], keys: Mapping[str, str], chunk_rows: int) -> set[str]:
    """Digests of all chunks of a dataset."""
    return {chunk.content for shard in shards for chunk in chunks_of(folder, shard, keys[shard.name], chunk_rows)}


def _build_shards(
    folder: Path,
    reader: Reader,
    settings: BuildSettings,
    shards: Sequence[ListedShard],
    keys: Mapping[str, str],
) -> int:
    """Build shards, chunk by chunk; returns the rows that were built in this run."""
    import ray

    of = {shard.name: list(chunks_of(folder, shard, keys[shard.name], settings.chunk_rows)) for shard in shards}
    left = {
        name: {chunk for chunk in chunks if not _usable(folder, chunk, settings.retry)} for name, chunks in of.items()
    }
    todo = [chunk for name in of for chunk in of[name] if chunk in left[name]]
    planned = write_plan(folder, todo)
    plan = PipelinePlan(folder, reader, tuple(settings.steps), settings.options, planned, len(todo))
    task = ray.remote(num_cpus=0)(finish_shard)
    published = published_shards(folder)

    def finish(name: str) -> Any:
        if name in published:  # until a file that it names is replaced, the dataset of before can be read
            drop(folder / MANIFEST)
        return task.remote(folder, reader.kind, keys[name], of[name])

    finishing = [finish(name) for name, rest in left.items() if not rest]
    rows = refused = 0
    with Progress(reader.kind, len(todo), "chunks") as shown:
        began = time.monotonic()
        for number, chunk in enumerate(run_pipeline(plan) if todo else (), start=1):
            bring_chunk(folder, chunk)
            counts = read_counts(folder, chunk) or {"rows": 0, "refusals": []}
            rows += counts["rows"]
            refused += len(counts["refusals"])
            rate = rows / (time.monotonic() - began)
            shown.update(number, f"{rows:,} rows, {rate:,.1f} rows/s, {refused:,} refused")
            left[chunk.shard].discard(chunk)
            if not left[chunk.shard]:
                finishing.append(finish(chunk.shard))
            if len(finishing) > FINISHING:
                done, finishing = ray.wait(finishing, num_returns=1)
                ray.get(done)
    ray.get(finishing)
    return rows


def _usable(folder: Path, chunk: Chunk, retry: str) -> bool:
    """Whether an earlier build, which was killed, has finished the chunk."""
    counts = read_counts(folder, chunk)
    if counts is None:
        return False
    reasons = {f"{row['stage']}: {row['reason']}" for row in counts["refusals"]}
    return not any(UNEXPECTED in reason or _matches(reason, retry) for reason in reasons)


def _matches(reason: str, retry: str) -> bool:
    return bool(retry) and retry in (reason, *reason.split(": "))


def claim(folder: Path, reader: Reader) -> Path:
    """Claim the folder for builds of this source, which may then write and clean it. Raises ConfigError if not ours."""
    told = reader.describe()
    content = f"a dataset of {told['layout']}" + (f" {told['source']!r}" if "source" in told else "")
    if not (folder / MARKER).is_file() and _left_by_an_older_version(folder):
        write_json(folder / MARKER, {"job": "build_dataset", "content": ""})
    return claim_folder(folder, "build_dataset", content)


def _left_by_an_older_version(folder: Path) -> bool:
    """Whether the folder holds a dataset from before there were markers, and nothing else."""
    ours = {"data", "quarantine", RECEIPTS, LISTING, MANIFEST, "sheet.png"}
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    receipts = list((folder / RECEIPTS).glob("part-*.json"))
    return bool(receipts) and found <= ours


def gpu_demands(steps: Sequence[PipelineStep]) -> list[WorkerDemand]:
    """The GPUs that the steps use at the same time. With fewer CPUs than actors, Ray Data runs fewer actors."""
    return [
        WorkerDemand(
            step.actors[0],
            cpus=0.0,
            gpus=step.gpus,
            workers_key=f"build.steps.{index}.actors",
            without_gpus=f"build.steps.{index}.gpus=0",
        )
        for index, step in enumerate(steps)
        if step.gpus
    ]


def shard_keys(reader: Reader, settings: Mapping[str, Any], shards: Sequence[ListedShard]) -> dict[str, str]:
    """For every shard a hash of all that its bytes depend on."""
    common = [SCHEMA_VERSION, PIPELINE_VERSION, reader.kind, reader.describe(), settings]
    return {shard.name: digest([*common, shard.digest]) for shard in shards}


def _receipt(folder: Path, shard: str) -> dict[str, Any] | None:
    path = folder / RECEIPTS / f"{shard}.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # missing or damaged: either way the shard is built again
    return found


def _stored_sizes(folder: Path) -> dict[str, int]:
    """Bytes of the shards of a dataset in a store, by name; empty for one on a disk, which is looked at itself."""
    bucket = bucket_of(folder)
    if bucket is None:
        return {}
    return {name: found.size for part in ("data", "quarantine") for name, found in bucket.list(part).items()}


def _is_done(folder: Path, shard: str, key: str, retry: str, stored: Mapping[str, int]) -> bool:
    receipt = _receipt(folder, shard)
    if receipt is None or receipt.get("key") != key or receipt.get("unexpected"):
        # Unexpected rejections are bugs or problems of the machine (a full GPU), so these rows are retried.
        return False
    if any(_matches(reason, retry) for reason in receipt["reasons"]):
        return False
    files = [file for file in (receipt["data"], receipt["quarantine"]) if file]
    if bucket_of(folder) is not None:
        return all(stored.get(f["name"]) == f["bytes"] for f in files)
    return all((folder / f["name"]).is_file() and (folder / f["name"]).stat().st_size == f["bytes"] for f in files)
