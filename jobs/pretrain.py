"""Stage 1: teach the language model to read text in which images stand.

Trains the language model, the resampler and the last block of the vision tower to predict the next word of captions,
captioned images and interleaved documents. Needs a dataset (`kosmosg run build_dataset toyworld`); leaves a model in
<output>/pretrain/export, from which `align` starts. Stop it whenever you like: the same command goes on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from jobs.experiment import Experiment, main
from kosmosg.checkpoint.export import save_export
from kosmosg.data.collate.base import PretrainCollate
from kosmosg.stages import Stage
from kosmosg.stages.pretrain import PretrainStage
from kosmosg_platform.config import plain
from kosmosg_platform.datasets.dataset import RecordDataset
from kosmosg_platform.run_paths import RunPaths
from kosmosg_platform.training.initial_model import InitialModel, Mixture, find_mixture
from kosmosg_platform.training.model_card import model_card
from kosmosg_platform.training.trainer import FitResult, fit


@dataclass(frozen=True)
class PretrainRecipe:
    """What travels to the workers of stage 1."""

    experiment: Experiment
    origin: InitialModel
    mixture: Mixture
    stage: str = "pretrain"

    def facts(self) -> dict[str, Any]:
        return {
            "objective": asdict(self.experiment.pretrain),
            "templates": asdict(self.experiment.templates.pretrain),
            "length": self.experiment.data.length,
            "data": self.mixture.facts(),
            **self.origin.facts(),
        }

    def lineage(self) -> dict[str, str]:
        return self.origin.lineage()

    def build_stage(self) -> PretrainStage:
        model, _ = self.origin.load()
        return PretrainStage(model, self.experiment.pretrain)

    def datasets(self) -> Mapping[str, RecordDataset]:
        return self.mixture.open()

    def weights(self) -> Mapping[str, float]:
        return self.mixture.weights

    def build_collate(self) -> PretrainCollate:
        processor = self.origin.processor()
        length = min(self.experiment.data.length or processor.max_length, processor.max_length)
        return PretrainCollate(processor, length, self.experiment.templates.pretrain)

    def pictures(self, stage: Stage) -> Sequence[tuple[str, Image.Image]]:
        return ()  # its aligner is untrained: there is nothing to see yet

    def save(self, stage: Stage, folder: Path, facts: Mapping[str, Any]) -> None:
        settings = plain(self.experiment)
        card = model_card(facts, settings, self.facts())
        save_export(stage.export(), self.origin.processor(), folder, settings, card)


def recipe(experiment: Experiment) -> PretrainRecipe:
    """The recipe that the settings mean. Raises ConfigError when data or parent are missing."""
    layout = RunPaths(experiment.output)
    origin = InitialModel.of("pretrain", experiment.model, experiment.decoder, experiment.parent, layout)
    return PretrainRecipe(experiment, origin, find_mixture("pretrain", experiment.data, layout))


def run(experiment: Experiment) -> FitResult:
    """Train, go on with, or find finished, stage 1."""
    return fit(recipe(experiment), experiment)


if __name__ == "__main__":
    main("pretrain", run)
