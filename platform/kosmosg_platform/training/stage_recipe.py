"""What the recipes of all stages share: initial model, mixture, identity, export.

A stage's job file subclasses `StageRecipe` and says only what is its own: which module is trained, how records become
batches, what else shapes the result, and which sample images show it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from PIL import Image
from pydantic import field_validator

from kosmosg import KosmosGProcessor
from kosmosg.checkpoint.export import save_export
from kosmosg.conditioners.alignernet import AlignerDecoder
from kosmosg.stages import Stage
from kosmosg_platform.config import plain
from kosmosg_platform.run_paths import RunPaths
from kosmosg_platform.training.initial_model import InitialModel, ModelConfig, absolute
from kosmosg_platform.training.mixture import DataConfig, Mixture, find_mixture
from kosmosg_platform.training.model_card import model_card
from kosmosg_platform.training.recipe import Collate, RecordSource, TrainingExperiment


class StageExperiment(TrainingExperiment):
    """The sections from which a stage's recipe is made; `jobs.experiment.Experiment` adds those of the other jobs."""

    parent: str | None = None
    """Model that a stage starts from: `toyworld:STAGE`, a folder, a URL or a Hub id; null takes the newest of the
    previous stage under `output`, `new` makes a new model as `pretrain` does."""
    decoder: str = "toyworld"
    """The frozen decoder: `toyworld`, or a folder or hub id of a Stable Diffusion pipeline."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()

    @field_validator("decoder")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return absolute(value)


@dataclass(frozen=True)
class StageRecipe(ABC):
    """A `Recipe` made from settings; small and picklable, it travels to the workers."""

    experiment: Any
    """The `StageExperiment`, with the stage's own sections."""
    initial: InitialModel
    mixture: Mixture

    stage: ClassVar[str]
    """`pretrain`, `align` or `instruct`."""

    @classmethod
    def of(cls, experiment: StageExperiment) -> Self:
        """The recipe that the settings mean. Raises ConfigError when data or parent are missing."""
        layout = RunPaths(experiment.output)
        mixture = find_mixture(cls.stage, experiment.data, layout)
        initial = InitialModel.of(cls.stage, experiment.model, experiment.decoder, experiment.parent, layout)
        return cls(experiment, initial, mixture)

    # -- what is a stage's own -------------------------------------------------------------------------------------

    @abstractmethod
    def shaping(self) -> Mapping[str, Any]:
        """What shapes the result beside model, data and row length: objective, templates, sizes. JSON-like."""

    @abstractmethod
    def build_stage(self) -> Stage:
        """The stage before its first step, on the CPU."""

    @abstractmethod
    def build_collate(self) -> Collate:
        """Records to a micro-batch."""

    def sample_images(self, stage: Stage) -> Sequence[tuple[str, Image.Image]]:
        """Named sample images of the current weights; none unless the stage has something to show."""
        return ()

    def aligner_decoder(self, stage: Stage) -> AlignerDecoder | None:
        """The aligner's decoder N, where the stage trains one: it is exported beside the model."""
        return None

    # -- what they share -------------------------------------------------------------------------------------------

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the run beside its section `train`, as digests of contents where there are contents."""
        return {
            **self.shaping(),
            "max_seq_len": self.experiment.data.max_seq_len,
            "data": self.mixture.fingerprint(),
            **self.initial.fingerprint(),
        }

    def lineage(self) -> dict[str, str]:
        """Where the stage came from, as tags of its MLflow run."""
        return self.initial.lineage()

    def datasets(self) -> Mapping[str, RecordSource]:
        """The sources by kind of sample."""
        return self.mixture.open()

    def weights(self) -> Mapping[str, float]:
        """Share of each source."""
        return self.mixture.weights

    def max_seq_len(self, processor: KosmosGProcessor, usual: int | None = None) -> int:
        """Longest row in tokens: the setting, else `usual`, and never more than the model can read."""
        return min(self.experiment.data.max_seq_len or usual or processor.max_length, processor.max_length)

    def save(self, stage: Stage, folder: Path, figures: Mapping[str, Any]) -> None:
        """Write the export folder; `figures` of the run are for its model card."""
        settings = plain(self.experiment)
        card = model_card(figures, settings, self.fingerprint())
        extra = self.aligner_decoder(stage)
        save_export(stage.export(), self.initial.processor(), folder, settings, card, extra)
