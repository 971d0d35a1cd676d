"""Image generation in one process, shared by every command and job that generates images.

Requests and parameters, the pipeline that they run on, and the noise, so that equal seeds give equal images.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from kosmosg.prompt import Prompt

Noise = Literal["picture", "batch"]
SEED_STRIDE = 100_003
"""Seeds of two runs do not overlap before this many images."""


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt to generate images for. Its images are PIL images, or files that all workers see and that only they
    open: a `Prompt` owns copies of its images, which for thousands of large photos would fill the memory.
    """

    text: str
    images: tuple[Image.Image | Path, ...] = ()
    negative: str | None = None
    """What the images should not show; None is the null prompt."""
    seed: int | None = None
    """Seed of the first image; each further image adds one. None derives a seed from the image's number."""

    @classmethod
    def of(cls, prompt: Prompt) -> "GenerationRequest":
        """The request for an existing `Prompt`."""
        return cls(prompt.text, prompt.images)


@dataclass(frozen=True)
class SamplingParams:
    """How images are generated; equal values and equal weights give equal images."""

    steps: int | None
    """Denoising steps; None takes the decoder's default."""
    guidance: float | None
    """Classifier-free guidance scale; None takes the decoder's default."""
    scheduler: str | None = None
    """A name of `kosmosg.diffusion.schedulers`; None keeps the one that the decoder was saved with."""
    size: int | tuple[int, int] | None = None
    """Pixels per side, or width and height; None takes the size that the decoder was trained on."""
    images_per_prompt: int = 1
    batch: int = 16
    """B, prompts generated together."""
    noise: Noise = "picture"
    """`picture`: each image has noise of its own, the same in any batch. `batch`: the noise of a whole batch comes
    from one generator that is reseeded for each batch, so all batches share their noise, as published."""
    seed: int = 0

    def shape(self) -> dict[str, Any]:
        """The parameters that an image depends on; the batch size only if the noise depends on it."""
        values = asdict(self)
        if self.noise == "picture":
            del values["batch"]
        return values


def open_pipeline(model: Path, decoder: str, scheduler: str | None = None) -> Any:
    """The `KosmosGPipeline` of an export with this decoder, or of a pipeline folder with its own, on a GPU if there is
    one."""
    import torch

    from kosmosg.diffusion.schedulers import make_scheduler
    from kosmosg.pipeline import KosmosGPipeline

    own = (model / "model_index.json").is_file()
    pipe = KosmosGPipeline.from_pretrained(model, decoder=None if own else decoder)
    if scheduler is not None:
        pipe.scheduler = make_scheduler(scheduler, pipe.scheduler.config)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate_batch(
    pipe: Any,
    prompts: Mapping[int, tuple[Prompt, GenerationRequest]],
    sampling: SamplingParams,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> list[Image.Image]:
    """Images of some prompts, by their numbers in the run; those of one prompt together. Raises PromptError.

    `on_step` is told how many denoising steps are done, of how many.
    """
    requests = [request for _, request in prompts.values()]
    negatives = [request.negative or "" for request in requests]
    width, height = sampling.size if isinstance(sampling.size, tuple) else (sampling.size, sampling.size)

    def after_step(stock: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        on_step(step + 1, stock.num_timesteps)
        return tensors

    output = pipe(
        [prompt for prompt, _ in prompts.values()],
        negative_prompt=negatives if any(negatives) else None,
        height=height,
        width=width,
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance,
        num_images_per_prompt=sampling.images_per_prompt,
        callback_on_step_end=after_step,
        **initial_noise(pipe, list(prompts), requests, sampling),
    )
    return list(output.images)


def initial_noise(
    pipe: Any, numbers: Sequence[int], requests: Sequence[GenerationRequest], sampling: SamplingParams
) -> dict[str, Any]:
    """The pipeline argument that fixes the noise of these prompts, by their numbers in the run."""
    import torch
    from einops import rearrange

    n = sampling.images_per_prompt
    if sampling.noise == "picture":
        starts = [
            sampling.seed * SEED_STRIDE + number * n if request.seed is None else request.seed
            for number, request in zip(numbers, requests, strict=True)
        ]
        seeds = [start + place for start in starts for place in range(n)]
        return {"generator": [torch.Generator().manual_seed(seed) for seed in seeds]}
    unet, count = pipe.unet, len(numbers)
    size = sampling.size if isinstance(sampling.size, tuple) else (sampling.size, sampling.size)
    width, height = (side // pipe.decoder.vae_scale_factor if side else unet.config.sample_size for side in size)
    generator = torch.Generator().manual_seed(sampling.seed)
    noise = torch.randn((n * count, unet.config.in_channels, height, width), generator=generator)
    # The original lays a batch out as p0, p1, .., p0, p1, ..; our pipeline keeps a prompt's images together.
    latents = rearrange(noise, "(n b) c h w -> (b n) c h w", b=count)
    return {"latents": latents.to(pipe.device, unet.dtype)}
