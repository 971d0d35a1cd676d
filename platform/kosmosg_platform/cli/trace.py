"""`kosmosg trace`: from a training step to the records it consumed, and from a record to its source."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from kosmosg.errors import ConfigError
from kosmosg_platform.console import echo


def trace(
    run: Annotated[
        str | None,
        typer.Option(
            help="A run: its folder OUTPUT/STAGE/KEY, one of its checkpoints, or its key.", show_default=False
        ),
    ] = None,
    step: Annotated[
        int | None,
        typer.Option(
            help="Optimizer step, from 0 as in metrics.jsonl; a checkpoint's last step by default.",
            min=0,
            show_default=False,
        ),
    ] = None,
    record: Annotated[
        str | None, typer.Option(metavar="ID", help="Id of a record, or of a rejected row.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The dataset folder of --record.", show_default=False)
    ] = None,
    output: Annotated[Path, typer.Option(help="Where a run is looked for by its key.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line instead of a table.")] = False,
) -> None:
    """Show which records a training step consumed, or where a record came from.

    The order of samples is computed again from the run's settings and data; only samples that could not be used, and
    those that replaced them, come from a list that the run keeps.

    \b
    A record: kosmosg trace --record dog/01.jpg --data runs/build_dataset/composition

    \b
    Example: kosmosg trace --run runs/instruct/0123456789ab --step 120
    """
    if run is not None and record is None and data is None:
        _print_step(run, step, output, as_json)
    elif record is not None and data is not None and run is None and step is None:
        _print_record(record, data, as_json)
    else:
        raise ConfigError("trace: give either --run and --step, or --record and --data")


def _print_step(name: str, step: int | None, output: Path, as_json: bool) -> None:
    from kosmosg_platform.training.consumed import open_run

    found = open_run(name, output)
    chosen = found.last_step if step is None else step
    if chosen is None:
        raise ConfigError(f"--step: say which step of {found.folder}; only a checkpoint has a last one")
    records = found.consumed(chosen)
    if not found.verified:
        echo(f"{found.folder} does not tell which data it was trained on; they are taken to be unchanged", "warning")
    if as_json:
        for record in records:
            print(json.dumps({name: _plain(value) for name, value in asdict(record).items()}, ensure_ascii=False))
        return
    heads = ["step", "position", "kind", "dataset", "record", "id"]
    rows = [[str(cell) for cell in (r.step, r.position, r.kind, r.dataset, r.index, printable(r.id))] for r in records]
    if any(r.instead_of is not None for r in records):
        heads.append("instead of")
        rows = [[*row, printable(r.instead_of or "")] for row, r in zip(rows, records, strict=True)]
    _print_table([heads, *rows])


def _print_record(record_id: str, folder: Path, as_json: bool) -> None:
    from kosmosg_platform.datasets.lineage import trace_record

    facts = trace_record(folder, record_id).facts()
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
        return
    _print_table([[name, printable(value)] for name, value in facts.items()])


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def printable(text: str) -> str:
    """Text of a source that nobody has checked, as a terminal may have it: without control characters."""
    return "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in text)
