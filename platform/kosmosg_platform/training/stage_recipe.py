"""What the recipes of all stages share: initial model, mixture, identity, export.

A stage's job file subclasses `StageRecipe` and defines only what is specific to it: which module is trained, how
records become batches, what else affects the result, and which sample images to generate.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from PIL import Image
from pydantic import field_validator

from kosmosg import KosmosGProcessor
from kosmosg.checkpoint.export import save_export
from kosmosg.conditioners.alignernet import AlignerDecoder
from kosmosg.data.records import record_kind
from kosmosg.stages import Stage
from kosmosg_platform.config import plain
from kosmosg_platform.datasets.dataset import RecordDataset
from kosmosg_platform.datasets.precomputed import RecordsWithColumn
from kosmosg_platform.run_paths import RunPaths
from kosmosg_platform.training.columns import find_columns
from kosmosg_platform.training.held_out import find_held_out
from kosmosg_platform.training.initial_model import InitialModel, ModelConfig, absolute
from kosmosg_platform.training.mixture import DataConfig, Mixture, find_mixture
from kosmosg_platform.training.model_card import model_card
from kosmosg_platform.training.recipe import Collate, RecordSource, TrainingExperiment


class StageExperiment(TrainingExperiment):
    """The sections that a stage's recipe is built from; `jobs.experiment.Experiment` adds those of the other jobs."""

    parent: str | None = None
    """Model that a stage starts from: `toyworld:STAGE`, a folder, a URL or a Hub id; null takes the newest export of
    the previous stage under `output`, `new` creates a new model as `pretrain` does."""
    decoder: str = "toyworld"
    """The frozen image decoder: `toyworld`, or a folder or Hub id of a Stable Diffusion pipeline."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()

    @field_validator("decoder")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return absolute(value)


@dataclass(frozen=True)
class StageRecipe(ABC):
    """A `Recipe` built from settings; small and picklable, because it is sent to the workers."""

    experiment: Any
    """The `StageExperiment`, with the stage's own sections."""
    initial: InitialModel
    mixture: Mixture
    columns: Mapping[str, Path] = field(default_factory=dict)
    """Folders of the stage's precomputed column by kind of sample; empty if it does without."""
    held_out: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Samples of each kind that are not trained on, by index."""

    stage: ClassVar[str]
    """`pretrain`, `align` or `instruct`."""

    @classmethod
    def of(cls, experiment: StageExperiment) -> Self:
        """The recipe for these settings. Raises ConfigError if data or parent are missing."""
        layout = RunPaths(experiment.output)
        mixture = find_mixture(cls.stage, experiment.data, layout)
        initial = InitialModel.of(cls.stage, experiment.model, experiment.decoder, experiment.parent, layout)
        held_out = find_held_out(mixture, experiment.data.validation, cls.documents_per_row(experiment))
        recipe = cls(experiment, initial, mixture, held_out=held_out)
        return replace(recipe, columns=recipe._find_columns())

    def _find_columns(self) -> Mapping[str, Path]:
        column, mode = self.column(), self.experiment.data.precomputed
        if not column or mode == "never":
            return {}
        return find_columns(self.stage, mode, self.mixture.folders, column, self.column_identity)

    # -- what each stage defines -----------------------------------------------------------------------------------

    @abstractmethod
    def shaping(self) -> Mapping[str, Any]:
        """What affects the result besides model, data and row length: objective, templates, sizes. JSON-like."""

    @abstractmethod
    def build_stage(self) -> Stage:
        """The stage before its first step, on the CPU."""

    @abstractmethod
    def build_collate(self) -> Collate:
        """Turns records into a micro-batch."""

    def sample_images(self, stage: Stage) -> Sequence[tuple[str, Image.Image]]:
        """Named sample images of the current weights; empty by default."""
        return ()

    @classmethod
    def documents_per_row(cls, experiment: Any) -> int:
        """How many documents of a source of text are one sample; 0 where they are not grouped."""
        return 0

    def aligner_decoder(self, stage: Stage) -> AlignerDecoder | None:
        """The aligner's decoder N if the stage trains one; it is exported with the model."""
        return None

    def column(self) -> str:
        """Name of the precomputed column that the stage can read, if there is one."""
        return ""

    def fields(self, kind: str) -> Sequence[str]:
        """The fields that the stage reads of records of a kind; by default all."""
        names: list[str] = record_kind(kind).schema.names
        return names

    def column_identity(self) -> Mapping[str, Any]:
        """What the values of that column depend on."""
        return {}

    # -- what they share -------------------------------------------------------------------------------------------

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the run besides its section `train`, as digests of contents where possible."""
        return {
            **self.shaping(),
            "max_seq_len": self.experiment.data.max_seq_len,
            "data": self.mixture.fingerprint(),
            **({"validation": held} if (held := self.experiment.data.validation) else {}),
            **self.initial.fingerprint(),
        }

    def lineage(self) -> dict[str, str]:
        """Where the stage came from, as tags of its MLflow run."""
        return self.initial.lineage()

    def tracked_datasets(self) -> list[dict[str, str]]:
        """The datasets of the mixture."""
        return self.mixture.tracked()

    def datasets(self) -> Mapping[str, RecordSource]:
        """The sources by kind of sample, with the stage's precomputed column if it reads one."""
        datasets: Mapping[str, RecordSource] = self.mixture.open(fields=self.fields)
        if not self.columns:
            return datasets
        return {
            name: RecordsWithColumn(one, RecordDataset(self.columns[name]))
            for name, one in datasets.items()
            if isinstance(one, RecordDataset)
        }

    def weights(self) -> Mapping[str, float]:
        """Share of each source."""
        return self.mixture.weights

    def max_seq_len(self, processor: KosmosGProcessor, usual: int | None = None) -> int:
        """Maximum row length in tokens: the setting, else `usual`, but at most what the model can read."""
        return min(self.experiment.data.max_seq_len or usual or processor.max_length, processor.max_length)

    def save(self, stage: Stage, folder: Path, figures: Mapping[str, Any]) -> None:
        """Write the export folder; `figures` of the run go into its model card."""
        settings = plain(self.experiment)
        card = model_card(figures, settings, self.fingerprint())
        extra = self.aligner_decoder(stage)
        save_export(stage.export(), self.initial.processor(), folder, settings, card, extra)
