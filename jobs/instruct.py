"""Stage 3: instruction tuning by composition, so that the model generates what text and images together describe.

Trains language model, resampler and aligner through the frozen U-Net on composition, editing and captioned images.
Starts from `align` (or from parent=FOLDER); writes a model to <output>/instruct/export, which `generate`, `evaluate`
and `kosmosg serve` use. It can be interrupted at any time: the same command resumes.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from PIL import Image

from jobs.experiment import Experiment, main
from kosmosg import Prompt
from kosmosg.data.collate.instruct import InstructCollate
from kosmosg.diffusion.decoder import FrozenDecoder
from kosmosg.errors import CheckpointError
from kosmosg.hub import decoder_folder
from kosmosg.stages import Stage
from kosmosg.stages.instruct import InstructStage
from kosmosg_platform.cluster.resources import require_resources
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
            "image_size": image_size(self.experiment.decoder),
        }

    def build_stage(self) -> InstructStage:
        model, processor = self.initial.load()
        decoder = FrozenDecoder.from_pretrained(self.experiment.decoder)
        return InstructStage(model, decoder, processor.null()["input_ids"], self.experiment.instruct)

    def build_collate(self) -> InstructCollate:
        processor = self.initial.processor()
        size = image_size(self.experiment.decoder)
        return InstructCollate(processor, size, self.max_seq_len(processor), self.experiment.templates.instruct)

    def sample_images(self, stage: Stage) -> Sequence[tuple[str, Image.Image]]:
        """The first samples of the mixture: prompt, generated image, and the record's own image."""
        assert isinstance(stage, InstructStage)  # what build_stage gave
        datasets, collate = self.datasets(), self.build_collate()
        sizes = {kind: len(dataset) for kind, dataset in datasets.items()}
        order = MixtureSampler(sizes, self.weights(), self.experiment.train.seed, SHOWN)
        examples = [collate.example(key, datasets[key.source][key.index]) for key in order.step(0)]
        sheet = sample_sheet(
            stage.export(),
            collate.processor,
            self.experiment.decoder,
            [Prompt.from_parts(example.parts) for example in examples],
            [example.target for example in examples],
            stage.decoder,
        )
        return [("prompts", sheet)]


def image_size(decoder: str) -> int:
    """Pixels per side that a decoder was trained on, from its configuration alone. Raises CheckpointError."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    place = decoder_folder(decoder)
    try:
        unet = UNet2DConditionModel.load_config(place, subfolder="unet")
        vae = AutoencoderKL.load_config(place, subfolder="vae")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"decoder {place} is neither a Stable Diffusion folder nor a reachable Hub id "
            f"({str(error).splitlines()[0]}); give decoder=FOLDER or decoder=toyworld"
        ) from error
    return int(unet["sample_size"]) * int(2 ** (len(vae["block_out_channels"]) - 1))


recipe = InstructRecipe.of


def run(experiment: Experiment) -> FitResult:
    """Train or resume stage 3; returns at once if it is finished."""
    require_resources(experiment.scale.training_workers(), address=experiment.scale.address)
    return fit(recipe(experiment), experiment)


if __name__ == "__main__":
    main("instruct", run)
