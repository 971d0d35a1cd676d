"""Compute once what the frozen decoder would compute in every epoch: columns beside the datasets, in fp16.

    kosmosg run precompute gpu                                        # for stages 2 and 3 of the preset `gpu`
    kosmosg run precompute gpu scale.workers=8                        # on eight GPUs
    kosmosg run precompute gpu precompute.columns=[target_posterior]  # only what stage 3 reads

Stage 3 then reads the VAE's posterior of every target image (65 kB for Stable Diffusion 1.5) instead of running the VAE
and decoding the image; stage 2 reads the text encoder's states of every caption (118 kB). Give it the settings of the
training runs: their datasets, decoder and, for captions, the parent of stage 2 and `data.max_seq_len`. Run it again
after a stop, or when a dataset has grown: only what is missing is computed.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from jobs.align import AlignRecipe
from jobs.experiment import Experiment, main
from jobs.instruct import InstructRecipe
from kosmosg.data.precomputed import POSTERIOR, TEXT_STATES
from kosmosg_platform.cluster.session import connect
from kosmosg_platform.datasets.dataset import RecordDataset
from kosmosg_platform.inference.column_encoders import PosteriorEncoder, TextStatesEncoder
from kosmosg_platform.inference.precompute import Column, ComputedColumn, precompute
from kosmosg_platform.run_paths import RunPaths
from kosmosg_platform.training.columns import posterior_identity
from kosmosg_platform.training.mixture import find_mixture


def run(experiment: Experiment) -> list[ComputedColumn]:
    """Compute all columns. Raises ConfigError if a dataset or the parent of stage 2 is missing."""
    experiment = experiment.model_copy(update={"data": experiment.data.model_copy(update={"precomputed": "never"})})
    made = []
    with ExitStack() as stack:
        for column in columns(experiment):
            done = precompute(column, experiment.scale, lambda: stack.enter_context(connect(experiment)))
            made.append(done)
            print(summary(column.name, done), flush=True)
    return made


def columns(experiment: Experiment) -> Iterator[Column]:
    """The columns that the stages of these settings read, each dataset once."""
    size = experiment.precompute.batch_size
    if POSTERIOR in experiment.precompute.columns:
        mixture = find_mixture(InstructRecipe.stage, experiment.data, RunPaths(experiment.output))
        identity = posterior_identity(experiment.decoder)
        for folder in dict.fromkeys(mixture.folders.values()):
            kind = RecordDataset(folder).kind
            vae = partial(PosteriorEncoder, experiment.decoder, kind, identity["image_size"])
            yield Column(POSTERIOR, folder, identity, vae, size)
    if TEXT_STATES in experiment.precompute.columns:
        recipe = AlignRecipe.of(experiment)
        identity = recipe.column_identity()
        clip = partial(TextStatesEncoder, experiment.decoder, recipe.initial.processor(), identity["length"])
        for folder in dict.fromkeys(recipe.mixture.folders.values()):
            yield Column(TEXT_STATES, folder, identity, clip, size)


def summary(name: str, made: ComputedColumn) -> str:
    """One line."""
    state = f"{made.computed:,} computed" if made.computed else "nothing to compute"
    without = f", {made.without:,} without (image cannot be decoded)" if made.without else ""
    return f"{name}: {made.rows:,} rows, {state}{without}, {made.bytes / 1e6:,.1f} MB in {made.folder}"


if __name__ == "__main__":
    main("precompute", run)
