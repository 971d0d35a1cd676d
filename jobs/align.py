"""Stage 2: align the language model's hidden states with CLIP's text space, which the frozen U-Net understands.

Trains the aligner on captions alone. Starts from `pretrain` (or from parent=FOLDER, or from scratch with parent=new);
writes a model to <output>/align/export, from which `instruct` starts. It can be interrupted at any time: the same
command resumes. If the parent is itself a stage 2 model, trained here or imported, it includes N in its subfolder
`aligner_decoder`, and both halves of the aligner start from there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from PIL import Image
from transformers import CLIPTokenizer

from jobs.experiment import Experiment, main
from kosmosg import Prompt
from kosmosg.conditioners.alignernet import AlignerDecoder
from kosmosg.data.collate.align import AlignCollate
from kosmosg.data.precomputed import TEXT_STATES
from kosmosg.data.templates.instruct import caption_of
from kosmosg.diffusion.decoder import load_part, load_text_encoder, text_sizes
from kosmosg.stages import Stage
from kosmosg.stages.align import AlignStage
from kosmosg_platform.cluster.resources import require_resources
from kosmosg_platform.datasets.precomputed import empty_states
from kosmosg_platform.planning.flops import decoder_cost, stage_cost
from kosmosg_platform.training.columns import text_states_identity
from kosmosg_platform.training.sample_images import sample_sheet
from kosmosg_platform.training.stage_recipe import StageRecipe
from kosmosg_platform.training.trainer import FitResult, fit

MAX_SEQ_LEN = 86  # tokens, <s> and 85 more: the original skips longer captions (laion loader, stage 2)
SHOWN = 6  # captions of a sample sheet


class AlignRecipe(StageRecipe):
    """The recipe of stage 2, sent to its workers."""

    stage = "align"

    def shaping(self) -> dict[str, Any]:
        data = self.experiment.data
        return {
            "objective": asdict(self.experiment.align),
            "empty_captions": data.empty_captions,
            "pad_captions": data.pad_captions,
            **self.initial.aligner_decoder_fingerprint(),
        }

    def build_stage(self) -> AlignStage:
        model, _ = self.initial.load()
        encoder = None if self.columns else load_text_encoder(self.experiment.decoder)[0]
        return AlignStage(model, encoder, self.experiment.align, self.initial.load_aligner_decoder())

    def build_collate(self) -> AlignCollate:
        processor = self.initial.processor()
        data = self.experiment.data
        return AlignCollate(
            processor,
            load_part(CLIPTokenizer, self.experiment.decoder, "tokenizer"),
            clip_length=text_sizes(self.experiment.decoder)[0],
            length=self.max_seq_len(processor, MAX_SEQ_LEN),
            empty=data.empty_captions,
            pad_to_length=data.pad_captions,
            empty_states=empty_states(next(iter(self.columns.values()))) if self.columns else None,
        )

    def column(self) -> str:
        return TEXT_STATES

    def column_identity(self) -> Mapping[str, Any]:
        processor = self.initial.processor()
        length = self.max_seq_len(processor, MAX_SEQ_LEN)
        return text_states_identity(self.experiment.decoder, processor, length)

    def sample_images(self, stage: Stage) -> Sequence[tuple[str, Image.Image]]:
        """The first captions, through language model, aligner and decoder."""
        captions = next(iter(self.datasets().values()))
        prompts = [Prompt(caption_of(captions[row]).replace("<i>", "")) for row in range(min(SHOWN, len(captions)))]
        processor = self.initial.processor()
        # The stage itself has no U-Net: this one is in memory only while the sheet is made.
        sheet = sample_sheet(stage.export(), processor, self.experiment.decoder, prompts, [None] * len(prompts))
        return [("captions", sheet)]

    def aligner_decoder(self, stage: Stage) -> AlignerDecoder:
        assert isinstance(stage, AlignStage)  # what build_stage gave
        return stage.decoder

    def flops_of_sample(self, stage: Stage) -> float:
        """Of an average sample of the mixture, forward and backward, as `kosmosg plan` counts them."""
        decoder = decoder_cost(self.experiment.decoder)
        return stage_cost(self.stage, stage.export().config, decoder, self.weights()).flops


recipe = AlignRecipe.of


def run(experiment: Experiment) -> FitResult:
    """Train or resume stage 2; returns at once if it is finished."""
    require_resources(experiment.scale.training_workers(), address=experiment.scale.address)
    return fit(recipe(experiment), experiment)


if __name__ == "__main__":
    main("align", run)
