"""The Ray Data pipeline of a dataset build: read -> steps -> compose -> write, one block a chunk.

A chunk is a few dozen rows of a shard's listing: as many as a model wants to see, few enough that many are under way
and that little is lost when a machine dies. What a chunk becomes depends on the listing and the configuration, never on
how many workers there are or in which order they finish. Light steps run where their rows are; a step with a model is a
pool of actors. Between processes rows travel as Arrow tables, so a row changes its form three times at most on its way:
sample, Arrow row, record.

Every row that is read is written: as a record, or as a rejection with step, reason and message.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from math import floor
from pathlib import Path
from typing import Any

import pyarrow as pa

from kosmosg.data.annotators.apply import refusal
from kosmosg.data.annotators.base import Rejection
from kosmosg.data.composition import ComposeOptions, compose
from kosmosg.data.pipeline_rows import PipelineRow, carry, from_table, to_table
from kosmosg.data.sources.base import Item, Reader, SourceRow, rejected
from kosmosg.errors import DataError
from kosmosg_platform.console import quiet_ray_data
from kosmosg_platform.datasets.answers import StepRunner
from kosmosg_platform.datasets.chunks import Chunk, read_plan, write_chunk
from kosmosg_platform.datasets.listing import listing_file, read_items
from kosmosg_platform.datasets.spent import COMPOSE, READ, Costs, Spent, plain_costs, read_costs, timed, total
from kosmosg_platform.datasets.steps import PipelineStep
from kosmosg_platform.stores.node_copy import bring

Ready = tuple[Sequence[Mapping[str, Any]], Mapping[str, Spent]]
"""Records of a chunk that needed no steps, and what reading it has cost."""


@dataclass(frozen=True)
class PipelinePlan:
    """Everything that the workers need to know. Picklable."""

    folder: Path
    reader: Reader
    steps: tuple[PipelineStep, ...]
    options: ComposeOptions
    planned: str
    """File of `write_plan`."""
    count: int
    """Chunks in it."""

    def chunk(self, number: int) -> Chunk:
        """A chunk by its number."""
        return read_plan(self.folder, self.planned)[number]


def run_pipeline(plan: PipelinePlan) -> Iterator[Chunk]:
    """Build the chunks of a plan; yields each as soon as it is written. Needs a running Ray."""
    import ray
    from ray.data import ActorPoolStrategy

    with quiet_ray_data() as context:
        # A block must stay whole (and so a chunk): never split by size, never merged with its neighbour.
        context.target_max_block_size = None
        data = ray.data.range(plan.count, override_num_blocks=plan.count)
        whole: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}
        light, pools = grouped(plan.steps)
        shares = cpu_shares([step for step, _ in pools], ray.cluster_resources().get("CPU", 1.0))
        data = data.map_batches(_Read(plan, light, writes=not pools), num_cpus=1, **whole)
        for number, (step, following) in enumerate(pools, start=1):
            data = data.map_batches(
                _Annotate,
                fn_constructor_args=(plan, step, following, number == len(pools)),
                compute=ActorPoolStrategy(min_size=step.actors[0], max_size=step.actors[1]),
                num_cpus=shares[number - 1],
                num_gpus=step.gpus or None,
                memory=step.memory or None,
                **whole,
            )
        for row in data.iter_rows():
            yield plan.chunk(row["chunk"])


def cpu_shares(steps: Sequence[PipelineStep], total: float) -> list[float]:
    """CPUs of each actor of each pool: as declared, or less where a cluster of `total` CPUs could not hold them all.

    Reading needs a CPU beside the pools. Without one nothing would ever come to them, and they never end. Never 1, as
    reading takes: Ray joins steps of equal demands, and an actor would then read as well, one block after the other.
    """
    wanted = sum(step.actors[0] * step.cpus for step in steps)
    room = max(total - 1, total / 2)
    share = min(1.0, room / wanted) if wanted else 1.0
    shares = [floor(step.cpus * share * 100) / 100 for step in steps]
    return [0.99 if each == 1 else each for each in shares]


Pool = tuple[PipelineStep, tuple[PipelineStep, ...]]
"""A step with processes of its own, and the light steps that run in them behind it."""


def grouped(steps: Sequence[PipelineStep]) -> tuple[tuple[PipelineStep, ...], list[Pool]]:
    """The light steps that run where rows are read, and the pools with the light steps behind each."""
    starts = [index for index, step in enumerate(steps) if step.actors[1]] + [len(steps)]
    pools = [(steps[start], tuple(steps[start + 1 : end])) for start, end in pairwise(starts)]
    return tuple(steps[: starts[0]]), pools


class _Read:
    """Chunk numbers -> rows behind the light steps for the first pool; or, where there is none, what was written."""

    def __init__(self, plan: PipelinePlan, steps: Sequence[PipelineStep], writes: bool) -> None:
        self.plan = plan
        self.steps = steps
        self.write = _Write(plan) if writes else None

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        for number in block.column("id").to_pylist():
            chunk = self.plan.chunk(number)
            costs: Costs = {}
            with timed(costs, READ, 0) as spent:
                rows, ready = carry(list(self.read(chunk)), number)
                spent.reached = spent.rows = len(rows) + len(ready)
            if ready and self.plan.reader.annotated:
                raise DataError(
                    f"source: {ready[0].get('id')!r} came as a finished record from a reader that gives samples for "
                    "annotators; a reader gives one or the other, and says so in `annotated`"
                )
            if not rows and not ready:
                rows = [PipelineRow(number, 0)]  # so that the empty chunk reaches its writer
            rows[:1] = [replace(row, costs=plain_costs(costs)) for row in rows[:1]]
            for step in self.steps:
                rows = StepRunner(self.plan.folder, step).run(rows, chunk)
            yield to_table(rows) if self.write is None else self.write(rows, {number: (ready, costs)})

    def read(self, chunk: Chunk) -> Iterator[SourceRow]:
        """The rows of a chunk; of items with the same key the first of the shard is taken, the others are told."""
        _bring_listing(self.plan.folder, chunk.shard, self.plan.planned)
        before = min(chunk.first, 1)  # the item in front of the chunk as well: equal keys stand side by side
        items = read_items(self.plan.folder, chunk.shard, chunk.first - before, chunk.items + before)
        previous = items[0].key if before else None
        held: list[Item] = []
        for item in items[before:]:
            if item.key != previous:
                held.append(item)
                previous = item.key
                continue
            yield from self.plan.reader.read(held)
            held = []
            yield rejected(item.key, item.place, "duplicate", f"{item.key} is in the source twice; one is taken")
        yield from self.plan.reader.read(held)


@lru_cache(maxsize=1024)
def _bring_listing(folder: Path, shard: str, planned: str) -> None:
    """Have a shard's listing on this node as it is for this plan; a node may have that of an earlier one."""
    bring(listing_file(folder, shard))


class _Annotate:
    """A step as an actor, which creates its annotator once. The last pool also writes."""

    def __init__(self, plan: PipelinePlan, step: PipelineStep, following: Sequence[PipelineStep], writes: bool) -> None:
        self.plan = plan
        self.runners = [StepRunner(plan.folder, each) for each in (step, *following)]
        self.write = _Write(plan) if writes else None

    def __call__(self, block: pa.Table) -> pa.Table:
        rows = from_table(block)
        chunk = self.plan.chunk(rows[0].chunk)
        for runner in self.runners:
            rows = runner.run(rows, chunk)
        return to_table(rows) if self.write is None else self.write(rows, {})


class _Write:
    """Rows of whole chunks -> records and rejections on disk."""

    def __init__(self, plan: PipelinePlan) -> None:
        self.plan = plan

    def __call__(self, rows: Sequence[PipelineRow], ready: Mapping[int, Ready]) -> pa.Table:
        """A table of the chunks that are written; `ready` holds the records of each that needed no steps, and what
        reading them has cost."""
        chunks: dict[int, list[PipelineRow]] = {number: [] for number in ready}
        for row in rows:
            chunks.setdefault(row.chunk, []).append(row)
        for number, of in chunks.items():
            self.write(self.plan.chunk(number), of, *ready.get(number, ((), {})))
        return pa.table({"chunk": pa.array(list(chunks), type=pa.int64())})

    def write(
        self, chunk: Chunk, rows: Sequence[PipelineRow], ready: Sequence[Mapping[str, Any]], read: Mapping[str, Spent]
    ) -> None:
        """Write one chunk; `read` is what reading it has cost, where its rows do not carry that."""
        costs: Costs = total(read_costs(row.costs) for row in rows)
        if not rows or not rows[0].chunk_rows:
            costs = {**costs, **read}
        count = rows[0].chunk_rows if rows else len(ready)
        if count not in (len(rows) + len(ready), 0):
            raise RuntimeError(f"{chunk} came with {len(rows)} of its {count} rows; a block was split")
        records: list[Mapping[str, Any]] = list(ready)
        refusals: list[Mapping[str, Any]] = []
        dropped: Counter[str] = Counter()
        names: dict[str, str] = {}
        with timed(costs, COMPOSE, sum(row.sample is not None for row in rows)):
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
            raise RuntimeError(f"{chunk} has {count} rows, {len(records)} + {len(refusals)} came out")
        write_chunk(self.plan.folder, chunk, self.plan.reader.kind, records, refusals, dropped, names, costs)

    def _record(self, row: PipelineRow) -> Mapping[str, Any] | PipelineRow:
        """The record of an annotated row, or the row as it was rejected."""
        if row.sample is None:
            return row
        try:
            made: Any = compose(row.sample, self.plan.options, row.names)
        except Exception as error:  # noqa: BLE001 - told in the quarantine table, with its type
            made = refusal(error)
        return row.refused("compose", *made) if isinstance(made, Rejection) else made
