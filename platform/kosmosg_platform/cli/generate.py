"""`kosmosg generate`: one prompt in, image files out; runs in this process or through an endpoint."""

import re
import secrets
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from kosmosg.errors import ConfigError
from kosmosg.prompt import Prompt
from kosmosg_platform.run_paths import choose_model

FORMATS = {".png", ".jpg", ".jpeg", ".webp"}


@dataclass(frozen=True)
class GenerateOptions:
    """What was requested; None leaves a setting to the model or the endpoint."""

    text: str  # `<i>` is the place of an image
    images: tuple[Path, ...] = ()
    n: int = 1
    steps: int | None = None
    guidance: float | None = None
    negative: str | None = None
    size: str | None = None  # WIDTHxHEIGHT in pixels
    seed: int | None = None  # image i has seed + i

    @property
    def prompt(self) -> Prompt:
        """Raises PromptError, ImageError."""
        with warnings.catch_warnings():
            # Pillow would warn about images that the prompt's own limit rejects with a clear error.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Prompt(self.text, images=self.images)


@dataclass(frozen=True)
class Drawn:
    """Images, the seed of the first, and the seconds spent generating, without loading the model."""

    pictures: list[Image.Image]
    seed: int
    seconds: float


def generate_remote(wish: GenerateOptions, url: str) -> Drawn:
    """Through an endpoint. Raises ConfigError if it does not respond, EndpointError if it rejects the request."""
    from kosmosg_platform.inference.client import Client

    prompt = wish.prompt
    began = time.perf_counter()
    with Client(url) as client:
        generated = client.generate(
            prompt,
            n=wish.n,
            steps=wish.steps,
            guidance=wish.guidance,
            negative=wish.negative,
            size=wish.size,
            seed=wish.seed,
        )
    return Drawn(generated.images, generated.seeds[0], time.perf_counter() - began)


def generate_local(wish: GenerateOptions, model: str | None, decoder: str) -> Drawn:
    """With the library, in this process; the same seed gives the same images as through an endpoint."""
    prompt = wish.prompt  # fail on an invalid prompt before the model is loaded
    width, height = _size(wish.size)
    chosen = choose_model(Path("runs"), decoder, model)
    if model is None:
        print(f"kosmosg: generating with {chosen}", file=sys.stderr)
    folder = chosen.folder

    from kosmosg_platform.console import quiet_libraries

    quiet_libraries()
    import torch
    from transformers.utils.logging import disable_progress_bar

    from kosmosg.pipeline import KosmosGPipeline

    disable_progress_bar()  # no bar for loading weights; denoising keeps its own, on a terminal
    # A pipeline folder has a decoder of its own.
    own = (folder / "model_index.json").is_file()
    pipeline = KosmosGPipeline.from_pretrained(folder, decoder=None if own else decoder)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.set_progress_bar_config(disable=not sys.stderr.isatty())
    seed = secrets.randbelow(2**31) if wish.seed is None else wish.seed
    began = time.perf_counter()
    output = pipeline(
        prompt,
        height=height,
        width=width,
        num_inference_steps=wish.steps,
        guidance_scale=wish.guidance,
        negative_prompt=wish.negative,
        num_images_per_prompt=wish.n,
        generator=[torch.Generator().manual_seed(seed + i) for i in range(wish.n)],
        return_dict=False,
    )
    return Drawn(list(output[0]), seed, time.perf_counter() - began)


def write(pictures: Sequence[Image.Image], output: Path) -> list[Path]:
    """`out.png`, or `out-1.png`, `out-2.png`, ... for several; the suffix decides the format. Raises ConfigError."""
    check_output(output)
    paths = [output]
    if len(pictures) > 1:
        paths = [output.with_name(f"{output.stem}-{i}{output.suffix}") for i in range(1, len(pictures) + 1)]
    output.parent.mkdir(parents=True, exist_ok=True)
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    return paths


def check_output(output: Path) -> None:
    """Raises ConfigError if images cannot be written to that path."""
    if output.suffix.lower() not in FORMATS:
        raise ConfigError(f"--output: {output} should end in one of {', '.join(sorted(FORMATS))}")
    if output.is_dir():
        raise ConfigError(f"--output: {output} is a folder; name a file in it")


def _size(size: str | None) -> tuple[int | None, int | None]:
    if size is None:
        return None, None
    sides = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
    if sides is None:
        raise ConfigError(f"--size: {size!r} is not WIDTHxHEIGHT in pixels, such as 512x512")
    return int(sides[1]), int(sides[2])
