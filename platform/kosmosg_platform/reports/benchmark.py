"""The report of a benchmark: our numbers with their protocol, the images, and published results of others.

Published results are in a separate, labelled section, because they were measured under different protocols: a table
that mixed both would suggest a comparison that nobody has made.
"""

from collections.abc import Mapping

from kosmosg.eval.baselines import LABEL
from kosmosg.eval.protocol import Protocol
from kosmosg_platform.evaluation.runner import BenchmarkResult
from kosmosg_platform.reports.page import Figure, PageSection, Report, Table


def benchmark_report(found: BenchmarkResult) -> Report:
    """The page of one evaluation."""
    protocol, page = found.protocol, found.benchmark.page(found.rows)
    sections = [
        PageSection("Scores", page.reading, table=Table(*page.scores)),
        PageSection(
            "Images",
            "The cases are chosen by a fixed rule; they are not cherry-picked.",
            [Figure.of(found.sheet, "reference images | prompt | results")],
        ),
        *(PageSection(title, table=Table(*table)) for title, table in page.further.items()),
    ]
    if page.published is not None:
        sections.append(PageSection(f"Others: {LABEL}", _comparing(protocol), table=Table(*page.published)))
    sections.append(PageSection("Protocol", _deviating(protocol), table=protocol_table(protocol)))
    facts = {"protocol": protocol.label, **page.headlines}
    return Report(f"Evaluation: {protocol.name}", f"Measured as in {protocol.source}.", facts, sections)


def protocol_table(protocol: Protocol) -> Table:
    """Everything that the id is computed from."""
    cells = [["id", protocol.protocol_id]]
    for name, value in protocol.facts().items():
        if isinstance(value, Mapping):
            cells += [[f"{name}: {key}", str(inner)] for key, inner in value.items()]
        else:
            cells.append([name, str(value)])
    return Table(["setting", "value"], cells)


def _comparing(protocol: Protocol) -> str:
    text = "From papers, each under its own protocol; a method with two rows was measured in two papers."
    if protocol.deviations() or not protocol.name.endswith("kosmosg"):
        return f"{text} None of them has the protocol {protocol.label}."
    return f"{text} The Kosmos-G row was produced with the settings of this protocol, in half precision on GPUs."


def _deviating(protocol: Protocol) -> str:
    deviations = protocol.deviations()
    if not deviations:
        return "Followed as written. Only compare numbers with the same id."
    return f"Not {protocol.name} as written: {'; '.join(deviations)}. Only compare numbers with the same id."
