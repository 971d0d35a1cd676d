"""The report of a dataset: what was built and from what, counts by reason, distributions, records to look at.

Captions, ids and messages come from sources that nobody has checked: they are shown as text, never as markup or links,
and cut where they are very long.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from kosmosg.data.records import record_kind
from kosmosg.errors import DataError
from kosmosg_platform.config import flatten
from kosmosg_platform.console import byte_count
from kosmosg_platform.datasets.dataset import RecordDataset, read_manifest
from kosmosg_platform.datasets.kept_steps import kept_bytes
from kosmosg_platform.datasets.shard_files import shard_file
from kosmosg_platform.datasets.statistics import STATISTICS, measure
from kosmosg_platform.reports.page import Bar, Histogram, PageSection, Report, Table
from kosmosg_platform.reports.record_card import clean, record_card
from kosmosg_platform.storage import read_json, write_json

REPORT = "report.html"
RECORDS = 24  # that are shown
REJECTED = 5  # rows that are shown of each reason
CACHE = 32 * 2**20  # bytes of row groups that stay decoded while records are picked

TITLES = {
    "image_width": "Image width (pixels)",
    "image_height": "Image height (pixels)",
    "image_aspect": "Image width / height",
    "caption_words": "Words of a caption",
    "instruction_words": "Words of an instruction",
    "text_words": "Words of a text",
    "images": "Images of a record",
    "entities": "Entities of a record",
    "entity_score": "Score of an entity",
    "entity_area": "Share of the image that an entity covers",
}


def write_dataset_report(folder: Path, seed: int = 0) -> Path:
    """Write `folder/statistics.json` and `folder/report.html`. The same dataset gives the same report.

    Raises DataError when the folder is no finished dataset.
    """
    statistics = measure(folder)
    page = dataset_report(folder, statistics, seed).write(folder / REPORT)
    write_json(folder / STATISTICS, statistics)  # last: it says which dataset the page is of
    return page


def is_current(folder: Path) -> bool:
    """Whether the report of a finished dataset is there and shows what the dataset holds now."""
    try:
        told = read_json(folder / STATISTICS)["dataset"]
    except (OSError, DataError, KeyError, TypeError):
        return False  # never written, or damaged: it is written again
    return (folder / REPORT).is_file() and bool(told == read_manifest(folder)["sha256"])


def dataset_report(folder: Path, statistics: Mapping[str, Any], seed: int = 0) -> Report:
    """The page, from what `measure` has found."""
    manifest = read_manifest(folder)
    counts = statistics["counts"]
    facts = {
        "kind": manifest["kind"],
        "records": f"{manifest['rows']:,}",
        "filtered": f"{counts['filtered']:,}",
        "quarantined": f"{counts['quarantined']:,}",
        "on disk": byte_count(statistics["bytes"]),
        "shards": f"{statistics['shards']:,}",
    }
    if answers := kept_bytes(folder):
        facts["answers of models kept"] = byte_count(answers)
    sections = [_built(manifest), _counts(counts), *_reasons(manifest), *_distributions(statistics)]
    if statistics["entity_words"]:
        sections.append(_words(statistics))
    records = RecordDataset(folder, cache_bytes=CACHE, verify=False)  # a few records, which are only looked at
    if len(records):
        chosen = sorted(Random(seed).sample(range(len(records)), min(RECORDS, len(records))))
        text = (
            f"{len(chosen)} of {len(records):,} records, chosen at random with seed {seed}, in the order of the shards."
        )
        fields = record_kind(records.kind).images
        cards = [record_card(records[index], fields) for index in chosen]
        sections.append(PageSection("Random records", text, cards=cards))
    rejected = list(rejected_rows(folder, manifest, seed))
    if rejected:
        sections.append(_rejected(rejected, seed))
    lead = "What the dataset holds, what was left out and why, and some of its records."
    return Report(f"Dataset: {manifest['kind']}", lead, facts, sections)


def rejected_rows(folder: Path, manifest: Mapping[str, Any], seed: int) -> Iterator[dict[str, str]]:
    """For every step and reason up to `REJECTED` rows at random, read from as few shards as have them."""
    random = Random(seed)
    shards = [shard for shard in manifest["quarantine"]["shards"] if shard["rows"]]
    random.shuffle(shards)
    found: dict[str, list[dict[str, str]]] = {}
    missing: dict[str, int] | None = None
    if "refused" in manifest:
        missing = {reason: min(count, REJECTED) for reason, count in manifest["refused"].items()}
    for shard in shards:
        if missing is not None and not missing:
            break
        table = pq.read_table(shard_file(folder, shard))
        labels = pc.binary_join_element_wise(table.column("stage"), table.column("reason"), ": ")
        for reason in sorted(pc.unique(labels).to_pylist()):
            wanted = REJECTED - len(found.get(reason, ()))
            places = pc.indices_nonzero(pc.equal(labels, reason)).to_pylist()
            for place in sorted(random.sample(places, min(wanted, len(places)))):
                found.setdefault(reason, []).extend(table.slice(place, 1).to_pylist())
            if missing is not None and len(found.get(reason, ())) >= missing.get(reason, 0):
                missing.pop(reason, None)
    for reason in sorted(found):
        yield from found[reason]


def _built(manifest: Mapping[str, Any]) -> PageSection:
    """Source, steps with their settings, annotators."""
    source = [["source", name, _said(value)] for name, value in flatten(manifest["source"]).items()]
    config = dict(manifest["config"])
    steps = []
    for number, step in enumerate(config.pop("steps", ()), start=1):
        own = {name: value for name, value in step.items() if name != "use"}
        told = ", ".join(f"{name}={_said(value)}" for name, value in flatten(own).items())
        steps.append([f"step {number}", str(step.get("use", "")), told or "default settings"])
    rest = [["settings", name, _said(value)] for name, value in flatten(config).items()]
    names = [["annotators", name, model] for name, model in sorted(manifest["annotators"].items())]
    identity = [["dataset", "sha256", manifest["sha256"]]]
    rows = [[clean(cell) for cell in row] for row in (*source, *steps, *rest, *names, *identity)]
    return PageSection("What was built", table=Table(["part", "name", "value"], rows))


def _counts(counts: Mapping[str, int]) -> PageSection:
    read = counts["read"]
    rows: list[list[str | Bar]] = [
        [name, _bar(counts[name], read), _percent(counts[name], read)]
        for name in ("read", "written", "filtered", "quarantined")
    ]
    text = (
        f"{read:,} read = {counts['written']:,} written + {counts['filtered']:,} filtered + "
        f"{counts['quarantined']:,} quarantined. Filters turn rows down on purpose; quarantined rows could not be used."
    )
    return PageSection("Counts", text, table=Table(["rows", "count", "share"], rows))


def _reasons(manifest: Mapping[str, Any]) -> Iterator[PageSection]:
    """Why rows, and why entities, were left out; most frequent first within each step."""
    refused: Mapping[str, int] = manifest.get("refused", {})
    if refused:
        by_step: dict[str, list[tuple[str, int]]] = {}
        for label, count in sorted(refused.items(), key=lambda item: (-item[1], item[0])):
            step, _, reason = label.partition(": ")
            by_step.setdefault(step, []).append((reason, count))
        most, total = max(refused.values()), sum(refused.values())
        rows: list[list[str | Bar]] = [
            [clean(step), clean(reason), _bar(count, most), _percent(count, total)]
            for step, reasons in sorted(by_step.items(), key=lambda item: -sum(count for _, count in item[1]))
            for reason, count in reasons
        ]
        columns = ["step", "reason", "rows", "share of those left out"]
        yield PageSection("Rows left out, by step and reason", table=Table(columns, rows))
    dropped: Mapping[str, int] = manifest.get("entities_left_out", {})
    if dropped:
        most, total = max(dropped.values()), sum(dropped.values())
        rows = [
            [clean(reason), _bar(count, most), _percent(count, total)]
            for reason, count in sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
        ]
        text = "Entities that the caption names and that are not in a record."
        yield PageSection("Entities left out, by reason", text, table=Table(["reason", "entities", "share"], rows))


def _distributions(statistics: Mapping[str, Any]) -> Iterator[PageSection]:
    found = statistics["distributions"]
    if found:
        charts = [_histogram(TITLES.get(name, name), found[name]) for name in (*TITLES, *found) if name in found]
        unique = list({chart.title: chart for chart in charts}.values())
        yield PageSection("Distributions", _based_on(statistics), histograms=unique)


def _histogram(title: str, found: Mapping[str, Any]) -> Histogram:
    edges = found["edges"]
    whole = all(float(edge).is_integer() for edge in edges)
    bars = []
    for left, right, count in zip(edges[:-1], edges[1:], found["counts"], strict=True):
        if whole:
            bars.append((_number(left) if right - left == 1 else f"{_number(left)} to {_number(right - 1)}", count))
        else:
            bars.append((f"{_number(left)} to {_number(right)}", count))
    figures = ("smallest", "median", "mean", "largest")
    note = ", ".join(f"{name} {_number(found[name])}" for name in figures) + f"; {found['count']:,} in all"
    if found["beyond"]:
        note += f"; {found['beyond']:,} lie further right"
    return Histogram(title, bars, _number(edges[0]), _number(edges[-1] - 1 if whole else edges[-1]), note)


def _words(statistics: Mapping[str, Any]) -> PageSection:
    words: Mapping[str, int] = statistics["entity_words"]
    most = max(words.values())
    rows: list[list[str | Bar]] = [[clean(words_), _bar(count, most)] for words_, count in words.items()]
    text = f"The {len(words)} most frequent, without articles and capitals. {_based_on(statistics)}"
    return PageSection("Entities", text, table=Table(["words", "entities"], rows))


def _based_on(statistics: Mapping[str, Any]) -> str:
    used = statistics["based_on"]
    if used["records"] == statistics["records"]:
        return f"Based on all {used['records']:,} records."
    return (
        f"Based on {used['records']:,} of {statistics['records']:,} records: {used['row_groups']:,} row groups of "
        f"{used['shards']:,} of {statistics['shards']:,} shards, chosen at random with seed {used['seed']}."
    )


def _rejected(rows: Sequence[Mapping[str, str]], seed: int) -> PageSection:
    columns = ["step", "reason", "id", "source", "message"]
    cells = [[clean(row[name]) for name in ("stage", "reason", "id", "source", "message")] for row in rows]
    text = (
        f"Up to {REJECTED} of each reason, chosen at random with seed {seed}. All of them are in the folder "
        "quarantine beside this page."
    )
    return PageSection("Rejected rows", text, table=Table(columns, cells))


def _bar(count: int, most: int) -> Bar:
    return Bar(f"{count:,}", count / most if most else 0.0)


def _percent(count: int, total: int) -> str:
    return f"{count / total:.1%}" if total else "-"


def _number(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() else f"{value:.3g}"


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
