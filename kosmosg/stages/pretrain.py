"""Stage 1, multimodal language modelling: predict the next token of text with images in it.

    loss = mean over target tokens of -log p(token | everything before it)

Trained: the language model, the resampler, the last block of the vision tower and its final LayerNorm. The data
(`labels`) decides which tokens are targets. The aligner is not used yet.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils.checkpoint import checkpoint

from kosmosg.data.templates.pretrain import IGNORED
from kosmosg.errors import ConfigError
from kosmosg.model import KosmosG
from kosmosg.model.vision import freeze_vision
from kosmosg.stages import Batch, StageOutput, read, recompute, trainable_parameters


@dataclass(frozen=True)
class PretrainObjective:
    """What stage 1 minimises."""

    logit_slices: int = 1
    """Number of slices in which the projection to the vocabulary is computed. With more than 1, each slice is computed
    twice and its logits are not stored: with 64,007 tokens, 16,384 targets have 4.2 GB of fp32 logits."""

    def __post_init__(self) -> None:
        if self.logit_slices < 1:
            raise ConfigError(f"pretrain.logit_slices is {self.logit_slices}; it is at least 1")


class PretrainStage(nn.Module):
    """The language model under its next-token loss. Batches: `kosmosg.data.collate.pretrain.PretrainCollate`."""

    def __init__(self, model: KosmosG, objective: PretrainObjective | None = None) -> None:
        super().__init__()
        self.model = model
        self.objective = objective or PretrainObjective()
        model.requires_grad_(False)
        model.mllm.requires_grad_(True)
        freeze_vision(model.mllm.vision_model)

    def forward(self, batch: Batch) -> StageOutput:
        """Mean negative log likelihood in nats over the target tokens of the batch; 0 if there are none."""
        states = read(self.model.mllm, batch)
        learnt = batch["labels"] != IGNORED
        # Logits are computed only for targets: in a caption batch, two thirds of the positions are image slots.
        kept, targets = states[learnt], batch["labels"][learnt]
        total = torch.zeros((), device=states.device)
        # A fixed number of slices, however few tokens there are: under ZeRO-3 every rank must call the projection
        # equally often.
        slices = self.objective.logit_slices
        for part, words in zip(kept.tensor_split(slices), targets.tensor_split(slices), strict=True):
            if slices == 1:
                total = total + self._negative_log_likelihood(part, words)
            else:
                total = total + checkpoint(self._negative_log_likelihood, part, words, use_reentrant=False)
        tokens = learnt.sum()
        loss = total / tokens.clamp(min=1)
        return StageOutput(loss, {"loss": loss.detach(), "tokens": tokens.float()})

    def trainable(self) -> list[tuple[str, Parameter]]:
        """Language model, resampler, last vision block and final LayerNorm."""
        return trainable_parameters(self)

    def export(self) -> KosmosG:
        """The model; its aligner is still untrained."""
        return self.model

    def checkpoint_activations(self) -> None:
        """Store only the inputs of the layers and recompute the rest in the backward pass."""
        recompute(self.model.mllm)

    def _negative_log_likelihood(self, states: Tensor, targets: Tensor) -> Tensor:
        logits = self.model.mllm.logits(states).float()
        return nn.functional.cross_entropy(logits, targets, reduction="sum")
