"""Stage 3, instruction tuning by composition: trains the language model and aligner through the frozen U-Net.

    loss = mean over samples of  w(t) * mean (U-Net(z_t, t, condition) - target)^2

z_t is the image's latent with noise at timestep t; `target` is the noise, or the velocity for v-prediction decoders.
The gradient flows through the frozen U-Net into the aligner, the language model and the resampler. With probability 0.1
a sample's condition is replaced by the null condition, `<s>` through language model and aligner, which is recomputed in
each step and trained with the rest, because guidance uses it later.

Every random number of a sample follows from its seed in the batch, so the same samples get the same noise and dropout
whatever the number of workers. All samples of a step share its null condition, whose dropout follows from `step_seed`.

Letters: B samples, Q queries, D condition width, (c, h, w) latent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from kosmosg.data.precomputed import POSTERIOR
from kosmosg.diffusion.decoder import FrozenDecoder
from kosmosg.errors import ConfigError
from kosmosg.layers.dropout import DropoutSeeds
from kosmosg.model import KosmosG
from kosmosg.model.vision import freeze_vision
from kosmosg.stages import Batch, StageOutput, read, recompute, trainable_parameters


@dataclass(frozen=True)
class InstructObjective:
    """What stage 3 minimises; the defaults are the original's."""

    null_drop: float = 0.1
    """Probability that a sample's condition is replaced by the null condition."""
    timesteps: Literal["uniform", "informative"] = "uniform"
    """`uniform` as in the original. `informative` samples mostly timesteps at which the condition can still change what
    the image shows; the toy world learns from far fewer samples with it."""
    uniform_share: float = 0.3
    """Share of informative timesteps that are sampled uniformly."""
    centre: float = 0.47
    """Mean of the other informative timesteps, as a fraction of the noise schedule."""
    spread: float = 0.17
    """Standard deviation of the other informative timesteps, as a fraction of the noise schedule."""
    weight_limit: float = 6.0
    """Maximum loss weight of an informative sample of an epsilon decoder. The weight is 1 / alphas_cumprod(t), so that
    an error in the image counts as much as in the loss of a v-prediction decoder, which needs no weights."""

    def __post_init__(self) -> None:
        for name in ("null_drop", "uniform_share"):
            chance = getattr(self, name)
            if not 0.0 <= chance <= 1.0:
                raise ConfigError(f"instruct.{name} is {chance}; a probability lies between 0 and 1")
        if self.timesteps not in ("uniform", "informative"):
            raise ConfigError(f"instruct.timesteps is {self.timesteps!r}; choose 'uniform' or 'informative'")
        if self.spread <= 0 or self.weight_limit <= 0:
            raise ConfigError(
                f"instruct.spread is {self.spread} and instruct.weight_limit {self.weight_limit}; both must be above 0"
            )


@dataclass(frozen=True)
class Noise:
    """The random numbers of a batch: VAE sample, added noise, timesteps, and which samples drop their condition."""

    sample: Tensor  # (B, c, h, w)
    noise: Tensor  # (B, c, h, w)
    timesteps: Tensor  # (B,) long
    dropped: Tensor  # (B,) bool

    def to(self, device: torch.device) -> Self:
        """All four on another device."""
        return replace(self, **{field.name: getattr(self, field.name).to(device) for field in fields(self)})


class InstructStage(nn.Module):
    """The whole model in front of a frozen decoder. Batches: `kosmosg.data.collate.instruct.InstructCollate`.

    Args:
        model: the model to train: all of it except the vision tower, of which only the last block and final LayerNorm
            are trained.
        decoder: U-Net, VAE and noise schedule.
        null_ids: (1, T) the tokens of the null prompt, from `KosmosGProcessor.null`.
        objective: see `InstructObjective`.
    """

    null_ids: Tensor

    def __init__(
        self,
        model: KosmosG,
        decoder: FrozenDecoder,
        null_ids: Tensor | Sequence[Sequence[int]],
        objective: InstructObjective | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.decoder = decoder
        self.objective = objective or InstructObjective()
        self.register_buffer("null_ids", torch.as_tensor(null_ids, dtype=torch.long), persistent=False)
        model.requires_grad_(True)
        freeze_vision(model.mllm.vision_model)
        decoder.requires_grad_(False)
        self.train()

    def forward(self, batch: Batch) -> StageOutput:
        """Mean weighted denoising error; where there are weights, `mse` is the same without them."""
        random = self.noise(batch["seed"]).to(batch["input_ids"].device)
        condition = self.condition(batch)
        # Computed in every step, whether a sample is dropped or not, so that gradients flow through the same modules on
        # every rank, as ZeRO requires.
        step = DropoutSeeds.of(batch["step_seed"].reshape(1)) if "step_seed" in batch else None
        null = self.model.aligner(self.model.mllm.states(self.null_ids, seeds=step), None)
        condition = torch.where(random.dropped[:, None, None], null, condition)
        if POSTERIOR in batch:
            latents = self.decoder.sample(batch[POSTERIOR], random.sample)
        else:
            latents = self.decoder.latents(batch["target_pixels"], random.sample)
        errors = self.decoder.loss(latents, condition, random.noise, random.timesteps)
        loss = (self.weights(random.timesteps) * errors).mean()
        metrics = {"loss": loss, "dropped": random.dropped.float().mean()}
        if self.weighted:
            metrics["mse"] = errors.mean()
        return StageOutput(loss, {name: value.detach() for name, value in metrics.items()})

    def condition(self, batch: Batch) -> Tensor:
        """(B, Q, D), with gradient."""
        states = read(self.model.mllm, batch)
        padding = batch["input_ids"] == self.model.config.text_config.pad_token_id
        condition: Tensor = self.model.aligner(states, padding)
        return condition

    def noise(self, seeds: Tensor) -> Noise:
        """The random numbers of each sample, from its seed alone. (B,) long seeds to tensors on the CPU."""
        rows = [self._noise_of(int(seed)) for seed in seeds.tolist()]
        return Noise(*(torch.stack(column) for column in zip(*rows, strict=True)))

    @property
    def weighted(self) -> bool:
        """Whether timesteps have different weights in the loss."""
        return self.objective.timesteps != "uniform" and self.decoder.prediction_type != "v_prediction"

    def weights(self, timesteps: Tensor) -> Tensor:
        """(B,) weight of each sample's error in the loss."""
        if not self.weighted:
            return torch.ones_like(timesteps, dtype=torch.float32)
        kept = self.decoder.alphas_cumprod[timesteps].float()
        return kept.reciprocal().clamp(max=self.objective.weight_limit)

    def trainable(self) -> list[tuple[str, Parameter]]:
        """Language model, resampler, last vision block and final LayerNorm, aligner."""
        return trainable_parameters(self)

    def export(self) -> KosmosG:
        """The trained model, without the decoder."""
        return self.model

    def checkpoint_activations(self) -> None:
        """Store only the inputs of layers and U-Net blocks, and recompute the rest in the backward pass."""
        recompute(self.model)
        self.decoder.unet.enable_gradient_checkpointing()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # An engine casts the whole stage to its precision, buffers too. In bf16 the first timesteps' share of signal
        # rounds to 1, and their noise would vanish: the schedule moves between devices but keeps its fp32 values.
        schedule = self.decoder.alphas_cumprod
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.decoder.alphas_cumprod = schedule.to(self.decoder.alphas_cumprod.device)
        return self

    def _noise_of(self, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shape = self.decoder.latent_shape
        sample, noise = torch.randn(2, *shape, generator=generator)
        # The same number of values is drawn in every case, so that changing one setting leaves the other noise alone.
        drop, place, choice = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        offset = torch.randn((), generator=generator, dtype=torch.float64).item()
        last = self.decoder.num_timesteps - 1
        if self.objective.timesteps == "uniform" or choice < self.objective.uniform_share:
            timestep = int(place * self.decoder.num_timesteps)
        else:
            timestep = round((self.objective.centre + self.objective.spread * offset) * self.decoder.num_timesteps)
        timestep = min(max(timestep, 0), last)
        return sample, noise, torch.tensor(timestep), torch.tensor(drop < self.objective.null_drop)
