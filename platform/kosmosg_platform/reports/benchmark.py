"""The page of a benchmark: our numbers with their protocol, the images, and what others have published.

Published rows stand in a section of their own, labelled, because they were measured under protocols of their own: a
table that mixed both would invite a comparison that nobody has made.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kosmosg.eval.baselines import COCO_FID, DREAMBENCH, LABEL
from kosmosg.eval.metrics.similarity import SCORES
from kosmosg.eval.protocol import Protocol
from kosmosg_platform.evaluation.runner import BenchmarkResult
from kosmosg_platform.reports.page import Figure, PageSection, Report, Table

FEW = 2048  # images; the covariance of Inception's features is singular below


def benchmark_report(found: BenchmarkResult) -> Report:
    """The page of one evaluation."""
    protocol, overall = found.protocol, [row for row in found.rows if row["set"] == "all"]
    dreambench = protocol.benchmark == "dreambench"
    facts = {"protocol": protocol.label}
    for row in overall:
        score = f"CLIP-I {row['clip_i']:.3f}, CLIP-T {row['clip_t']:.3f}" if dreambench else f"FID {row['fid']:.2f}"
        facts[row["variant"]] = score
    sections = [
        PageSection("Scores", _reading(found), table=score_table(found.rows)),
        PageSection(
            "Pictures",
            "Subject after subject, or evenly through the captions; none is selected by its looks.",
            [Figure.of(found.sheet, "reference images | prompt | results")],
        ),
    ]
    if dreambench:
        sections.append(PageSection("By subject", table=subject_table(found.rows)))
    sections += [
        PageSection(f"Others: {LABEL}", _comparing(protocol), table=published_table(protocol)),
        PageSection("Protocol", _deviating(protocol), table=protocol_table(protocol)),
    ]
    return Report(f"Evaluation: {protocol.name}", f"Measured as in {protocol.source}.", facts, sections)


def score_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row a model, over all images."""
    overall = [row for row in rows if row["set"] == "all"]
    if "fid" in overall[0]:
        cells = [
            [row["variant"], row["protocol"], str(row["pictures"]), str(row["real"]), f"{row['fid']:.2f}"]
            for row in overall
        ]
        return Table(["model", "protocol", "pictures", "real images", "FID"], cells)
    cells = [
        [row["variant"], row["protocol"], str(row["pictures"]), *(_with_interval(row, name) for name in SCORES)]
        for row in overall
    ]
    return Table(["model", "protocol", "pictures", *SCORES.values()], cells)


def subject_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row a model and subject."""
    cells = [
        [row["set"], row["variant"], row["protocol"], str(row["pictures"]), *(f"{row[name]:.3f}" for name in SCORES)]
        for row in sorted(rows, key=lambda row: row["set"])
        if row["set"] != "all"
    ]
    return Table(["subject", "model", "protocol", "pictures", *SCORES.values()], cells)


def published_table(protocol: Protocol) -> Table:
    """What others have published on the same benchmark."""
    if protocol.benchmark == "coco":
        return Table(["method", "protocol", "FID"], [[row.method, LABEL, f"{row.fid:.2f}"] for row in COCO_FID])
    cells = [
        [row.method, row.base, row.references, LABEL, *(_number(x) for x in (row.dino, row.clip_i, row.clip_t))]
        for row in DREAMBENCH
    ]
    return Table(["method", "decoder", "photos given", "protocol", *SCORES.values()], cells)


def protocol_table(protocol: Protocol) -> Table:
    """Everything that the id is a hash of."""
    cells = [["id", protocol.protocol_id]]
    for name, value in protocol.facts().items():
        if isinstance(value, Mapping):
            cells += [[f"{name}: {key}", str(inner)] for key, inner in value.items()]
        else:
            cells.append([name, str(value)])
    return Table(["setting", "value"], cells)


def summary(row: Mapping[str, Any]) -> str:
    """A row's numbers in a line for the terminal."""
    if "fid" in row:
        return f"FID {row['fid']:.2f} of {row['pictures']} images"
    return "  ".join(f"{title} {_with_interval(row, name)}" for name, title in SCORES.items())


def _with_interval(row: Mapping[str, Any], name: str) -> str:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return f"{row[name]:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _reading(found: BenchmarkResult) -> str:
    if found.protocol.benchmark == "dreambench":
        return (
            "Mean cosines over all images. DINO and CLIP-I compare with real photos of the subject, CLIP-T with the "
            "official sentence. In brackets the 95 % interval over subjects: what another choice of subjects could "
            "have given."
        )
    few = min(row["pictures"] for row in found.rows)
    note = f" {few} images are too few for a number that means anything; FID falls as they grow." if few < FEW else ""
    return "Frechet distance between Inception features of drawn and real images; lower is better." + note


def _comparing(protocol: Protocol) -> str:
    text = "From papers, each under its own protocol; a method with two rows was measured in two papers."
    if protocol.deviations() or not protocol.name.endswith("kosmosg"):
        return f"{text} None of them has the protocol {protocol.label}."
    return f"{text} The row of Kosmos-G was made by the settings of this protocol, in half precision on GPUs."


def _deviating(protocol: Protocol) -> str:
    deviations = protocol.deviations()
    if not deviations:
        return "Followed as written. Numbers may be compared where this id is the same."
    return (
        f"Not {protocol.name} as written: {'; '.join(deviations)}. Numbers may be compared where this id is the same."
    )
