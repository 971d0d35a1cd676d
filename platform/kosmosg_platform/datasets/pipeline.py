"""The Ray Data pipeline of a dataset build: read -> steps -> compose -> write, one block per shard.

A block is one piece of work from start to finish, and becomes one Parquet file. So the batches that a model sees and
the bytes that are written depend only on the source and the configuration, never on the number of workers or the order
in which they finish. Light steps run where their rows are; a step with a model is an actor pool. Between processes,
rows are passed as Arrow tables, so a row is converted at most three times: sample, Arrow row, record.

Every row that is read is written: as a record, or as a rejection with step, reason and message.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from kosmosg.data.annotators.apply import UNEXPECTED, apply, refusal
from kosmosg.data.annotators.base import FIELDS, Annotator, Rejection
from kosmosg.data.composition import ComposeOptions, compose
from kosmosg.data.pipeline_rows import PipelineRow, carry, from_table, to_table
from kosmosg.data.sources.base import Reader, WorkUnit
from kosmosg_platform.console import quiet_ray_data
from kosmosg_platform.datasets.dataset import write_records, write_refusals
from kosmosg_platform.datasets.steps import PipelineStep
from kosmosg_platform.storage import write_json

RECEIPTS = ".receipts"  # DEST/.receipts/part-00000.json: a description of each finished shard


@dataclass(frozen=True)
class PipelinePlan:
    """Everything that the workers need to know. Picklable."""

    folder: Path
    reader: Reader
    steps: tuple[PipelineStep, ...]
    options: ComposeOptions
    keys: Mapping[int, str]  # shard -> what its receipt must say for the shard to count as done


def run_pipeline(plan: PipelinePlan, works: Sequence[WorkUnit]) -> Iterator[dict[str, Any]]:
    """Build the shards of `works`; yields the receipt of each as soon as it is written. Needs a running Ray."""
    import ray
    from ray.data import ActorPoolStrategy

    with quiet_ray_data() as context:
        # Blocks, and therefore shards, must stay whole: never split by size, never merged with a neighbour.
        context.target_max_block_size = None
        pieces = [pa.table({"work": [json.dumps(asdict(work))]}) for work in works]
        data = ray.data.from_arrow(pieces)
        whole: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}
        light, pools = grouped(plan.steps)
        data = data.map_batches(_Read(plan.reader, light, None if pools else _Write(plan)), **whole)
        for number, (step, following) in enumerate(pools, start=1):
            data = data.map_batches(
                _Annotate,
                fn_constructor_args=(step, following, _Write(plan) if number == len(pools) else None),
                compute=ActorPoolStrategy(size=step.actors),
                num_gpus=step.gpus or None,
                **whole,
            )
        for row in data.iter_rows():
            yield json.loads(row["receipt"])


Pool = tuple[PipelineStep, tuple[PipelineStep, ...]]
"""A step with processes of its own, and the light steps that run in them behind it."""


def grouped(steps: Sequence[PipelineStep]) -> tuple[tuple[PipelineStep, ...], list[Pool]]:
    """The light steps that run where rows are read, and the pools with the light steps behind each."""
    starts = [index for index, step in enumerate(steps) if step.actors] + [len(steps)]
    pools = [(steps[start], tuple(steps[start + 1 : end])) for start, end in pairwise(starts)]
    return tuple(steps[: starts[0]]), pools


class _Read:
    """Work -> rows behind the light steps, for the first pool; or, where there is none, the receipts of its shard."""

    def __init__(self, reader: Reader, steps: Sequence[PipelineStep], write: "_Write | None") -> None:
        self.reader = reader
        self.steps = steps
        self.write = write

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        for text in block.column("work").to_pylist():
            plain = json.loads(text)
            work = WorkUnit(plain["index"], tuple(tuple(item) for item in plain["items"]))
            rows, ready = carry(list(self.reader.read(work)), work.index)
            if not rows and not ready:
                rows = [PipelineRow(work.index, 0)]  # so that an empty shard reaches its writer
            for step in self.steps:
                rows = run_step(step, step.make(), rows)
            yield to_table(rows) if self.write is None else self.write(rows, {work.index: ready})


class _Annotate:
    """A step as an actor, which creates its annotator once. The last pool also writes."""

    def __init__(self, step: PipelineStep, following: Sequence[PipelineStep], write: "_Write | None") -> None:
        self.steps = [(step, step.make()), *((light, light.make()) for light in following)]
        self.write = write

    def __call__(self, block: pa.Table) -> pa.Table:
        rows = from_table(block)
        for step, annotator in self.steps:
            rows = run_step(step, annotator, rows)
        return to_table(rows) if self.write is None else self.write(rows, {})


def run_step(step: PipelineStep, annotator: Annotator, rows: Sequence[PipelineRow]) -> list[PipelineRow]:
    """Store one step's answers in the rows; rejected rows pass through."""
    open_rows = [(row, row.sample) for row in rows if row.sample is not None]
    answers = iter(apply(annotator, [sample for _, sample in open_rows], step.batch_size))
    done: list[PipelineRow] = []
    for row in rows:
        if row.sample is None:
            done.append(row)
            continue
        answer = next(answers)
        if isinstance(answer, Rejection):
            done.append(row.refused(step.name, *answer))
            continue
        if step.fills:
            row.sample.fill(step.fills, answer)
            row.names[FIELDS[step.fills].credit] = annotator.name
        done.append(row)
    return done


class _Write:
    """Rows of whole shards -> records, Parquet, quarantine and receipt."""

    def __init__(self, plan: PipelinePlan) -> None:
        self.folder = plan.folder
        self.kind = plan.reader.kind
        self.options = plan.options
        self.keys = plan.keys

    def __call__(self, rows: Sequence[PipelineRow], ready: Mapping[int, Sequence[Mapping[str, Any]]]) -> pa.Table:
        """A table of receipts; `ready` holds the records of each shard that needed no steps."""
        shards: dict[int, list[PipelineRow]] = {shard: [] for shard in ready}
        for row in rows:
            shards.setdefault(row.shard, []).append(row)
        receipts = [self.write(shard, of, ready.get(shard, ())) for shard, of in sorted(shards.items())]
        return pa.table({"receipt": pa.array([json.dumps(receipt) for receipt in receipts], type=pa.string())})

    def write(self, shard: int, rows: Sequence[PipelineRow], ready: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Write one shard. Its receipt is written last: without one, the shard is built again."""
        count = rows[0].shard_rows if rows else len(ready)
        if count not in (len(rows) + len(ready), 0):
            raise RuntimeError(f"shard {shard} came with {len(rows)} of its {count} rows; a block was split")
        records: list[Mapping[str, Any]] = list(ready)
        refusals: list[Mapping[str, Any]] = []
        dropped: Counter[str] = Counter()
        names: dict[str, str] = {}
        for row in rows if count else ():
            made = self._record(row)
            if row.sample is not None:
                dropped.update(row.sample.dropped)
            if isinstance(made, PipelineRow):
                refusals.append(dict(made.refusal or {}))
            else:
                records.append(made)
                names = names or dict(row.names)
        if len(records) + len(refusals) != count:
            raise RuntimeError(f"shard {shard} read {count} rows, {len(records)} + {len(refusals)} came out")
        name = f"part-{shard:05d}"
        refused = None
        if refusals:
            refused = asdict(write_refusals(self.folder, f"quarantine/{name}.parquet", refusals))
        else:
            (self.folder / "quarantine" / f"{name}.parquet").unlink(missing_ok=True)
        receipt = {
            "shard": shard,
            "key": self.keys[shard],
            "rows": count,
            "data": asdict(write_records(self.folder, f"data/{name}.parquet", self.kind, records)),
            "quarantine": refused,
            "reasons": dict(sorted(Counter(f"{r['stage']}: {r['reason']}" for r in refusals).items())),
            "example": {f"{r['stage']}: {r['reason']}": r["message"] for r in reversed(refusals)},
            "dropped": dict(sorted(dropped.items())),
            "unexpected": sum(r["reason"].startswith(UNEXPECTED) for r in refusals),
            "annotators": names,
        }
        write_json(self.folder / RECEIPTS / f"{name}.json", receipt)
        return receipt

    def _record(self, row: PipelineRow) -> Mapping[str, Any] | PipelineRow:
        """The record of an annotated row, or the row as it was rejected."""
        if row.sample is None:
            return row
        try:
            made: Any = compose(row.sample, self.options, row.names)
        except Exception as error:  # noqa: BLE001 - told in the quarantine table, with its type
            made = refusal(error)
        return row.refused("compose", *made) if isinstance(made, Rejection) else made
