"""How long a dataset build takes and what it stores, from what a pilot build of the same steps has measured.

Everything is proportional to the rows: time inside each part (`kosmosg_platform.datasets.spent`), bytes of records and
answers. What Ray does between processes, and reading from a store that gets slower under load, is not in the figures.
Parts that share a process add up; processes work at the same time, so the slowest kind of them, or the processors of
all nodes together, decide how long the build takes.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from kosmosg.errors import ConfigError, DataError
from kosmosg_platform.config import Section, flatten
from kosmosg_platform.console import byte_count, plural
from kosmosg_platform.datasets.answers import ANSWERS
from kosmosg_platform.datasets.chunks import RECEIPTS, Chunk
from kosmosg_platform.datasets.dataset import read_manifest
from kosmosg_platform.datasets.listing import BUCKET_BITS, LISTING, SPILL, previous_shards, read_items
from kosmosg_platform.datasets.pipeline import cpu_shares, grouped
from kosmosg_platform.datasets.spent import COMPOSE, FINISH, READ, WRITE, Costs, Spent, read_costs, total
from kosmosg_platform.datasets.steps import PipelineStep
from kosmosg_platform.planning.plan import duration
from kosmosg_platform.storage import read_json

SAMPLED = 1000  # items of the pilot whose size in memory is looked at
SORTED_COPIES = 4  # of a bucket of the listing at once: as read, sorted, owners, what is cut
PLAN_COPIES = 3  # of every chunk on the driver: the list, what is left of it, its table
HOUR, DAY = 3600, 86400


class BuildPlanConfig(Section):
    """What `kosmosg plan build_dataset` extrapolates to."""

    images: int = Field(default=9_000_000, ge=1)
    """Rows of the source: images, captions or pages."""
    pilot: Path | None = None
    """Dataset folder of a small build with the same steps on the same kind of machine, whose rates are used."""
    nodes: int = Field(default=1, ge=1)
    """Machines."""
    cpus_per_node: float | None = Field(default=None, gt=0)
    """CPUs of each; null takes those of this machine."""
    gpus_per_node: float = Field(default=0, ge=0)
    """GPUs of each."""
    dollars_per_node_hour: float = Field(default=0.0, ge=0)
    """Price of a machine; 0 leaves the cost out."""
    dollars_per_gpu_hour: float = Field(default=0.0, ge=0)
    """Training stages: price of a GPU, or of a worker without one; 0 leaves the cost out."""


@dataclass(frozen=True)
class Pilot:
    """What a build has measured of itself."""

    folder: Path
    rows: int
    """Read from the source."""
    records: int
    costs: Costs
    stored: Mapping[str, int]
    """Bytes by what they are of."""
    items_per_row: float
    """Listed items; one is an image, or a range of a table."""
    item_bytes: float
    """Of a listed item in the memory of the driver."""
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class PartPlan:
    """One kind of process: the parts that follow each other in it."""

    parts: tuple[str, ...]
    device: str
    processes: float
    cpu_hours: float
    gpu_hours: float
    days: float
    """If nothing else were slower."""


@dataclass(frozen=True)
class BuildPlan:
    """A build of `images` rows."""

    images: int
    records: float
    parts: tuple[PartPlan, ...]
    days: float
    slowest: str
    """What decides `days`."""
    stored: Mapping[str, float]
    """Bytes by what they are of."""
    driver_bytes: float
    """Memory of the driver while it lists and deals out, about, beside Python and its libraries."""
    dollars: float | None


def read_pilot(folder: Path) -> Pilot:
    """What the build of `folder` has measured. Raises DataError where that is not enough to go by."""
    manifest = read_manifest(folder)
    receipts = [read_json(path) for path in sorted((folder / RECEIPTS).glob("part-*.json"))]
    costs = total(read_costs(receipt.get("costs", {})) for receipt in receipts)
    if READ not in costs or not costs[READ].rows:
        raise DataError(f"plan.pilot: {folder} has no measured costs; build it again, in a new folder")
    kept = sorted(part for part, spent in costs.items() if spent.reached and not spent.rows)
    if kept:
        raise DataError(
            f"plan.pilot: in {folder} no time was measured for {', '.join(kept)}, whose answers were kept from an "
            "earlier build; build the pilot in a new folder"
        )
    shards = previous_shards(folder)
    items = [item for shard in shards[:4] for item in read_items(folder, shard.name, 0, SAMPLED)]
    sizes = [sys.getsizeof(item) + sum(map(sys.getsizeof, item)) for item in items]
    return Pilot(
        folder=folder,
        rows=sum(receipt["rows"] for receipt in receipts),
        records=manifest["rows"],
        costs=costs,
        stored={
            "records": sum(shard["bytes"] for shard in manifest["shards"]),
            "quarantine": sum(shard["bytes"] for shard in manifest["quarantine"]["shards"]),
            "listing and receipts": _bytes(folder / LISTING) + _bytes(folder / RECEIPTS),
            "kept answers": _bytes(folder / ANSWERS),
        },
        items_per_row=sum(shard.items for shard in shards) / costs[READ].rows,
        item_bytes=sum(sizes) / max(len(sizes), 1),
        settings=manifest["config"],
    )


def plan_build(
    config: BuildPlanConfig, pilot: Pilot, steps: Sequence[PipelineStep], settings: Mapping[str, Any], chunk_rows: int
) -> BuildPlan:
    """The plan of a build with these steps and settings. Raises ConfigError when they are not the pilot's, or when the
    nodes cannot hold the steps."""
    steps = steps if pilot.settings else ()  # the pilot's records came ready from the source
    _require_equal(pilot, settings)
    cpus = config.nodes * (config.cpus_per_node or os.cpu_count() or 1)
    gpus = config.nodes * config.gpus_per_node
    wanted = sum(step.gpus * step.actors[1] for step in steps)
    if wanted > gpus:
        raise ConfigError(
            f"plan.gpus_per_node: the steps take {wanted:g} GPUs together, {plural(config.nodes, 'node')} with "
            f"{config.gpus_per_node:g} have {gpus:g}; give more, or fewer build.steps.N.actors"
        )
    parts = tuple(_parts(config.images, pilot, steps, cpus))
    together = sum(part.cpu_hours for part in parts) / cpus / 24
    slowest = max(parts, key=lambda part: part.days)
    days = max(slowest.days, together)
    growth = config.images / pilot.rows
    items = config.images * pilot.items_per_row
    listing = pilot.item_bytes * max(min(items, SPILL << BUCKET_BITS), items / (1 << BUCKET_BITS) * SORTED_COPIES)
    chunk = Chunk("part-00000", 0, 0, chunk_rows, "k" * 64, "c" * 32)
    dealing = config.images / chunk_rows * (sys.getsizeof(chunk) + sum(map(sys.getsizeof, chunk))) * PLAN_COPIES
    return BuildPlan(
        images=config.images,
        records=pilot.records * growth,
        parts=parts,
        days=days,
        slowest="all CPUs together" if together > slowest.days else " + ".join(slowest.parts),
        stored={name: size * growth for name, size in pilot.stored.items() if size},
        driver_bytes=max(listing, dealing),
        dollars=days * 24 * config.nodes * config.dollars_per_node_hour or None,
    )


def _parts(images: int, pilot: Pilot, steps: Sequence[PipelineStep], cpus: float) -> Iterator[PartPlan]:
    """Every kind of process, in the order that rows pass them."""
    light, pools = grouped(steps)
    ends = [COMPOSE, WRITE]
    most = [step.actors[1] for step, _ in pools]
    shares = cpu_shares([step for step, _ in pools], cpus)
    left = max(1.0, cpus - sum(share * count for share, count in zip(shares, most, strict=True)))
    names = [READ, *(step.name for step in light), *([] if pools else ends)]
    yield _part(names, images, pilot, left, 0.0)
    for number, (step, following) in enumerate(pools, start=1):
        names = [step.name, *(each.name for each in following), *(ends if number == len(pools) else [])]
        yield _part(names, images, pilot, step.actors[1], step.gpus)
    yield _part([FINISH], images, pilot, cpus, 0.0)


def _part(names: Sequence[str], images: int, pilot: Pilot, processes: float, gpus: float) -> PartPlan:
    """Parts in one kind of process; `gpus` is what each process holds, whether it computes or waits."""
    seconds = cpu = 0.0
    devices = []
    for name in names:
        spent = pilot.costs.get(name, Spent())
        if not spent.rows:
            continue  # nothing reached it: no record came through, or the source's records need none
        rows = images * spent.reached / pilot.rows
        seconds += rows * spent.seconds / spent.rows
        cpu += rows * spent.cpu / spent.rows
        devices.append(spent.device)
    days = seconds / processes / DAY
    device = devices[0] if devices else "-"
    return PartPlan(tuple(names), device, processes, cpu / HOUR, gpus * seconds / HOUR, days)


def _require_equal(pilot: Pilot, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError where the pilot was built with other settings."""
    if not pilot.settings:
        return
    theirs, ours = (flatten({"build": _numbered(dict(each))}) for each in (pilot.settings, settings))
    for key in sorted({*theirs, *ours}):
        before, now = theirs.get(key), ours.get(key)
        if before != now:
            raise ConfigError(
                f"{key}: the pilot {pilot.folder} was built with {before!r}, the plan is for {now!r}; build a pilot "
                "with the same settings"
            )


def _numbered(value: Any) -> Any:
    """Lists as mappings from number to entry, so that a difference has a dotted path."""
    if isinstance(value, Mapping):
        return {str(key): _numbered(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return {str(number): _numbered(each) for number, each in enumerate(value)}
    return value


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _figure(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def render_build(plan: BuildPlan, pilot: Pilot, config: BuildPlanConfig) -> Iterator[str]:
    """The plan as text."""
    yield (
        f"{plan.images:,} rows -> {plan.records:,.0f} records ({pilot.records / pilot.rows:.1%}), at the rates of "
        f"{pilot.folder} ({pilot.rows:,} rows)"
    )
    yield f"  {'processes':>9}  {'CPU-hours':>10}  {'GPU-hours':>10}  {'days':>8}  parts"
    for part in plan.parts:
        yield (
            f"  {part.processes:9.4g}  {_figure(part.cpu_hours):>10}  {_figure(part.gpu_hours):>10}  "
            f"{_figure(part.days):>8}  "
            f"{' + '.join(part.parts)}, on {part.device}"
        )
    cpus = config.cpus_per_node or os.cpu_count() or 1
    nodes = f"{plural(config.nodes, 'node')} with {cpus:g} CPUs and {config.gpus_per_node:g} GPUs"
    yield f"{duration(plan.days)} on {nodes}; slowest: {plan.slowest}"
    told = ", ".join(f"{byte_count(size)} of {name}" for name, size in plan.stored.items())
    yield f"{byte_count(sum(plan.stored.values()))} on disk: {told}"
    yield f"{byte_count(plan.driver_bytes)} in the driver's memory while it lists, beside Python and its libraries"
    if plan.dollars is not None:
        yield f"{plan.dollars:,.2f} dollars at {config.dollars_per_node_hour:g} per node and hour"
    yield "time between processes, waiting for a store and models being loaded are not counted"
