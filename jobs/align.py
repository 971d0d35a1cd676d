"""Stage 2: teach the aligner to speak CLIP, so that the frozen U-Net understands what the language model says.

Trains the aligner on captions alone. Starts from `pretrain` (or from parent=FOLDER, or from scratch with parent=new);
leaves a model in <output>/align/export, from which `instruct` starts. Stop it whenever you like: the same command goes
on. A parent that is itself of stage 2, trained here or imported, brings N in its subfolder `aligner_decoder`, and both
halves of the aligner go on from there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from jobs.experiment import Experiment, main
from kosmosg import Prompt
from kosmosg.checkpoint.export import save_export
from kosmosg.data.collate.base import AlignCollate
from kosmosg.data.templates.instruct import caption_of
from kosmosg.diffusion.decoder import load_text_encoder
from kosmosg.stages import Stage
from kosmosg.stages.align import AlignStage
from kosmosg_platform.config import plain
from kosmosg_platform.datasets.dataset import RecordDataset
from kosmosg_platform.run_paths import RunPaths
from kosmosg_platform.training.initial_model import InitialModel, Mixture, find_mixture
from kosmosg_platform.training.model_card import model_card
from kosmosg_platform.training.sample_images import sample_sheet
from kosmosg_platform.training.trainer import FitResult, fit

LENGTH = 86  # tokens, <s> and 85 more: the original leaves out longer captions (laion loader, stage 2)
SHOWN = 6  # captions of a sample sheet


@dataclass(frozen=True)
class AlignRecipe:
    """What travels to the workers of stage 2."""

    experiment: Experiment
    origin: InitialModel
    mixture: Mixture
    stage: str = "align"

    def facts(self) -> dict[str, Any]:
        data = self.experiment.data
        return {
            "objective": asdict(self.experiment.align),
            "length": data.length,
            "empty_captions": data.empty_captions,
            "pad_captions": data.pad_captions,
            "data": self.mixture.facts(),
            **self.origin.facts(),
            **self.origin.decoder_facts(),
        }

    def lineage(self) -> dict[str, str]:
        return self.origin.lineage()

    def build_stage(self) -> AlignStage:
        model, _ = self.origin.load()
        encoder, _ = load_text_encoder(self.experiment.decoder)
        return AlignStage(model, encoder, self.experiment.align, self.origin.load_aligner_decoder())

    def datasets(self) -> Mapping[str, RecordDataset]:
        return self.mixture.open()

    def weights(self) -> Mapping[str, float]:
        return self.mixture.weights

    def build_collate(self) -> AlignCollate:
        processor = self.origin.processor()
        encoder, tokenizer = load_text_encoder(self.experiment.decoder)
        data = self.experiment.data
        return AlignCollate(
            processor,
            tokenizer,
            clip_length=encoder.config.max_position_embeddings,
            length=min(data.length or LENGTH, processor.max_length),
            empty=data.empty_captions,
            pad_to_length=data.pad_captions,
        )

    def pictures(self, stage: Stage) -> Sequence[tuple[str, Image.Image]]:
        """The first captions, drawn through language model and aligner."""
        captions = next(iter(self.datasets().values()))
        prompts = [Prompt(caption_of(captions[row]).replace("<i>", "")) for row in range(min(SHOWN, len(captions)))]
        processor = self.origin.processor()
        sheet = sample_sheet(stage.export(), processor, self.experiment.decoder, prompts, [None] * len(prompts))
        return [("captions", sheet)]

    def save(self, stage: Stage, folder: Path, facts: Mapping[str, Any]) -> None:
        assert isinstance(stage, AlignStage)  # what build_stage gave
        settings = plain(self.experiment)
        card = model_card(facts, settings, self.facts())
        save_export(stage.export(), self.origin.processor(), folder, settings, card, stage.decoder)


def recipe(experiment: Experiment) -> AlignRecipe:
    """The recipe that the settings mean. Raises ConfigError when data or parent are missing."""
    layout = RunPaths(experiment.output)
    sources = find_mixture("align", experiment.data, layout)
    origin = InitialModel.of("align", experiment.model, experiment.decoder, experiment.parent, layout)
    return AlignRecipe(experiment, origin, sources)


def run(experiment: Experiment) -> FitResult:
    """Train, go on with, or find finished, stage 2."""
    return fit(recipe(experiment), experiment)


if __name__ == "__main__":
    main("align", run)
