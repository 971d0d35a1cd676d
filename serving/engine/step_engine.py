"""The step engine: images at different denoising steps share one U-Net batch.

One `tick` is one U-Net call. Whoever is admitted joins at the next tick, whoever leaves frees its rows at the next
tick, and every order keeps its own scheduler, so an image does not depend on its company (beyond rounding). It knows
conditions and images; it knows nothing of prompts, HTTP or Ray.

Letters: R rows of one U-Net call, n images of one order, Q D of the condition, c h w of the latents.
"""

import inspect
from typing import Any

import torch
from torch import Tensor

from kosmosg.diffusion.schedulers import make_scheduler
from serving.engine.messages import DenoisingProgress, Embeddings, Event, Finished, ImageArray, ImageRequest, Preview


class ActiveRequest:
    """One order on its way: its own scheduler state, random numbers and latents."""

    def __init__(self, order: ImageRequest, scheduler: Any, shape: tuple[int, ...], device: torch.device) -> None:
        scheduler.set_timesteps(order.steps)
        self.order = order
        self.scheduler = scheduler
        # On the CPU, so that a seed means the same image on every device.
        self.generators = [torch.Generator().manual_seed(seed) for seed in order.seeds]
        noise = torch.cat([torch.randn((1, *shape), generator=generator) for generator in self.generators])
        # (n, c, h, w), float32 whatever the U-Net computes in
        self.latents: Tensor = noise.to(device) * scheduler.init_noise_sigma
        self.timesteps: Tensor = scheduler.timesteps
        self.step = 0
        self.guided = order.guidance > 1
        self.left = False
        sides: tuple[Embeddings, ...] = (order.negative, order.positive) if self.guided else (order.positive,)
        rows = [torch.tensor(side).expand(len(noise), -1, -1) for side in sides]
        self.condition = torch.cat(rows).to(device)  # (R, Q, D)
        every = self.steps / (order.previews + 1)
        self.preview_at = {round(every * (i + 1)) for i in range(order.previews)} - {0, self.steps}
        # Ancestral schedulers draw noise at each step; the others have no such argument.
        draws = "generator" in inspect.signature(scheduler.step).parameters
        self._extra: dict[str, Any] = {"generator": self.generators} if draws else {}

    @property
    def rows(self) -> int:
        """Rows of a U-Net call that this order fills."""
        return len(self.condition)

    @property
    def steps(self) -> int:
        """U-Net calls in all; some schedulers make more than were asked for."""
        return len(self.timesteps)

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (R, c, h, w), timesteps (R,) and condition (R, Q, D) of the next U-Net call."""
        timestep = self.timesteps[self.step]
        scaled = self.scheduler.scale_model_input(self.latents, timestep)
        repeats = self.rows // len(scaled)
        return torch.cat([scaled] * repeats), timestep.expand(self.rows), self.condition

    def advance(self, prediction: Tensor, wants_clean: bool) -> Tensor | None:
        """One step on from the U-Net's rows; also the present guess of the clean latents, if wanted."""
        if self.guided:
            negative, positive = prediction.chunk(2)
            prediction = negative + self.order.guidance * (positive - negative)
        timestep = self.timesteps[self.step]
        before = self.latents
        output = self.scheduler.step(prediction, timestep, before, **self._extra)
        self.latents = output.prev_sample
        self.step += 1
        if not wants_clean:
            return None
        told = getattr(output, "pred_original_sample", None)
        return self._clean(prediction, before, int(timestep)) if told is None else told

    def _clean(self, prediction: Tensor, latents: Tensor, timestep: int) -> Tensor:
        """x0 by the forward process x_t = sqrt(a) x0 + sqrt(1 - a) eps.

        Samplers that do not tell x0 themselves (DPM-Solver, UniPC, PNDM) all work on such variance-preserving latents.
        """
        kept: Tensor = self.scheduler.alphas_cumprod[timestep].to(latents) ** 0.5
        noise: Tensor = (1 - kept**2) ** 0.5
        if self.scheduler.config.prediction_type == "v_prediction":
            return kept * latents - noise * prediction
        return (latents - noise * prediction) / kept


class StepEngine:
    """Runs orders through one U-Net and VAE.

    `admit` and `leave` may be called from another thread than `tick`; `tick` itself is called by one thread.

    Args:
        unet: `UNet2DConditionModel`; it fixes device and precision of the denoising.
        vae: `AutoencoderKL`.
        scheduler: the decoder's own, and with its betas and prediction type the pattern of all others; never stepped.
        max_rows: rows of one U-Net call, at the U-Net's native size; larger images count by their area. A guided
            image takes two.
    """

    def __init__(self, unet: Any, vae: Any, scheduler: Any, max_rows: int) -> None:
        self.unet = unet
        self.vae = vae
        self.scheduler = scheduler
        self.max_rows = max_rows
        self.factor = int(2 ** (len(self.vae.config.block_out_channels) - 1))  # pixels per latent, each way
        self._active: list[ActiveRequest] = []  # in order of admission

    @property
    def native_size(self) -> int:
        """Pixels per side that the U-Net was trained at."""
        return int(self.unet.config.sample_size) * self.factor

    @property
    def size_step(self) -> int:
        """Width and height are multiples of this many pixels, or the U-Net's halvings would not meet again."""
        return int(self.factor * 2 ** (len(self.unet.config.block_out_channels) - 1))

    @property
    def active(self) -> int:
        """Orders under way."""
        return sum(not sampling.left for sampling in self._active)

    def admit(self, order: ImageRequest) -> ActiveRequest:
        """Take an order in; it takes part from the next tick on. Raises ConfigError for an unknown scheduler."""
        own = self.scheduler
        config = own.config
        scheduler = make_scheduler(order.scheduler, config) if order.scheduler else type(own).from_config(config)
        shape = (int(self.unet.config.in_channels), order.height // self.factor, order.width // self.factor)
        sampling = ActiveRequest(order, scheduler, shape, self.unet.device)
        self._active.append(sampling)
        return sampling

    def leave(self, sampling: ActiveRequest) -> None:
        """Forget an order; its rows are free at the next tick."""
        sampling.left = True

    @torch.inference_mode()
    def tick(self) -> list[tuple[ActiveRequest, Event]]:
        """One U-Net call for as many orders as fit, first come first served; what came of it for each."""
        chosen = self._chosen()
        if not chosen:
            return []
        latents, timesteps, condition = (torch.cat(part) for part in zip(*(s.inputs() for s in chosen), strict=True))
        dtype, device = self.unet.dtype, self.unet.device
        prediction = self.unet(
            latents.to(dtype), timesteps.to(device), encoder_hidden_states=condition.to(dtype), return_dict=False
        )[0]
        told: list[tuple[ActiveRequest, Event]] = []
        rows = [sampling.rows for sampling in chosen]
        for sampling, part in zip(chosen, prediction.float().split(rows), strict=True):
            clean = sampling.advance(part, wants_clean=sampling.step + 1 in sampling.preview_at)
            told.append((sampling, DenoisingProgress(sampling.step, sampling.steps)))
            if clean is not None:
                told.append((sampling, Preview(sampling.step, sampling.steps, self._pictures(clean))))
            if sampling.step == sampling.steps:
                told.append((sampling, Finished(self._pictures(sampling.latents), sampling.rows * sampling.steps)))
                sampling.left = True
        return told

    def _chosen(self) -> list[ActiveRequest]:
        """The oldest order, and those after it that have its latent shape and still fit."""
        self._active = [sampling for sampling in self._active if not sampling.left]
        chosen: list[ActiveRequest] = []
        room = float(self.max_rows)
        for sampling in self._active:
            shape = sampling.latents.shape[1:]
            cost = sampling.rows * shape[1] * shape[2] / int(self.unet.config.sample_size) ** 2
            # The oldest always goes, even when it is larger than the batch: otherwise it would wait for ever.
            if not chosen or (cost <= room and shape == chosen[0].latents.shape[1:]):
                chosen.append(sampling)
                room -= cost
        return chosen

    def _pictures(self, latents: Tensor) -> ImageArray:
        scaled = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        decoded: Tensor = self.vae.decode(scaled, return_dict=False)[0]
        pictures = (decoded.float() / 2 + 0.5).clamp(0, 1) * 255
        array: ImageArray = pictures.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return array
