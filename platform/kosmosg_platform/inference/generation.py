"""Drawing the images of an evaluation: many prompts, several Ray actors, nothing drawn twice.

Prompts are cut into blocks that are drawn together. Every image is a file of its own that appears whole or not at
all, and its folder is named by everything that shapes it, so an evaluation that was stopped goes on with the first
block that lacks an image, and one whose settings changed begins in another folder. The folder must be one that all
workers of the cluster see, like everything under `output`.

    <folder>/<key>/prompts.jsonl        text and reference images of each prompt
    <folder>/<key>/references/*.png     reference images that are no files of their own, each once
    <folder>/<key>/000/000012.png       image 12: with n images a prompt, image 12 % n of prompt 12 // n
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from kosmosg.checkpoint.export import read_config
from kosmosg.errors import CheckpointError, ImageError
from kosmosg.prompt import Prompt, read_image
from kosmosg_platform.cluster.session import ScaleConfig
from kosmosg_platform.config import digest
from kosmosg_platform.inference.actors import run_blocks
from kosmosg_platform.storage import sha256, write_text

Noise = Literal["picture", "batch"]


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt that is to be drawn. Images are images, or files that all workers see and that are opened only there:
    a prompt owns a copy of its images, which for thousands of prompts with large photos would fill the memory.
    """

    text: str
    images: tuple[Image.Image | Path, ...] = ()

    @classmethod
    def of(cls, prompt: Prompt) -> "GenerationRequest":
        return cls(prompt.text, prompt.images)


@dataclass(frozen=True)
class SamplingParams:
    """How images are drawn; equal values and equal weights give equal images."""

    steps: int
    """Denoising steps."""
    guidance: float
    """Classifier-free guidance."""
    solver: str | None = None
    """Name of a sampler (`kosmosg.diffusion.schedulers`); None keeps the one that the decoder was saved with."""
    size: int | None = None
    """Pixels a side; None takes the size that the decoder was trained on."""
    each: int = 1
    """n, images of each prompt."""
    batch: int = 16
    """B, prompts drawn together."""
    noise: Noise = "picture"
    """`image`: each image has noise of its own, the same in any batch. `batch`: the noise of a whole batch comes
    from one generator that is seeded anew for each batch, so all batches share their noise, as published."""
    seed: int = 0

    def shape(self) -> dict[str, Any]:
        """What of this an image depends on: its batch only where the noise does."""
        values = asdict(self)
        if self.noise == "picture":
            del values["batch"]
        return values


def generate_images(
    name: str,
    model: Path,
    decoder: str,
    orders: Sequence[GenerationRequest],
    sampling: SamplingParams,
    scale: ScaleConfig,
    folder: Path,
) -> list[Path]:
    """Files of all images, prompt by prompt, those of one prompt together; draws what is missing.

    `name` is what progress calls the model. Ray must be up when something is missing. Raises CheckpointError when
    `model` is neither an export nor a pipeline folder.
    """
    store = folder / image_key(model, decoder, orders, sampling)
    paths = [image_path(store, number) for number in range(len(orders) * sampling.each)]
    span = sampling.batch * sampling.each
    missing = [
        str(block)
        for block in range(math.ceil(len(orders) / sampling.batch))
        if not all(path.is_file() for path in paths[block * span : (block + 1) * span])
    ]
    if missing:
        save_requests(store, orders)
        run_blocks(
            f"evaluate: {name}",
            "pictures",
            ImageGenerator,
            GenerationJob(str(model), decoder, sampling, str(store)),
            missing,
            scale,
        )
    return paths


@dataclass(frozen=True)
class GenerationJob:
    """What an actor is told: which model draws how, and where the prompts lie and the images go."""

    model: str
    decoder: str
    sampling: SamplingParams
    store: str


class ImageGenerator:
    """Holds one model and draws blocks of prompts into files."""

    def __init__(self, painting: GenerationJob) -> None:
        import torch

        from kosmosg.diffusion.schedulers import make_scheduler
        from kosmosg.pipeline import KosmosGPipeline

        self.sampling, self.store = painting.sampling, Path(painting.store)
        self.prompts = (self.store / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
        cuda = torch.cuda.is_available()
        if not cuda:
            torch.set_num_threads(1)
        own = (Path(painting.model) / "model_index.json").is_file()  # a pipeline folder has a decoder of its own
        # Scores are of every image, as in the published runs: none is replaced by a safety checker.
        self.pipe = KosmosGPipeline.from_pretrained(
            painting.model, decoder=None if own else painting.decoder, safety_checker=None
        )
        if self.sampling.solver is not None:
            self.pipe.scheduler = make_scheduler(self.sampling.solver, self.pipe.scheduler.config)
        self.pipe.to("cuda" if cuda else "cpu")
        self.pipe.set_progress_bar_config(disable=True)

    def __call__(self, name: str) -> int:
        """One block, by its number; gives how many images were drawn. A block that is there already, from a worker
        that was lost later, is left alone."""
        block = int(name)
        start = block * self.sampling.batch
        prompts = [read_request(self.store, line) for line in self.prompts[start : start + self.sampling.batch]]
        first = start * self.sampling.each
        paths = [image_path(self.store, first + place) for place in range(len(prompts) * self.sampling.each)]
        if all(path.is_file() for path in paths):
            return 0
        drawn: Any = self.pipe(
            prompts,
            height=self.sampling.size,
            width=self.sampling.size,
            num_inference_steps=self.sampling.steps,
            guidance_scale=self.sampling.guidance,
            num_images_per_prompt=self.sampling.each,
            **self._noise(first, len(prompts)),
        )
        for path, picture in zip(paths, drawn.images, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            picture.save(partial, format="PNG")
            partial.replace(path)
        return len(paths)

    def _noise(self, first: int, count: int) -> dict[str, Any]:
        """The pipeline's argument that fixes the noise of `count` prompts whose first image is number `first`."""
        import torch
        from einops import rearrange

        n = self.sampling.each
        if self.sampling.noise == "picture":
            seeds = [self.sampling.seed * 100_003 + first + place for place in range(count * n)]
            return {"generator": [torch.Generator().manual_seed(seed) for seed in seeds]}
        unet = self.pipe.unet
        trained = unet.config.sample_size
        side = self.sampling.size // self.pipe.decoder.vae_scale_factor if self.sampling.size else trained
        generator = torch.Generator().manual_seed(self.sampling.seed)
        drawn = torch.randn((n * count, unet.config.in_channels, side, side), generator=generator)
        # The original lays a batch out as p0, p1, .., p0, p1, ..; our pipeline keeps a prompt's images together.
        latents = rearrange(drawn, "(n b) c h w -> (b n) c h w", b=count)
        return {"latents": latents.to(self.pipe.device, unet.dtype)}


def image_key(model: Path, decoder: str, orders: Sequence[GenerationRequest], sampling: SamplingParams) -> str:
    """Names what is drawn: weights, prompts, decoder and sampling. Raises CheckpointError, ImageError."""
    known: dict[Path, str] = {}
    return digest(
        {
            "weights": sha256(model_weights(model)),
            "prompts": [[order.text, *(_image_sha256(image, known) for image in order.images)] for order in orders],
            "decoder": decoder,
            "sampling": sampling.shape(),
        }
    )[:16]


def model_weights(model: Path) -> list[Path]:
    """The files of weights of an export or pipeline folder. Raises CheckpointError when it is neither."""
    if not (model / "model_index.json").is_file():
        read_config(model)
    weights = sorted(model.rglob("*.safetensors"))
    if not weights:
        raise CheckpointError(f"{model} holds no *.safetensors; give the export folder of a finished run")
    return weights


def image_path(store: Path, number: int) -> Path:
    """A thousand images a folder: file systems and people dislike more."""
    return store / f"{number // 1000:03}" / f"{number:06}.png"


def save_requests(store: Path, orders: Sequence[GenerationRequest]) -> None:
    """Orders as a file for the actors; `read_request` is the inverse."""
    (store / "references").mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"text": order.text, "images": [_save_image(store, image) for image in order.images]})
        for order in orders
    ]
    write_text(store / "prompts.jsonl", "\n".join(lines) + "\n")


def read_request(store: Path, line: str) -> Prompt:
    """One line of prompts.jsonl as a prompt. Raises PromptError, ImageError."""
    values = json.loads(line)
    return Prompt(values["text"], images=[_reference(store / name) for name in values["images"]])


def open_image(path: Path) -> Image.Image:
    """An image that `generate_images` left, RGB, its file closed."""
    with Image.open(path) as image:
        return image.convert("RGB")


@lru_cache(maxsize=8)
def _reference(path: Path) -> Image.Image:
    return read_image(path, name=f"the reference image {path}")


def _save_image(store: Path, image: Image.Image | Path) -> str:
    """Where workers find it: a file's own path, or one in the store."""
    if isinstance(image, Path):
        return str(image.absolute())
    name = f"references/{_image_sha256(image, {})[:24]}.png"
    if not (store / name).is_file():
        partial = (store / name).with_suffix(".partial")
        image.save(partial, format="PNG", compress_level=1)
        partial.replace(store / name)
    return name


def _image_sha256(image: Image.Image | Path, known: dict[Path, str]) -> str:
    """Of a file its content, read once; of an image its mode, size and pixels."""
    if isinstance(image, Image.Image):
        return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()
    if image not in known:
        if not image.is_file():
            raise ImageError(f"there is no reference image {image}; check the path")
        known[image] = hashlib.sha256(image.read_bytes()).hexdigest()
    return known[image]
