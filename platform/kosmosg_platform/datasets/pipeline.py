"""The Ray Data graph of a dataset build: read -> caption -> entities -> masks -> compose -> write, one block a shard.

A block is one piece of work from beginning to end, and becomes one Parquet file. So batches that a model sees, and the
bytes that are written, depend on the source and the configuration, never on how many workers there are or in which
order they finish. Light stages are tasks, which Ray fuses into one; a stage with a model is a pool of actors.

Every row that is read is written: as a record, or as a refusal with stage, reason and message.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from kosmosg.data.annotators.apply import UNEXPECTED, apply, refusal
from kosmosg.data.annotators.base import Annotator, Rejection
from kosmosg.data.annotators.table import PipelineRow, carry, from_table, to_table
from kosmosg.data.composition import ComposeOptions, compose
from kosmosg.data.records import QUARANTINE, schema
from kosmosg.data.sources.base import Reader, SourceRow, WorkUnit
from kosmosg_platform.console import quiet_ray_data
from kosmosg_platform.datasets.dataset import write_records, write_refusals
from kosmosg_platform.storage import write_json

RECEIPTS = ".receipts"  # DEST/.receipts/part-00000.json: what is known of a finished shard


@dataclass(frozen=True)
class AnnotationStep:
    """One annotator in the graph. `make` builds it in the worker, so weights are loaded where they are used."""

    name: str  # caption, entities, masks
    role: str  # captioner, entity_finder, segmenter: the field of the record that names it
    make: Callable[[], Annotator]
    batch_size: int  # samples that the annotator sees at once
    actors: int = 0  # 0: light enough to be made anew for every block
    gpus: float = 0.0  # per actor
    model: str | None = None  # hub id or folder of its weights


@dataclass(frozen=True)
class PipelinePlan:
    """Everything that the workers need to know. Picklable."""

    folder: Path
    reader: Reader
    stages: tuple[AnnotationStep, ...]
    options: ComposeOptions
    keys: Mapping[int, str]  # shard -> what its receipt must say for it to be taken as done


def run_pipeline(plan: PipelinePlan, works: Sequence[WorkUnit]) -> Iterator[dict[str, Any]]:
    """Build the shards of `works`; yields the receipt of each as soon as it is written. Needs a running Ray."""
    import ray
    from ray.data import ActorPoolStrategy

    with quiet_ray_data() as context:
        # A block must stay whole (and so a shard): never split by size, never merged with its neighbour.
        context.target_max_block_size = None
        pieces = [pa.table({"work": [json.dumps(asdict(work))]}) for work in works]
        data = ray.data.from_arrow(pieces)
        whole: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}
        data = data.map_batches(_Read(plan.reader), **whole)
        for stage in plan.stages:
            if stage.actors:
                data = data.map_batches(
                    _Annotate,
                    fn_constructor_args=(stage,),
                    compute=ActorPoolStrategy(size=stage.actors),
                    num_gpus=stage.gpus or None,
                    **whole,
                )
            else:
                data = data.map_batches(_annotate_in_task(stage), **whole)
        if plan.reader.annotated:
            data = data.map_batches(_Compose(plan.reader.kind, plan.options), **whole)
        data = data.map_batches(_Write(plan), **whole)
        for row in data.iter_rows():
            yield json.loads(row["receipt"])


class _Read:
    """Work -> rows for the annotators, or finished rows where none are needed."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        for text in block.column("work").to_pylist():
            plain = json.loads(text)
            work = WorkUnit(plain["index"], tuple(tuple(item) for item in plain["items"]))
            rows: list[SourceRow] = list(self.reader.read(work))
            carried, ready = carry(rows, work.index)
            if not rows:
                carried = [PipelineRow(work.index, 0)]  # so that the empty shard reaches its writer
            if self.reader.annotated:
                yield to_table(carried)
            else:
                done = [_outcome(work.index, len(rows), record=record) for record in ready]
                yield _outcomes(self.reader.kind, done + [_passed_on(row) for row in carried])


def annotate(stage: AnnotationStep, annotator: Annotator, rows: Sequence[PipelineRow]) -> list[PipelineRow]:
    """Put one annotator's answers into the rows; refused rows pass through."""
    open_rows = [(row, row.sample) for row in rows if row.sample is not None]
    answers = iter(apply(annotator, [sample for _, sample in open_rows], stage.batch_size))
    done: list[PipelineRow] = []
    for row in rows:
        if row.sample is None:
            done.append(row)
            continue
        answer = next(answers)
        if isinstance(answer, Rejection):
            done.append(row.refused(stage.name, *answer))
            continue
        if stage.name == "caption":
            row.sample.caption = answer
        elif stage.name == "entities":
            row.sample.spans = answer.spans
            row.sample.dropped += [dropped.reason for dropped in answer.dropped]
        else:
            row.sample.cuts = answer
        row.names[stage.role] = annotator.name
        done.append(row)
    return done


class _Annotate:
    """A stage as an actor: the annotator is built once and kept."""

    def __init__(self, stage: AnnotationStep) -> None:
        self.stage = stage
        self.annotator = stage.make()

    def __call__(self, block: pa.Table) -> pa.Table:
        return to_table(annotate(self.stage, self.annotator, from_table(block)))


def _annotate_in_task(stage: AnnotationStep) -> Callable[[pa.Table], pa.Table]:
    def run(block: pa.Table) -> pa.Table:
        return to_table(annotate(stage, stage.make(), from_table(block)))

    run.__name__ = stage.name
    return run


class _Compose:
    """Annotated rows -> records."""

    def __init__(self, kind: str, options: ComposeOptions) -> None:
        self.kind = kind
        self.options = options

    def __call__(self, block: pa.Table) -> pa.Table:
        return _outcomes(self.kind, [self._one(row) for row in from_table(block)])

    def _one(self, row: PipelineRow) -> dict[str, Any]:
        if row.sample is None:
            return _passed_on(row)
        try:
            made = compose(row.sample, self.options, row.names)
        except Exception as error:  # noqa: BLE001 - told in the quarantine table, with its type
            made = refusal(error)
        dropped = row.sample.dropped
        if isinstance(made, Rejection):
            return _passed_on(row.refused("compose", *made)) | {"dropped": dropped}
        names = json.dumps(row.names)
        return _outcome(row.shard, row.shard_rows, record=made, dropped=dropped, names=names)


class _Write:
    """Finished rows of whole shards -> Parquet, quarantine and receipt."""

    def __init__(self, plan: PipelinePlan) -> None:
        self.folder = plan.folder
        self.kind = plan.reader.kind
        self.keys = plan.keys

    def __call__(self, block: pa.Table) -> pa.Table:
        rows_of: dict[int, list[dict[str, Any]]] = {}
        for row in block.to_pylist():
            rows_of.setdefault(row["shard"], []).append(row)
        receipts = [self.write(shard, rows) for shard, rows in sorted(rows_of.items())]
        return pa.table({"receipt": pa.array([json.dumps(receipt) for receipt in receipts], type=pa.string())})

    def write(self, shard: int, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Write one shard. Its receipt comes last: without one the shard is built again."""
        count = int(rows[0]["shard_rows"])
        if count not in (len(rows), 0):
            raise RuntimeError(f"shard {shard} came with {len(rows)} of its {count} rows; a block was split")
        records = [row["record"] for row in rows if row["record"] is not None]
        refusals = [row["refusal"] for row in rows if row["refusal"] is not None]
        if len(records) + len(refusals) != count:
            raise RuntimeError(f"shard {shard} read {count} rows, {len(records)} + {len(refusals)} came out")
        name = f"part-{shard:05d}"
        quarantine = self.folder / "quarantine" / f"{name}.parquet"
        refused = None
        if refusals:
            refused = asdict(write_refusals(self.folder, f"quarantine/{name}.parquet", refusals))
        else:
            quarantine.unlink(missing_ok=True)
        receipt = {
            "shard": shard,
            "key": self.keys[shard],
            "rows": count,
            "data": asdict(write_records(self.folder, f"data/{name}.parquet", self.kind, records)),
            "quarantine": refused,
            "reasons": dict(sorted(Counter(f"{r['stage']}: {r['reason']}" for r in refusals).items())),
            "example": {f"{r['stage']}: {r['reason']}": r["message"] for r in reversed(refusals)},
            "dropped": dict(sorted(Counter(reason for row in rows for reason in row["dropped"] or ()).items())),
            "unexpected": sum(r["reason"].startswith(UNEXPECTED) for r in refusals),
            "annotators": next((json.loads(row["names"]) for row in rows if row["names"]), {}),
        }
        write_json(self.folder / RECEIPTS / f"{name}.json", receipt)
        return receipt


def _outcomes(kind: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    form = pa.schema(
        [
            ("shard", pa.int32()),
            ("shard_rows", pa.int32()),
            ("record", pa.struct(list(schema(kind)))),
            ("refusal", pa.struct(list(QUARANTINE))),
            ("dropped", pa.list_(pa.string())),
            ("names", pa.string()),
        ]
    )
    return pa.Table.from_pylist(list(rows), schema=form)


def _outcome(
    shard: int,
    shard_rows: int,
    record: Mapping[str, Any] | None = None,
    refusal: Mapping[str, Any] | None = None,
    dropped: Sequence[str] = (),
    names: str | None = None,
) -> dict[str, Any]:
    return {
        "shard": shard,
        "shard_rows": shard_rows,
        "record": record,
        "refusal": refusal,
        "dropped": list(dropped),
        "names": names,
    }


def _passed_on(row: PipelineRow) -> dict[str, Any]:
    return _outcome(row.shard, row.shard_rows, refusal=row.refusal)
