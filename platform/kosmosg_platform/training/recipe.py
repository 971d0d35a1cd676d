"""The parts of a training run: its settings, the recipe that a job provides, and both together as one `TrainRun`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from kosmosg.stages import Batch, Stage
from kosmosg_platform.cluster.session import ScaleConfig
from kosmosg_platform.config import Section
from kosmosg_platform.run_paths import RunPaths
from kosmosg_platform.stores.location import Location
from kosmosg_platform.tracking import Run, TrackingConfig
from kosmosg_platform.training.engine_config import EngineConfig
from kosmosg_platform.training.lr_schedule import TrainConfig, freeze
from kosmosg_platform.training.sampler import SampleIndex

Record = Mapping[str, Any]

KEPT_APART = ("checkpoints", "export", ".lock")
"""What lies in a run's folder and is not kept the same on all nodes."""
Collate = Callable[[Sequence[tuple[SampleIndex, Record]]], Batch]


class TrainingExperiment(Section):
    """The sections that every training run has; `jobs.experiment.Experiment` adds the others."""

    output: Location = Path("runs")
    """Folder for everything that a run writes: on a disk that all nodes see, or in an object store (s3://, gs://,
    hdfs://)."""
    train: TrainConfig = TrainConfig()
    scale: ScaleConfig = ScaleConfig()
    engine: EngineConfig = EngineConfig()
    tracking: TrackingConfig = TrackingConfig()


class RecordSource(Protocol):
    """A dataset with random access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


class Recipe(Protocol):
    """What the trainer needs of a stage. Small and picklable: it is sent to the workers and builds everything there."""

    @property
    def stage(self) -> str:
        """`pretrain`, `align` or `instruct`: folder, MLflow experiment, model name."""
        ...

    def fingerprint(self) -> Mapping[str, Any]:
        """What identifies the run besides the section `train`: objective, and digests of parent, decoder and data.

        JSON-like; digests are of contents, never of names or paths. Called on the driver, where user errors are raised
        before anything is started.
        """
        ...

    def lineage(self) -> Mapping[str, str]:
        """Tags of the MLflow run that say where the stage came from, such as its parent's run."""
        ...

    def tracked_datasets(self) -> Sequence[Mapping[str, str]]:
        """The datasets as `Run.log_inputs` takes them; may be empty."""
        ...

    def build_stage(self) -> Stage:
        """The stage before its first step, on the CPU, the same on every worker (torch's seed is set)."""
        ...

    def datasets(self) -> Mapping[str, RecordSource]:
        """The sources by name."""
        ...

    def weights(self) -> Mapping[str, float]:
        """Share of each source in the mixture."""
        ...

    def build_collate(self) -> Collate:
        """Turns records into a micro-batch, with all randomness from the samples' seeds. `weight` () in the batch is
        the number of samples or tokens over which the stage's loss is a mean."""
        ...

    def sample_images(self, stage: Stage) -> Sequence[tuple[str, Image.Image]]:
        """Named sample images of the current weights; may be empty."""
        ...

    def save(self, stage: Stage, folder: Path, figures: Mapping[str, Any]) -> None:
        """Write the export folder of a trained stage atomically; `figures` of the run go into its model card."""
        ...


@dataclass(frozen=True)
class TrainRun:
    """One training run, as it is sent to the workers."""

    recipe: Recipe
    experiment: TrainingExperiment
    key: str
    """Identity of the run: a digest of everything that affects its result."""
    run: Run
    """Its MLflow run."""
    base: str = ""
    """What runs that go on from this one's checkpoints must share: a digest of model, data and their order."""
    resume_from: Path | None = None
    """Checkpoint of another run to go on from."""

    @property
    def held_out(self) -> Mapping[str, tuple[int, ...]]:
        """Samples of each kind that are not trained on, by index; recipes that know of none need not say so."""
        return getattr(self.recipe, "held_out", {})

    @property
    def folder(self) -> Path:
        return RunPaths(self.experiment.output).run(self.recipe.stage, self.key)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.folder / "samples"

    @property
    def export(self) -> Path:
        return self.folder / "export"

    def build_stage(self) -> Stage:
        """The stage before its first step, on the CPU, from the run's seed."""
        torch.manual_seed(self.experiment.train.seed)
        stage = self.recipe.build_stage()
        freeze(self.experiment.train, stage.trainable())
        return stage
