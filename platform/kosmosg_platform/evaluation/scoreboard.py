"""The page of a benchmark: our numbers with their protocol, the pictures, and what others have published.

Published rows stand in a section of their own, labelled, because they were measured under protocols of their own: a
table that mixed both would invite a comparison that nobody has made.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kosmosg.eval.fidelity import SCORES
from kosmosg.eval.protocol import Protocol
from kosmosg.eval.published import COCO_FID, DREAMBENCH, LABEL
from kosmosg_platform.evaluation.benchmark import Found
from kosmosg_platform.report import Figure, Report, Section, Table

FEW = 2048  # pictures; the covariance of Inception's features is singular below


def benchmark_report(found: Found) -> Report:
    """The page of one evaluation."""
    protocol, overall = found.protocol, [row for row in found.rows if row["set"] == "all"]
    dreambench = protocol.benchmark == "dreambench"
    facts = {"protocol": protocol.label}
    for row in overall:
        score = f"CLIP-I {row['clip_i']:.3f}, CLIP-T {row['clip_t']:.3f}" if dreambench else f"FID {row['fid']:.2f}"
        facts[row["variant"]] = score
    sections = [
        Section("Scores", _reading(found), table=score_table(found.rows)),
        Section(
            "Pictures",
            "Subject after subject, or evenly through the captions; none is selected by its looks.",
            [Figure.of(found.sheet, "reference images | prompt | results")],
        ),
    ]
    if dreambench:
        sections.append(Section("By subject", table=subject_table(found.rows)))
    sections += [
        Section(f"Others: {LABEL}", _comparing(protocol), table=published_table(protocol)),
        Section("Protocol", _deviating(protocol), table=protocol_table(protocol)),
    ]
    return Report(f"Evaluation: {protocol.name}", f"Measured as in {protocol.source}.", facts, sections)


def score_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row a model, over all pictures."""
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
        return f"FID {row['fid']:.2f} of {row['pictures']} pictures"
    return "  ".join(f"{title} {_with_interval(row, name)}" for name, title in SCORES.items())


def _with_interval(row: Mapping[str, Any], name: str) -> str:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return f"{row[name]:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _reading(found: Found) -> str:
    if found.protocol.benchmark == "dreambench":
        return (
            "Mean cosines over all pictures. DINO and CLIP-I compare with real photos of the subject, CLIP-T with the "
            "official sentence. In brackets the 95 % interval over subjects: what another choice of subjects could "
            "have given."
        )
    few = min(row["pictures"] for row in found.rows)
    note = f" {few} pictures are too few for a number that means anything; FID falls as they grow." if few < FEW else ""
    return "Frechet distance between Inception features of drawn and real pictures; lower is better." + note


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
