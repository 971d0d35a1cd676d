"""Stage 3: instruction tuning by composition: draw what text and images together ask for.

Trains language model, resampler and aligner through the frozen U-Net on composition, editing and captioned images.
Starts from `align` (or from parent=FOLDER); leaves a model in <output>/instruct/export, which `generate`, `evaluate`
and `kosmosg serve` take. Stop it whenever you like: the same command goes on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from jobs.experiment import Experiment, main
from kosmosg import Prompt
from kosmosg.checkpoint.export import save_export
from kosmosg.data.collate.base import InstructCollate
from kosmosg.diffusion.decoder import FrozenDecoder
from kosmosg.errors import CheckpointError
from kosmosg.hub import decoder_folder
from kosmosg.stages import Stage
from kosmosg.stages.instruct import InstructStage
from kosmosg_platform.config import plain
from kosmosg_platform.datasets.dataset import RecordDataset
from kosmosg_platform.run_paths import RunPaths
from kosmosg_platform.training.initial_model import InitialModel, Mixture, find_mixture
from kosmosg_platform.training.model_card import model_card
from kosmosg_platform.training.sample_images import sample_sheet
from kosmosg_platform.training.sampler import MixtureSampler
from kosmosg_platform.training.trainer import FitResult, fit

SHOWN = 8  # prompts of a sample sheet


@dataclass(frozen=True)
class InstructRecipe:
    """What travels to the workers of stage 3."""

    experiment: Experiment
    origin: InitialModel
    mixture: Mixture
    image_size: int
    """Pixels per side of the target, the decoder's own."""
    stage: str = "instruct"

    def facts(self) -> dict[str, Any]:
        return {
            "objective": asdict(self.experiment.instruct),
            "templates": asdict(self.experiment.templates.instruct),
            "length": self.experiment.data.length,
            "image_size": self.image_size,
            "data": self.mixture.facts(),
            **self.origin.facts(),
        }

    def lineage(self) -> dict[str, str]:
        return self.origin.lineage()

    def build_stage(self) -> InstructStage:
        model, processor = self.origin.load()
        decoder = FrozenDecoder.from_pretrained(self.experiment.decoder)
        return InstructStage(model, decoder, processor.null()["input_ids"], self.experiment.instruct)

    def datasets(self) -> Mapping[str, RecordDataset]:
        return self.mixture.open()

    def weights(self) -> Mapping[str, float]:
        return self.mixture.weights

    def build_collate(self) -> InstructCollate:
        processor = self.origin.processor()
        length = min(self.experiment.data.length or processor.max_length, processor.max_length)
        return InstructCollate(processor, self.image_size, length, self.experiment.templates.instruct)

    def pictures(self, stage: Stage) -> Sequence[tuple[str, Image.Image]]:
        """The first samples of the mixture: prompt, what is drawn, and the record's own image."""
        datasets, collate = self.datasets(), self.build_collate()
        sizes = {kind: len(dataset) for kind, dataset in datasets.items()}
        order = MixtureSampler(sizes, self.weights(), self.experiment.train.seed, SHOWN)
        examples = [collate.example(draw, datasets[draw.source][draw.index]) for draw in order.step(0)]
        sheet = sample_sheet(
            stage.export(),
            collate.processor,
            self.experiment.decoder,
            [Prompt.from_parts(example.parts) for example in examples],
            [example.target for example in examples],
        )
        return [("prompts", sheet)]

    def save(self, stage: Stage, folder: Path, facts: Mapping[str, Any]) -> None:
        settings = plain(self.experiment)
        card = model_card(facts, settings, self.facts())
        save_export(stage.export(), self.origin.processor(), folder, settings, card)


def recipe(experiment: Experiment) -> InstructRecipe:
    """The recipe that the settings mean. Raises ConfigError when data or parent are missing."""
    layout = RunPaths(experiment.output)
    sources = find_mixture("instruct", experiment.data, layout)
    origin = InitialModel.of("instruct", experiment.model, experiment.decoder, experiment.parent, layout)
    return InstructRecipe(experiment, origin, sources, image_size(experiment.decoder))


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


def run(experiment: Experiment) -> FitResult:
    """Train, go on with, or find finished, stage 3."""
    return fit(recipe(experiment), experiment)


if __name__ == "__main__":
    main("instruct", run)
