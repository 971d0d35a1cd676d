"""Hash the images of a source: to keep evaluation images out of a dataset, and to leave out copies.

    kosmosg run hash_list photos source=dreambench dest=hashes/dreambench
    kosmosg run hash_list photos source=my_photos dest=hashes/mine

A build uses the first in the step {use: contaminated, hashes: hashes/dreambench/hashes}, the second in
{use: duplicate, duplicates: hashes/mine/duplicates.parquet}.

The source is read as `build_dataset` reads it, with the same settings: an image that is cut to a square there must be
hashed as a square. Run it again after a stop or when there are new images: only what is missing is hashed.
"""

from contextlib import ExitStack

from jobs.build_dataset import chosen_source
from jobs.experiment import Experiment, main
from kosmosg.errors import ConfigError
from kosmosg_platform.cluster.session import connect
from kosmosg_platform.datasets.hash_list import HashedSource, hash_source
from kosmosg_platform.run_paths import RunPaths


def run(experiment: Experiment) -> HashedSource:
    """Hash one source. Raises ConfigError when it makes several datasets."""
    readers = chosen_source(experiment).open(experiment.source)
    if len(readers) > 1:
        raise ConfigError(
            f"build.source: {experiment.build.source_name} makes {', '.join(readers)}; hash a source of one dataset"
        )
    (reader,) = readers.values()
    dest = experiment.dest or RunPaths(experiment.output).job("hash_list")
    with ExitStack() as stack:
        made = hash_source(
            dest,
            reader,
            experiment.hash_list.radius,
            experiment.limit,
            lambda: stack.enter_context(connect(experiment)),
        )
    for line in summary(made):
        print(line, flush=True)
    return made


def summary(made: HashedSource) -> list[str]:
    """What was found, as lines."""
    found = made.duplicates
    lines = [
        f"{made.hashed:,} images hashed in {made.folder / 'hashes'}",
        f"{found.table.num_rows:,} of them are copies (groups: {found.groups:,}): {made.folder / 'duplicates.parquet'}",
    ]
    if made.refused:
        lines.append(f"{made.refused:,} rows had no image that can be read")
    if found.crowded:
        lines.append(
            f"{found.crowded:,} times too many images were alike to compare them all; some copies may be missed"
        )
    return lines


if __name__ == "__main__":
    main("hash_list", run)
