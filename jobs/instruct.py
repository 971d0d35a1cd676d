"""Stage 3: instruction tuning by composition, so that the model generates what text and images together describe.

Trains language model, resampler and aligner through the frozen U-Net on composition, editing and captioned images.
Starts from `align` (or from parent=FOLDER); writes a model to <output>/instruct/export, which `generate`, `evaluate`
and `kosmosg serve` use. It can be interrupted at any time: the same command resumes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from PIL import Image

from jobs.experiment import Experiment, main
from kosmosg import Prompt
from kosmosg.data.collate.base import SampleKey
from kosmosg.data.collate.instruct import InstructCollate
from kosmosg.data.precomputed import POSTERIOR
from kosmosg.data.records import record_kind
from kosmosg.diffusion.decoder import FrozenDecoder, decoder_sizes
from kosmosg.stages import Stage
from kosmosg.stages.instruct import InstructStage
from kosmosg_platform.cluster.resources import require_resources
from kosmosg_platform.planning.flops import decoder_cost, stage_cost
from kosmosg_platform.training.columns import posterior_identity
from kosmosg_platform.training.recipe import Record
from kosmosg_platform.training.replacement import usable
from kosmosg_platform.training.sample_images import sample_sheet
from kosmosg_platform.training.sampler import MixtureSampler
from kosmosg_platform.training.stage_recipe import StageRecipe
from kosmosg_platform.training.trainer import FitResult, fit

SHOWN = 8  # prompts of a sample sheet


class InstructRecipe(StageRecipe):
    """The recipe of stage 3, sent to its workers."""

    stage = "instruct"

    def shaping(self) -> dict[str, Any]:
        return {
            "objective": asdict(self.experiment.instruct),
            "templates": asdict(self.experiment.templates.instruct),
            "image_size": decoder_sizes(self.experiment.decoder).image,
            **({"scaled_decoding": True} if self.experiment.data.scaled_decoding else {}),
        }

    def build_stage(self) -> InstructStage:
        model, processor = self.initial.load()
        decoder = FrozenDecoder.from_pretrained(self.experiment.decoder)
        return InstructStage(model, decoder, processor.null()["input_ids"], self.experiment.instruct)

    def build_collate(self) -> InstructCollate:
        processor = self.initial.processor()
        sizes = decoder_sizes(self.experiment.decoder)
        return InstructCollate(
            processor,
            sizes.image,
            self.max_seq_len(processor),
            self.experiment.templates.instruct,
            latent_shape=sizes.latent if self.columns else None,
            scaled_decoding=self.experiment.data.scaled_decoding,
        )

    def fields(self, kind: str) -> Sequence[str]:
        """All, but with the posterior of the target image not the image itself."""
        return [name for name in super().fields(kind) if not self.columns or name != record_kind(kind).target]

    def column(self) -> str:
        return POSTERIOR

    def column_identity(self) -> Mapping[str, Any]:
        return posterior_identity(self.experiment.decoder)

    def sample_images(self, stage: Stage) -> Sequence[tuple[str, Image.Image]]:
        """The first samples of the mixture: prompt, generated image, and the record's own image."""
        assert isinstance(stage, InstructStage)  # what build_stage gave
        datasets, collate = self.mixture.open(), self.build_collate()
        sizes = {kind: len(dataset) for kind, dataset in datasets.items()}
        order = MixtureSampler(sizes, self.weights(), self.experiment.train.seed, SHOWN)

        def shown(key: SampleKey, record: Record) -> tuple[Prompt, Image.Image]:
            example = collate.example(key, record)
            return Prompt.from_parts(example.parts), example.target

        examples = [usable(key, datasets[key.source], shown)[0] for key in order.step(0)]
        sheet = sample_sheet(
            stage.export(),
            collate.processor,
            self.experiment.decoder,
            [prompt for prompt, _ in examples],
            [target for _, target in examples],
            stage.decoder,
        )
        return [("prompts", sheet)]

    def flops_of_sample(self, stage: Stage) -> float:
        """Of an average sample of the mixture, forward and backward, as `kosmosg plan` counts them."""
        decoder = decoder_cost(self.experiment.decoder)
        return stage_cost(self.stage, stage.export().config, decoder, self.weights()).flops


recipe = InstructRecipe.of


def run(experiment: Experiment) -> FitResult:
    """Train or resume stage 3; returns at once if it is finished."""
    require_resources(experiment.scale.training_workers(), address=experiment.scale.address)
    return fit(recipe(experiment), experiment)


if __name__ == "__main__":
    main("instruct", run)
