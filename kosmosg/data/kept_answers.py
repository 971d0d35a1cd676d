"""Answers of annotators as Arrow tables, so that a build keeps them and asks again only for what has changed."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from kosmosg.data.annotators.base import EntitySpans, Rejection, Span
from kosmosg.data.pipeline_rows import CUT, SPAN, packed_cut, unpacked_cut

_REJECTION = pa.struct([("reason", pa.string()), ("message", pa.string())])

ANSWERS = pa.schema(
    [
        ("id", pa.string()),
        ("rejection", _REJECTION),
        ("caption", pa.string()),
        ("spans", pa.list_(SPAN)),
        ("dropped", pa.list_(_REJECTION)),
        ("cuts", pa.list_(CUT)),
    ]
)


def answers_table(field: str, answers: Mapping[str, Any], name: str) -> pa.Table:
    """Answers for one field (`kosmosg.data.annotators.base.FIELDS`), by the id of their sample, and who gave
    them; field "" is for filters."""
    rows = [{"id": key} | _plain(field, answer) for key, answer in answers.items()]
    return pa.Table.from_pylist(rows, schema=ANSWERS.with_metadata({"field": field, "annotator": name}))


def read_answers(table: pa.Table) -> tuple[dict[str, Any], str]:
    """The inverse of `answers_table`: answers by id, and the annotator's name."""
    told = table.schema.metadata
    field = told[b"field"].decode()
    return {row["id"]: _answer(field, row) for row in table.to_pylist()}, told[b"annotator"].decode()


def _plain(field: str, answer: Any) -> dict[str, Any]:
    if isinstance(answer, Rejection):
        return {"rejection": answer._asdict()}
    if field == "caption":
        return {"caption": answer}
    if field == "entities":
        return {
            "spans": [span._asdict() for span in answer.spans],
            "dropped": [dropped._asdict() for dropped in answer.dropped],
        }
    if field == "masks":
        return {"cuts": [packed_cut(cut) for cut in answer]}
    return {}  # a filter that keeps the sample


def _answer(field: str, row: Mapping[str, Any]) -> str | EntitySpans | Sequence[Any] | Rejection | None:
    if row["rejection"] is not None:
        return Rejection(**row["rejection"])
    if field == "caption":
        return str(row["caption"])
    if field == "entities":
        return EntitySpans([Span(**span) for span in row["spans"]], [Rejection(**one) for one in row["dropped"]])
    return [unpacked_cut(cut) for cut in row["cuts"]] if field == "masks" else None
