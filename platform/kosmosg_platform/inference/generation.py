"""Batch generation: one implementation for evaluations, prompt files and ablations. No image is generated twice.

Prompts are split into batches that Ray actors generate. Every image is written atomically to its own file, in a folder
named after a digest of everything that affects it, including the contents of the model. An interrupted run therefore
resumes with the first batch that lacks an image, and a model retrained in place gets new images. All workers of the
cluster must see the folder, like everything under `output`.

    <folder>/<key>/prompts.jsonl        the requests
    <folder>/<key>/references/*.png     reference images that were not files, each once
    <folder>/<key>/000/000012.png       image 12: with n images per prompt, image 12 % n of prompt 12 // n
    <folder>/<key>/refused/000003       why prompt 3 cannot be generated, with `tolerate`
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from kosmosg.checkpoint.digest import model_digest
from kosmosg.errors import ImageError, KosmosGError
from kosmosg.hub import decoder_folder
from kosmosg.node_cache import file_digest
from kosmosg.prompt import Prompt, read_image
from kosmosg_platform.cluster.session import ScaleConfig
from kosmosg_platform.config import digest
from kosmosg_platform.inference.actors import run_blocks
from kosmosg_platform.inference.sampling import GenerationRequest, SamplingParams, generate_batch, open_pipeline
from kosmosg_platform.storage import write_text

DECODER_PARTS = ("unet", "vae", "scheduler")


@dataclass(frozen=True)
class GeneratedImages:
    """Files of all images, prompt by prompt, those of one prompt together."""

    paths: list[Path]
    refused: Mapping[int, str]
    """Number of a prompt -> why it has no images."""
    fresh: int
    """Images that were generated in this call; the others existed already."""


def generate_images(
    title: str,
    model: Path,
    decoder: str,
    requests: Sequence[GenerationRequest],
    sampling: SamplingParams,
    scale: ScaleConfig,
    folder: Path,
    tolerate: bool = False,
) -> GeneratedImages:
    """Generate what is missing. Ray must be up when something is.

    `title` is used in progress messages. With `tolerate`, a prompt that cannot be generated is rejected with its reason
    and the others continue; without it, the first one raises. Raises CheckpointError if `model` is neither an export
    nor a pipeline folder, PromptError and ImageError.
    """
    store = folder / image_key(model, decoder, requests, sampling)
    n = sampling.images_per_prompt
    paths = [image_path(store, number) for number in range(len(requests) * n)]
    known = refused_prompts(store)

    def complete(prompt: int) -> bool:
        return prompt in known or all(path.is_file() for path in paths[prompt * n : (prompt + 1) * n])

    missing = [
        str(block)
        for block in range(math.ceil(len(requests) / sampling.batch))
        if not all(map(complete, range(block * sampling.batch, min((block + 1) * sampling.batch, len(requests)))))
    ]
    fresh = 0
    if missing:
        save_requests(store, requests)
        task = GenerationTask(str(model), decoder, sampling, str(store), tolerate)
        fresh = run_blocks(title, "images", ImageGenerator, task, missing, scale)
    return GeneratedImages(paths, refused_prompts(store), fresh)


@dataclass(frozen=True)
class GenerationTask:
    """What an actor needs to know: model, sampling parameters, where the requests are and where the images go."""

    model: str
    decoder: str
    sampling: SamplingParams
    store: str
    tolerate: bool = False


class ImageGenerator:
    """Holds one model and generates batches of prompts into files."""

    def __init__(self, task: GenerationTask) -> None:
        import torch

        self.sampling, self.store, self.tolerate = task.sampling, Path(task.store), task.tolerate
        self.lines = (self.store / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
        if not torch.cuda.is_available():
            torch.set_num_threads(1)
        self.pipe = open_pipeline(Path(task.model), task.decoder, self.sampling.scheduler)

    def __call__(self, name: str) -> int:
        """Generate one batch, by its number; returns how many images were generated. A batch that already exists,
        written by a worker that was lost later, is skipped."""
        first = int(name) * self.sampling.batch
        numbers = range(first, min(first + self.sampling.batch, len(self.lines)))
        if all(path.is_file() for number in numbers for path in self._paths(number)):
            return 0
        read: dict[int, tuple[Prompt, GenerationRequest]] = {}
        for number in numbers:
            try:
                read[number] = read_request(self.store, self.lines[number])
            except KosmosGError as error:
                self._refuse(number, error)
        return self._generate(read)

    def _generate(self, read: Mapping[int, tuple[Prompt, GenerationRequest]]) -> int:
        """Generate prompts by their numbers; returns how many images were written."""
        if not read:
            return 0
        try:
            images = generate_batch(self.pipe, read, self.sampling)
        except KosmosGError as error:
            # One bad prompt, for example one that is too long, fails the batch; generated alone, it fails only itself.
            if len(read) > 1 and self.tolerate and self.sampling.noise == "picture":
                return sum(self._generate({number: read[number]}) for number in read)
            for number in read:
                self._refuse(number, error)
            return 0
        paths = [path for number in read for path in self._paths(number)]
        for path, image in zip(paths, images, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            image.save(partial, format="PNG")
            partial.replace(path)
        return len(paths)

    def _paths(self, number: int) -> list[Path]:
        n = self.sampling.images_per_prompt
        return [image_path(self.store, number * n + place) for place in range(n)]

    def _refuse(self, number: int, error: KosmosGError) -> None:
        if not self.tolerate:
            raise error
        write_text(self.store / "refused" / f"{number:06}", str(error))


def image_key(model: Path, decoder: str, requests: Sequence[GenerationRequest], sampling: SamplingParams) -> str:
    """Digest that identifies the images by the contents of model, decoder and reference images. Raises CheckpointError,
    ImageError."""
    folder = Path(decoder_folder(decoder))
    return digest(
        {
            "model": model_digest(model),
            "requests": [
                [request.text, request.negative, request.seed, *map(_image_digest, request.images)]
                for request in requests
            ],
            "decoder": model_digest(folder, DECODER_PARTS) if folder.is_dir() else decoder,
            "sampling": sampling.shape(),
        }
    )[:16]


def image_path(store: Path, number: int) -> Path:
    """Path of an image; at most a thousand per folder, because larger folders are slow to list."""
    return store / f"{number // 1000:03}" / f"{number:06}.png"


def refused_prompts(store: Path) -> dict[int, str]:
    """Numbers of the prompts that could not be generated, and why."""
    files = sorted((store / "refused").glob("[0-9]*")) if store.is_dir() else []
    return {int(path.name): path.read_text(encoding="utf-8") for path in files}


def save_requests(store: Path, requests: Sequence[GenerationRequest]) -> None:
    """Write the requests to a file for the actors; `read_request` is the inverse."""
    (store / "references").mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps(
            {
                "text": request.text,
                "images": [_save_image(store, image) for image in request.images],
                "negative": request.negative,
                "seed": request.seed,
            }
        )
        for request in requests
    ]
    write_text(store / "prompts.jsonl", "\n".join(lines) + "\n")


def read_request(store: Path, line: str) -> tuple[Prompt, GenerationRequest]:
    """One line of prompts.jsonl. Raises PromptError, ImageError."""
    values = json.loads(line)
    prompt = Prompt(values["text"], images=[_reference(store / name) for name in values["images"]])
    return prompt, GenerationRequest(prompt.text, prompt.images, values["negative"], values["seed"])


def open_image(path: Path) -> Image.Image:
    """An image written by `generate_images`, in RGB, with its file closed."""
    with Image.open(path) as image:
        return image.convert("RGB")


@lru_cache(maxsize=8)
def _reference(path: Path) -> Image.Image:
    return read_image(path, name=f"the reference image {path}")


def _save_image(store: Path, image: Image.Image | Path) -> str:
    """Where workers find it: a file's own path, or one in the store."""
    if isinstance(image, Path):
        return str(image.absolute())
    name = f"references/{_image_digest(image)[:24]}.png"
    if not (store / name).is_file():
        partial = (store / name).with_suffix(".partial")
        image.save(partial, format="PNG", compress_level=1)
        partial.replace(store / name)
    return name


def _image_digest(image: Image.Image | Path) -> str:
    """Of a file its content, read once; of an image its mode, size and pixels."""
    if isinstance(image, Image.Image):
        return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()
    if not image.is_file():
        raise ImageError(f"there is no reference image {image}; check the path")
    return file_digest(image)
