"""Stage 2, alignment: the aligner maps the frozen language model's states to CLIP's text embeddings.

    matching       = mean (M(s) - CLIP(caption))^2                 over B x Q x D
    reconstruction = mean (N(M(s)) - s)^2 * Q / T                  over B x T x C, pads included
    loss           = matching + reconstruction

s (B, T, C) are the language model's states of the caption. N reconstructs the states from the condition, so that M
keeps information that matching CLIP does not require; no other stage uses N. Trained: M and N, on captions alone.

Letters: B captions, T padded length, C language model width, Q queries, D condition width.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from transformers import CLIPTextModel

from kosmosg.conditioners.alignernet import AlignerDecoder
from kosmosg.data.precomputed import TEXT_STATES
from kosmosg.errors import ConfigError
from kosmosg.model import KosmosG
from kosmosg.stages import Batch, StageOutput, recompute, row_seeds, trainable_parameters

_ALIGNER_SIZES = ("d_model", "num_queries", "max_position_embeddings")


@dataclass(frozen=True)
class AlignObjective:
    """What stage 2 minimises; the defaults are the original's."""

    reconstruction: float = 1.0
    """Weight of the reconstruction loss relative to the matching loss."""
    dropout: bool = True
    """Keep the frozen language model in training mode: its dropout adds noise to the states, as in the original."""

    def __post_init__(self) -> None:
        if self.reconstruction < 0:
            raise ConfigError(f"align.reconstruction is {self.reconstruction}; a weight is at least 0")


class AlignStage(nn.Module):
    """The aligner M, its decoder N, and the two frozen models between which it maps.

    Batches: `kosmosg.data.collate.align.AlignCollate`.

    Args:
        model: the model whose aligner is trained; everything else is frozen.
        text_encoder: the text encoder that the U-Net was trained with; None if every batch has its states already
            (`kosmosg.data.precomputed`).
        objective: weights of the loss.
        decoder: N to start from, of an earlier stage 2 that trained this aligner; by default N is newly initialised.

    Raises:
        ConfigError: the aligner's width is not the text encoder's, or N belongs to a model of other sizes.
    """

    def __init__(
        self,
        model: KosmosG,
        text_encoder: CLIPTextModel | None,
        objective: AlignObjective | None = None,
        decoder: AlignerDecoder | None = None,
    ) -> None:
        super().__init__()
        width = model.config.aligner_config.d_model
        if text_encoder is not None and width != (wanted := text_encoder.config.hidden_size):
            raise ConfigError(
                f"the aligner gives conditions of width {width}, the decoder's text encoder of width {wanted}; "
                "choose a model and a decoder that fit"
            )
        self.model = model
        if decoder is not None:
            _check_sizes(model, decoder)
        self.decoder = AlignerDecoder(model.config) if decoder is None else decoder
        self.text_encoder = text_encoder
        self.objective = objective or AlignObjective()
        model.requires_grad_(False)
        model.aligner.requires_grad_(True)
        if text_encoder is not None:
            text_encoder.requires_grad_(False)
        self.train()

    def forward(self, batch: Batch) -> StageOutput:
        """Sum of matching and weighted reconstruction, in fp32."""
        input_ids = batch["input_ids"]
        with torch.no_grad():
            states = self.model.mllm.states(input_ids, seeds=row_seeds(batch))
            target = self._target(batch)
        padding = input_ids == self.model.config.text_config.pad_token_id
        condition = self.model.aligner(states, padding)
        rebuilt = self.decoder(condition, states.shape[1])
        matching, reconstruction = align_losses(condition, target, rebuilt, states)
        loss = matching + self.objective.reconstruction * reconstruction
        metrics = {"loss": loss, "matching": matching, "reconstruction": reconstruction}
        if "shortened" in batch:  # the share of captions that were too long and therefore shortened for both models
            metrics["captions_shortened"] = batch["shortened"].mean()
        return StageOutput(loss, {name: value.detach() for name, value in metrics.items()})

    def _target(self, batch: Batch) -> Tensor:
        if TEXT_STATES in batch:
            return batch[TEXT_STATES]
        if self.text_encoder is None:
            raise ConfigError("this stage has no text encoder, and the batch has no text_states; give it one of them")
        states: Tensor = self.text_encoder(input_ids=batch["clip_input_ids"]).last_hidden_state
        return states

    def train(self, mode: bool = True) -> Self:
        """The frozen text encoder never uses dropout; the language model does if the objective says so."""
        super().train(mode)
        if self.text_encoder is not None:
            self.text_encoder.eval()
        if not self.objective.dropout:
            self.model.mllm.eval()
        return self

    def trainable(self) -> list[tuple[str, Parameter]]:
        """M and N."""
        return trainable_parameters(self)

    def export(self) -> KosmosG:
        """The model with its new aligner, without N; that is `decoder`."""
        return self.model

    def checkpoint_activations(self) -> None:
        """Store only the inputs of the aligner's layers and recompute the rest in the backward pass."""
        recompute(self.model.aligner)
        recompute(self.decoder)


def _check_sizes(model: KosmosG, decoder: AlignerDecoder) -> None:
    """Check that N fits this model: same condition, same states, same maximum length."""
    for part, name in (("text_config", "embed_dim"), *(("aligner_config", name) for name in _ALIGNER_SIZES)):
        ours, theirs = (getattr(getattr(whole.config, part), name) for whole in (model, decoder))
        if ours != theirs:
            raise ConfigError(
                f"the aligner's decoder was made for {part}.{name} {theirs}, the model has {ours}; take the decoder of "
                "this model's own stage 2, or none to initialise a new one"
            )


def align_losses(condition: Tensor, target: Tensor, rebuilt: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """Matching and reconstruction loss, in fp32.

    Args:
        condition: (B, Q, D), output of M.
        target: (B, Q, D), output of CLIP's text encoder, after its final LayerNorm.
        rebuilt: (B, T, C), output of N.
        states: (B, T, C), output of the language model.

    Raises:
        ConfigError: condition and target differ in shape, for example because the number of CLIP tokens per caption
            differs from the aligner's number of queries.
    """
    if condition.shape != target.shape:
        raise ConfigError(
            f"the aligner gives a condition of {tuple(condition.shape)}, the text encoder {tuple(target.shape)}; "
            "tokenise captions to as many CLIP tokens as the aligner has queries"
        )
    matching = nn.functional.mse_loss(condition.float(), target.float())
    # Q / T as in the original: the sum over the states then weighs as much as the sum over the condition's Q tokens.
    scale = condition.shape[1] / states.shape[1]
    return matching, scale * nn.functional.mse_loss(rebuilt.float(), states.float())
