"""The step engine: images at different denoising steps share one U-Net batch.

One `tick` is one U-Net call for images of one size. An admitted request joins at the next call for its size; one that
leaves frees its rows before the next call. Every request keeps its own scheduler, so an image does not depend on the
others in its batch (beyond rounding). Sizes take turns: between two calls for one size, each other size in progress
gets at most one. The engine handles conditions and images; it knows nothing about prompts, HTTP or Ray.

Letters: R rows of one U-Net call, n images of one request, Q D of the condition, c h w of the latents.
"""

import inspect
import threading
from typing import Any

import torch
from torch import Tensor

from kosmosg.diffusion.schedulers import make_scheduler
from serving.engine.messages import DenoisingProgress, Embeddings, Event, Finished, ImageArray, ImageRequest, Preview


class ActiveRequest:
    """One request in progress: its own scheduler state, random numbers and latents."""

    def __init__(self, request: ImageRequest, scheduler: Any, shape: tuple[int, ...], device: torch.device) -> None:
        scheduler.set_timesteps(request.steps)
        self.request = request
        self.scheduler = scheduler
        # On the CPU, so that a seed gives the same image on every device.
        self.generators = [torch.Generator().manual_seed(seed) for seed in request.seeds]
        noise = torch.cat([torch.randn((1, *shape), generator=generator) for generator in self.generators])
        # (n, c, h, w), float32 whatever the U-Net computes in
        self.latents: Tensor = noise.to(device) * scheduler.init_noise_sigma
        self.timesteps: Tensor = scheduler.timesteps
        self.step = 0
        self.guided = request.guidance > 1
        self.left = False
        sides: tuple[Embeddings, ...] = (request.negative, request.positive) if self.guided else (request.positive,)
        rows = [torch.tensor(side).expand(len(noise), -1, -1) for side in sides]
        self.condition = torch.cat(rows).to(device)  # (R, Q, D)
        every = self.steps / (request.previews + 1)
        self.preview_at = {round(every * (i + 1)) for i in range(request.previews)} - {0, self.steps}
        # Ancestral schedulers add noise at each step; others have no such argument.
        ancestral = "generator" in inspect.signature(scheduler.step).parameters
        self._extra: dict[str, Any] = {"generator": self.generators} if ancestral else {}

    @property
    def rows(self) -> int:
        """Rows of a U-Net call that this request takes."""
        return len(self.condition)

    @property
    def steps(self) -> int:
        """Total number of U-Net calls; some schedulers make more than the requested number of steps."""
        return len(self.timesteps)

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (R, c, h, w), timesteps (R,) and condition (R, Q, D) of the next U-Net call."""
        timestep = self.timesteps[self.step]
        scaled = self.scheduler.scale_model_input(self.latents, timestep)
        repeats = self.rows // len(scaled)
        return torch.cat([scaled] * repeats), timestep.expand(self.rows), self.condition

    def advance(self, prediction: Tensor, wants_clean: bool) -> Tensor | None:
        """One denoising step from the U-Net's output; also the current estimate of the clean latents, if wanted."""
        if self.guided:
            negative, positive = prediction.chunk(2)
            prediction = negative + self.request.guidance * (positive - negative)
        timestep = self.timesteps[self.step]
        before = self.latents
        output = self.scheduler.step(prediction, timestep, before, **self._extra)
        self.latents = output.prev_sample
        self.step += 1
        if not wants_clean:
            return None
        clean = getattr(output, "pred_original_sample", None)
        return self._clean(prediction, before, int(timestep)) if clean is None else clean

    def _clean(self, prediction: Tensor, latents: Tensor, timestep: int) -> Tensor:
        """x0 by the forward process x_t = sqrt(a) x0 + sqrt(1 - a) eps.

        Schedulers that do not return x0 themselves (DPM-Solver, UniPC, PNDM) all work on variance-preserving latents.
        """
        kept: Tensor = self.scheduler.alphas_cumprod[timestep].to(latents) ** 0.5
        noise: Tensor = (1 - kept**2) ** 0.5
        if self.scheduler.config.prediction_type == "v_prediction":
            return kept * latents - noise * prediction
        return (latents - noise * prediction) / kept


class StepEngine:
    """Runs requests through one U-Net and VAE.

    `admit` and `leave` may be called from any thread, also during a `tick`; only one thread may call `tick`.

    Args:
        unet: `UNet2DConditionModel`; it determines device and precision of the denoising.
        vae: `AutoencoderKL`.
        scheduler: the decoder's own; its betas and prediction type are used for all others. It is never stepped itself.
        max_batch_rows: rows of one U-Net call, at the U-Net's native size; larger images count by their area. A guided
            image takes two.
    """

    def __init__(self, unet: Any, vae: Any, scheduler: Any, max_batch_rows: int) -> None:
        self.unet = unet
        self.vae = vae
        self.scheduler = scheduler
        self.max_batch_rows = max_batch_rows
        self.factor = int(2 ** (len(self.vae.config.block_out_channels) - 1))  # pixels per latent, each way
        self._lock = threading.Lock()  # of the field below
        # Requests by latent shape (c, h, w), in order of admission. The size whose turn is next comes first.
        self._queues: dict[tuple[int, ...], list[ActiveRequest]] = {}

    @property
    def native_size(self) -> int:
        """Pixels per side that the U-Net was trained on."""
        return int(self.unet.config.sample_size) * self.factor

    @property
    def size_step(self) -> int:
        """Width and height must be multiples of this, so that the U-Net's up- and downsampled maps match."""
        return int(self.factor * 2 ** (len(self.unet.config.block_out_channels) - 1))

    @property
    def active(self) -> int:
        """Number of requests in progress."""
        with self._lock:
            return sum(not active.left for queue in self._queues.values() for active in queue)

    def admit(self, request: ImageRequest) -> ActiveRequest:
        """Admit a request; it joins at the next call for its size. Raises ConfigError for an unknown scheduler."""
        own = self.scheduler
        config = own.config
        scheduler = make_scheduler(request.scheduler, config) if request.scheduler else type(own).from_config(config)
        shape = (int(self.unet.config.in_channels), request.height // self.factor, request.width // self.factor)
        admitted = ActiveRequest(request, scheduler, shape, self.unet.device)
        with self._lock:
            self._queues.setdefault(shape, []).append(admitted)
        return admitted

    def leave(self, active: ActiveRequest) -> None:
        """Drop a request; its rows are free at the next tick."""
        active.left = True

    @torch.inference_mode()
    def tick(self) -> list[tuple[ActiveRequest, Event | Exception]]:
        """Make one U-Net call for as many requests of the next size as fit; returns its events.

        A call that fails ends only its own requests: the exception is their last event.
        """
        batch = self._next_batch()
        if not batch:
            return []
        try:
            return self._step(batch)
        except Exception as error:  # noqa: BLE001 - out of memory, say; whoever waits for these images is told
            for active in batch:
                active.left = True
            return [(active, error) for active in batch]

    def _next_batch(self) -> list[ActiveRequest]:
        """The oldest request of the size whose turn it is, and those after it that still fit."""
        with self._lock:
            waiting = {shape: [a for a in queue if not a.left] for shape, queue in self._queues.items()}
            self._queues = {shape: queue for shape, queue in waiting.items() if queue}
            if not self._queues:
                return []
            shape = next(iter(self._queues))
            queue = self._queues.pop(shape)
            self._queues[shape] = queue  # its next turn is after all other sizes
            batch: list[ActiveRequest] = []
            room = float(self.max_batch_rows)
            for active in queue:
                cost = active.rows * shape[1] * shape[2] / int(self.unet.config.sample_size) ** 2
                # The oldest always goes, even if it is larger than the batch: otherwise it would wait forever.
                if not batch or cost <= room:
                    batch.append(active)
                    room -= cost
            return batch

    def _step(self, batch: list[ActiveRequest]) -> list[tuple[ActiveRequest, Event | Exception]]:
        latents, timesteps, condition = (torch.cat(part) for part in zip(*(a.inputs() for a in batch), strict=True))
        dtype, device = self.unet.dtype, self.unet.device
        prediction = self.unet(
            latents.to(dtype), timesteps.to(device), encoder_hidden_states=condition.to(dtype), return_dict=False
        )[0]
        events: list[tuple[ActiveRequest, Event | Exception]] = []
        rows = [active.rows for active in batch]
        for active, part in zip(batch, prediction.float().split(rows), strict=True):
            if active.left:
                continue  # it left during the call; nobody is waiting for it
            clean = active.advance(part, wants_clean=active.step + 1 in active.preview_at)
            events.append((active, DenoisingProgress(active.step, active.steps)))
            if clean is not None:
                events.append((active, Preview(active.step, active.steps, self._images(clean))))
            if active.step == active.steps:
                events.append((active, Finished(self._images(active.latents), active.rows * active.steps)))
                active.left = True
        return events

    def _images(self, latents: Tensor) -> ImageArray:
        scaled = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        decoded: Tensor = self.vae.decode(scaled, return_dict=False)[0]
        pixels = (decoded.float() / 2 + 0.5).clamp(0, 1) * 255
        array: ImageArray = pixels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return array
