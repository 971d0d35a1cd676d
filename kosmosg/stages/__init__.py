"""The three stages: each is a model and its objective in one module, and one loop runs them all.

    out = stage(batch)
    engine.backward(out.loss)
    engine.step()
    log(out.metrics)

`pretrain`, `align` and `instruct` hold one stage each and share no parent. Their formulas stand in
`docs/training.md`.
"""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from transformers import PreTrainedModel

from kosmosg.model import KosmosG
from kosmosg.model.mllm import KosmosGForConditionalGeneration

__all__ = ["Batch", "Stage", "StageOutput"]

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class StageOutput:
    """What one forward pass gives.

    `loss` is the scalar to send backward, a mean over `batch["weight"]` samples (stage 1: learnt tokens) of this
    micro-batch. `metrics` are detached scalars for the log, of which the first is the loss.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Stage(Protocol):
    """An `nn.Module` that is model + objective. It holds everything that its forward pass needs, frozen parts too."""

    def __call__(self, batch: Batch) -> StageOutput:
        """One forward pass over a micro-batch of the collate that belongs to the stage."""
        ...

    def trainable(self) -> list[tuple[str, Parameter]]:
        """Name (as in `named_parameters`) and parameter of everything that the optimizer owns."""
        ...

    def export(self) -> KosmosG:
        """The trained model without what only training needs."""
        ...

    def checkpoint_activations(self) -> None:
        """Trade time for memory: recompute every layer's activations in the backward pass. Results do not change."""
        ...


def trainable_parameters(stage: nn.Module) -> list[tuple[str, Parameter]]:
    """What the constructor of a stage left unfrozen."""
    return [(name, parameter) for name, parameter in stage.named_parameters() if parameter.requires_grad]


def recompute(model: PreTrainedModel) -> None:
    """Makes the layers of a model keep only their inputs and compute the rest again in the backward pass."""
    # The first name is the new one, which older releases of transformers 5 lack; the second warns where both exist.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def read(mllm: KosmosGForConditionalGeneration, batch: Batch) -> Tensor:
    """The language model's states (B, T, C) of a batch, with gradient to everything that reads, vision tower included.

    A batch without images shows the vision tower a blank one and adds nothing of it. Under ZeRO every rank must run
    the same modules in the same order, and another rank's batch may well have images.
    """
    pixels = batch.get("pixel_values")
    states = mllm.states(batch["input_ids"], batch.get("image_embeds_position_mask"), pixels)
    if pixels is None and torch.is_grad_enabled():
        vision = mllm.config.vision_config
        size = (1, vision.num_channels, vision.image_size, vision.image_size)
        blank = mllm.image_tokens(torch.zeros(size, device=states.device))
        states = states + 0.0 * blank.sum()
    return states
