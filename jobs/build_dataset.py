"""Build a dataset: images or text in, Parquet records with captions, entities and masks out.

    kosmosg run build_dataset toyworld                                # the toy world: composition, edit, questions
    kosmosg run build_dataset photos source=my_photos dest=mine       # photos, with a contact sheet
    kosmosg run build_dataset captions source=my_text dest=words      # text files with one caption per line

Run it again after an interruption, after adding photos, or after changing a setting: only what is missing is built.
Rows that cannot be used are listed in DEST/quarantine with step and reason; the others are not affected.
DEST/report.html shows counts, distributions, random records and rejected rows; DEST/statistics.json has the same
figures for programs.
"""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from jobs.experiment import Experiment, main
from kosmosg.data.files.store_file import store_patience
from kosmosg.data.records import record_kind
from kosmosg.data.sources.base import Reader, Source
from kosmosg_platform.cluster.session import connect
from kosmosg_platform.config import Section, plain
from kosmosg_platform.console import byte_count, echo, plural
from kosmosg_platform.datasets.build import BUILT_APART, BuildResult, BuildSettings, build
from kosmosg_platform.datasets.dataset import RecordDataset
from kosmosg_platform.owned_folder import check_stored, refuse_overlap, refuse_stored_overlap
from kosmosg_platform.reports.dataset_report import REPORT, is_current, write_dataset_report
from kosmosg_platform.run_paths import RunPaths
from kosmosg_platform.stores.folder_sync import kept_in_step
from kosmosg_platform.stores.location import told

SHEET_RECORDS = 40


def run(experiment: Experiment) -> list[BuildResult]:
    """Build every dataset of the experiment; returns what each holds."""
    source = chosen_source(experiment)
    results = []
    shaped = settings(experiment, source)
    ready = replace(shaped, steps=(), plain={})  # records that pass no steps
    with ExitStack() as stack:
        for folder, reader in targets(experiment, source):
            check_stored(folder.absolute())
            with kept_in_step(folder.absolute(), BUILT_APART) as sync:
                result = build(
                    folder,
                    reader,
                    shaped if reader.annotated else ready,
                    limit=experiment.limit,
                    start_ray=lambda: stack.enter_context(connect(experiment)),
                    say=echo,
                    sync=sync,
                )
                if result.built_shards or not is_current(folder):
                    write_sheet(folder, result)
                    write_dataset_report(folder)
            results.append(result)
    for line in summary(results):
        print(line, flush=True)
    return results


def chosen_source(experiment: Experiment) -> Source:
    """The source with its settings: those of `build.source` and those of the section with its name."""
    section = getattr(experiment, experiment.build.source_name, None)
    return experiment.build.opened_source(plain(section) if isinstance(section, Section) else {})


def settings(experiment: Experiment, source: Source) -> BuildSettings:
    """What shapes the dataset, checked. Raises ConfigError with the dotted path of a mistake."""
    config = experiment.build
    return BuildSettings(
        steps=tuple(config.pipeline_steps(source)),
        options=config.compose,
        plain=config.settings(source),
        shard_rows=config.shard_rows,
        shard_bytes=config.shard_mb * 2**20,
        chunk_rows=config.chunk_rows,
        max_refused=config.max_refused,
        keep_answers=config.keep_answers,
        retry=experiment.retry.reason,
    )


def targets(experiment: Experiment, source: Source) -> list[tuple[Path, Reader]]:
    """Every dataset folder to build, with its reader. Raises ConfigError, or DataError if there is no source."""
    layout = RunPaths(experiment.output)
    path = experiment.source
    with store_patience(experiment.build.store_retry_s):
        readers = source.open(path)
    if path is not None and len(readers) == 1:
        (reader,) = readers.values()
        places = [(experiment.dest or layout.dataset(reader.kind), reader)]
    else:
        folder = experiment.dest or layout.job("build_dataset")
        places = [(folder / name, reader) for name, reader in readers.items()]
    if path is not None:
        for dest, _ in places:
            if "://" in path:
                refuse_stored_overlap(path, dest)
            else:
                refuse_overlap(Path(path), dest)
    return places


def write_sheet(folder: Path, result: BuildResult) -> None:
    """DEST/sheet.png, for kinds with images."""
    from kosmosg.data.contact_sheet import contact_sheet, spread

    fields = record_kind(result.kind).images
    records = RecordDataset(folder)
    chosen = (records[index] for index in spread(len(records), SHEET_RECORDS))
    shown = [record for record in chosen if any(record[field] for field in fields)]
    if shown:
        contact_sheet(shown, result.kind, columns=3 if result.kind == "edit" else 2).save(folder / "sheet.png")


def summary(results: list[BuildResult]) -> list[str]:
    """The final summary."""
    lines = []
    for result in results:
        done = f"{plural(result.built_shards, 'shard')} built" if result.built_shards else "nothing to build"
        rate = f", {result.rate:,.1f} rows/s" if result.built_rows else ""
        lines.append(f"{result.kind}: {result.rows:,} records in {told(result.folder)}")
        lines.append(f"  {done}, {result.kept_shards} kept, {result.seconds:.1f} s{rate}")
        lines += [f"  refused   {count:>7,}  {reason}" for reason, count in result.reasons.items()]
        lines += [f"  entities left out {count:>7,}  {reason}" for reason, count in result.entities_left_out.items()]
        if result.answers.bytes or result.answers.removed:
            removed = (
                f", {byte_count(result.answers.removed)} of older settings removed" if result.answers.removed else ""
            )
            lines.append(f"  answers of models kept: {byte_count(result.answers.bytes)}{removed}")
        lines.append(f"  look at it: {told(result.folder / REPORT)}")
    return lines


if __name__ == "__main__":
    main("build_dataset", run)
