"""Go through a training stage with all of its workers simulated, in a minute and on one machine, before paying for it.

    kosmosg rehearse paper                        # 256 workers on 32 nodes of 8 GPUs
    kosmosg rehearse gpu scale.workers=16         # another number of workers
    kosmosg rehearse paper rehearse.nodes=0       # without Ray: samples, checkpoints and messages only

Ray places the workers on simulated nodes; every worker's slice of the samples is worked out and compared with the
batch; parameters are assigned to the files of a checkpoint; messages are counted. Exit code 2, and one sentence, for
what would not work.
"""

import sys
from collections.abc import Iterator, Sequence

from jobs.experiment import Experiment, load, preset_and_settings
from jobs.plan import model_config
from jobs.settings import JOBS, print_usage, reads
from kosmosg.data.records import stage_samples
from kosmosg.errors import ConfigError, KosmosGError
from kosmosg_platform.config import plain
from kosmosg_platform.console import echo, echo_error, plural
from kosmosg_platform.datasets.dataset import RecordDataset
from kosmosg_platform.planning.flops import decoder_cost, stage_cost, trainable_sizes
from kosmosg_platform.planning.rehearsal import checkpoint_files, place, slices, traffic
from kosmosg_platform.run_paths import STAGES, RunPaths
from kosmosg_platform.training.mixture import find_mixture

METRICS = {"pretrain": ("loss", "tokens"), "align": ("loss", "matching", "reconstruction", "captions_shortened")}
OTHER_METRICS = ("loss", "dropped")


def rehearse(arguments: Sequence[str]) -> Iterator[str]:
    """What was found, line by line, as it is found. Raises ConfigError for what would not work."""
    experiments = {stage: experiment_of(stage, arguments) for stage in STAGES}
    placed = None
    for stage, experiment in experiments.items():
        scale, config = experiment.scale, experiment.rehearse
        if config.nodes != 0 and placed != plain(scale):
            found = place(scale, config)
            placed = plain(scale)
            spread = ", ".join(f"{count} on each of {nodes}" for count, nodes in _runs(found.workers_of))
            yield (
                f"placement: {plural(scale.workers, 'worker')} on {plural(found.nodes, 'simulated node')} in "
                f"{found.seconds:.1f} s: {spread}"
            )
        yield from _stage(stage, experiment)


def _stage(stage: str, experiment: Experiment) -> Iterator[str]:
    train, workers = experiment.train, experiment.scale.workers
    weights, sizes, assumed = _mixture(stage, experiment)
    found = slices(train, workers, sizes, weights)
    yield (
        f"{stage}: {train.steps:,} steps of {train.global_batch:,} samples; each worker reads {found.samples} per "
        f"step, {found.samples // found.passes} at once; checked at steps {', '.join(map(str, found.steps))}: every "
        f"sample of a batch once, {found.milliseconds:.1f} ms per slice"
    )
    epochs = ", ".join(f"{name} {count:.3g}" for name, count in found.epochs.items())
    yield f"  epochs: {epochs}" + (f" (assuming {experiment.rehearse.rows:,} records each)" if assumed else "")
    config = model_config(experiment)
    parameters = trainable_sizes(stage, config)
    files = checkpoint_files(parameters, workers, train.ema is not None)
    yield (
        f"  checkpoint: {plural(files.files, 'file')}, {files.total / 1e9:.3g} GB, one worker writes "
        f"{files.smallest / 1e9:.3g} to {files.largest / 1e9:.3g} GB (largest parameter: {files.largest_parameter}); "
        f"{train.steps // train.checkpoint_every + bool(train.steps % train.checkpoint_every):,} in the run"
    )
    cost = stage_cost(stage, config, decoder_cost(experiment.decoder), weights)
    sent = traffic(cost, train, workers, experiment.engine, METRICS.get(stage, OTHER_METRICS))
    yield (
        f"  network: at least {sent.step / 1e9:.3g} GB per worker and step ({', '.join(sent.collectives)}); each "
        f"worker receives {sent.metrics / 1e3:.3g} kB of metrics every {train.log_every} steps and "
        f"{files.manifest_message / 1e3:.3g} kB of file entries per checkpoint"
    )


def _mixture(stage: str, experiment: Experiment) -> tuple[dict[str, float], dict[str, int], bool]:
    """Shares and numbers of records by kind of sample, and whether the numbers are assumed."""
    try:
        mixture = find_mixture(stage, experiment.data, RunPaths(experiment.output))
    except ConfigError:
        if experiment.data.folder is not None:
            raise
        shares = dict(experiment.data.weights)
        shares = shares or {name: kind.share for name, (_, kind) in stage_samples(stage).items()}
        return shares, dict.fromkeys(shares, experiment.rehearse.rows), True
    return dict(mixture.weights), {name: len(RecordDataset(folder)) for name, folder in mixture.folders.items()}, False


def _runs(counts: Sequence[int]) -> list[tuple[int, int]]:
    """Workers of a node, and how many nodes have as many."""
    return [(count, sum(1 for other in counts if other == count)) for count in dict.fromkeys(counts)]


def experiment_of(stage: str, arguments: Sequence[str]) -> Experiment:
    """The settings of one stage's job. Raises ConfigError for a setting that a rehearsal does not depend on."""
    preset, overrides = preset_and_settings(arguments)
    unread = next((word.partition("=")[0] for word in overrides if not reads("rehearse", word.partition("=")[0])), None)
    if unread:
        raise ConfigError(f"{unread}: a rehearsal does not depend on it; see `kosmosg rehearse --help`")
    return load(stage, preset or JOBS["rehearse"].preset, overrides)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of `python -m jobs.rehearse`; ends the process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if any(word in ("-h", "--help") for word in given):
        print_usage("rehearse")
        sys.exit(0)
    try:
        if all("=" in word for word in given):
            echo(f"rehearse: no preset given, using `{JOBS['rehearse'].preset}`")
        for line in rehearse(given):
            print(line, flush=True)
    except KosmosGError as error:
        echo_error("kosmosg rehearse", error)
        sys.exit(2)
    sys.exit(0)


if __name__ == "__main__":
    main()
