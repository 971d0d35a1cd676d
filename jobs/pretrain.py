"""Stage 1: teach the language model to read text with images in it.

Trains the language model, the resampler and the last block of the vision tower to predict the next token of text,
captioned images and interleaved documents. Needs a dataset (`kosmosg run build_dataset toyworld`); writes a model to
<output>/pretrain/export, from which `align` starts. It can be interrupted at any time: the same command resumes.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from jobs.experiment import Experiment, main
from kosmosg.data.collate.pretrain import PretrainCollate
from kosmosg.stages import Stage
from kosmosg.stages.pretrain import PretrainStage
from kosmosg_platform.cluster.resources import require_resources
from kosmosg_platform.planning.flops import decoder_cost, stage_cost
from kosmosg_platform.training.recipe import RecordSource
from kosmosg_platform.training.stage_recipe import StageRecipe
from kosmosg_platform.training.trainer import FitResult, fit


class PretrainRecipe(StageRecipe):
    """The recipe of stage 1, sent to its workers. It has no sample images, because the aligner is still untrained."""

    stage = "pretrain"

    def shaping(self) -> dict[str, Any]:
        return {
            "objective": asdict(self.experiment.pretrain),
            "templates": asdict(self.experiment.templates.pretrain),
        }

    def build_stage(self) -> PretrainStage:
        model, _ = self.initial.load()
        return PretrainStage(model, self.experiment.pretrain)

    @classmethod
    def documents_per_row(cls, experiment: Any) -> int:
        return int(experiment.templates.pretrain.documents_per_row)

    def datasets(self) -> Mapping[str, RecordSource]:
        return self.mixture.open(self.experiment.templates.pretrain.documents_per_row)

    def build_collate(self) -> PretrainCollate:
        processor = self.initial.processor()
        return PretrainCollate(processor, self.max_seq_len(processor), self.experiment.templates.pretrain)

    def flops_of_sample(self, stage: Stage) -> float:
        """Of an average sample of the mixture, forward and backward, as `kosmosg plan` counts them."""
        decoder = decoder_cost(self.experiment.decoder)
        return stage_cost(self.stage, stage.export().config, decoder, self.weights()).flops


recipe = PretrainRecipe.of


def run(experiment: Experiment) -> FitResult:
    """Train or resume stage 1; returns at once if it is finished."""
    require_resources(experiment.scale.training_workers(), address=experiment.scale.address)
    return fit(recipe(experiment), experiment)


if __name__ == "__main__":
    main("pretrain", run)
