"""The three stages: each is a model and its objective in one module, and one loop runs them all.

    out = stage(batch)
    engine.backward(out.loss)
    engine.step()
    log(out.metrics)

`pretrain`, `align` and `instruct` contain one stage each and share no base class. `docs/training.md` explains their
formulas.
"""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from transformers import PreTrainedModel

from kosmosg.layers.dropout import DropoutSeeds, image_seeds
from kosmosg.model import KosmosG
from kosmosg.model.mllm import KosmosGForConditionalGeneration

__all__ = ["Batch", "Stage", "StageOutput"]

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class StageOutput:
    """The result of one forward pass.

    `loss` is the scalar to backpropagate, a mean over `batch["weight"]` samples (stage 1: target tokens) of this
    micro-batch. `metrics` are detached scalars for the log; the first one is the loss.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Stage(Protocol):
    """An `nn.Module` with model and objective, including everything that its forward pass needs, also frozen parts."""

    def __call__(self, batch: Batch) -> StageOutput:
        """One forward pass over a micro-batch from the stage's collate."""
        ...

    def trainable(self) -> list[tuple[str, Parameter]]:
        """Name (as in `named_parameters`) and parameter of everything that the optimizer updates."""
        ...

    def export(self) -> KosmosG:
        """The trained model, without what only training needs."""
        ...

    def checkpoint_activations(self) -> None:
        """Trade time for memory: recompute every layer's activations in the backward pass. Results do not change."""
        ...


def trainable_parameters(stage: nn.Module) -> list[tuple[str, Parameter]]:
    """The parameters that the constructor of a stage left unfrozen."""
    return [(name, parameter) for name, parameter in stage.named_parameters() if parameter.requires_grad]


def recompute(model: PreTrainedModel) -> None:
    """Enables activation checkpointing: layers store only their inputs and recompute the rest in the backward pass."""
    # The first name is the new one, which older releases of transformers 5 lack; the second warns where both exist.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def read(mllm: KosmosGForConditionalGeneration, batch: Batch) -> Tensor:
    """The language model's states (B, T, C) of a batch, with gradient, including to the vision tower.

    In a batch without images, vision tower and resampler run on a blank one, which contributes exactly nothing,
    whatever they make of it. Under ZeRO every rank must run the same modules in the same order, and another rank's
    batch may have images: ZeRO-2 adds up gradients in the order in which the backward pass makes them, and ZeRO-3
    gathers weights in the order of the forward pass, also where no gradient is needed. So the blank image runs where
    images do, right behind the token embeddings.
    """
    input_ids, pixels = batch["input_ids"], batch.get("pixel_values")
    slots = batch.get("image_embeds_position_mask")
    embeddings: Tensor = mllm.get_input_embeddings()(input_ids)
    if pixels is None or not len(pixels):
        vision = mllm.config.vision_config
        size = (1, vision.num_channels, vision.image_size, vision.image_size)
        blank = mllm.image_tokens(torch.zeros(size, device=embeddings.device))
        # The sum of no elements, rather than all of them times 0, which is not 0 for infinity and NaN.
        embeddings = mllm.insert_images(embeddings, slots) + blank[:0].sum()
    else:
        of_images = None
        if "seed" in batch and slots is not None:
            of_images = image_seeds(batch["seed"].to(slots.device), slots, len(pixels))
        embeddings = mllm.insert_images(embeddings, slots, image_tokens=mllm.image_tokens(pixels, of_images))
    return mllm.states(input_ids, inputs_embeds=embeddings, seeds=row_seeds(batch))


def row_seeds(batch: Batch) -> DropoutSeeds | None:
    """What dropout of each row follows from; None if the batch has no seeds, which leaves it to torch's generator."""
    return DropoutSeeds.of(batch["seed"].to(batch["input_ids"].device)) if "seed" in batch else None
