"""`kosmosg generate`: one prompt in, image files out; runs in this process or through an endpoint."""

import re
import secrets
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from kosmosg.errors import ConfigError
from kosmosg.prompt import Prompt
from kosmosg_platform.console import echo, quiet_libraries
from kosmosg_platform.progress import Progress
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
class GenerateResult:
    """Images, the seed of the first, and the seconds spent generating, without loading the model."""

    images: list[Image.Image]
    seed: int
    seconds: float


def generate_remote(options: GenerateOptions, url: str) -> GenerateResult:
    """Through an endpoint. Raises ConfigError if it does not respond, EndpointError if it rejects the request."""
    from kosmosg_platform.inference.client import Client

    prompt = options.prompt
    began = time.perf_counter()
    with Client(url) as client:
        generated = client.generate(
            prompt,
            n=options.n,
            steps=options.steps,
            guidance=options.guidance,
            negative=options.negative,
            size=options.size,
            seed=options.seed,
        )
    return GenerateResult(generated.images, generated.seeds[0], time.perf_counter() - began)


def generate_local(options: GenerateOptions, model: str | None, decoder: str) -> GenerateResult:
    """In this process; the same seed gives the same images as through an endpoint. Raises KosmosGError."""
    prompt = options.prompt  # fail on an invalid prompt before the model is loaded
    size = _size(options.size)
    chosen = choose_model(Path("runs"), decoder, model)
    if model is None:
        echo(f"kosmosg: generating with {chosen}")
    quiet_libraries()
    from transformers.utils.logging import disable_progress_bar

    from kosmosg_platform.inference.sampling import GenerationRequest, SamplingParams, generate_batch, open_pipeline

    disable_progress_bar()  # no bar for loading weights
    pipe = open_pipeline(chosen.folder, decoder)
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    request = GenerationRequest(prompt.text, prompt.images, options.negative, seed)
    sampling = SamplingParams(options.steps, options.guidance, size=size, images_per_prompt=options.n)
    with Progress("generate", options.steps or 0, "steps") as shown:
        images = generate_batch(
            pipe, {0: (prompt, request)}, sampling, lambda step, steps: shown.update(step, total=steps)
        )
    return GenerateResult(images, seed, shown.seconds)


def write(images: Sequence[Image.Image], output: Path) -> list[Path]:
    """`out.png`, or `out-1.png`, `out-2.png`, ... for several; the suffix decides the format. Raises ConfigError."""
    check_output(output)
    paths = [output]
    if len(images) > 1:
        paths = [output.with_name(f"{output.stem}-{i}{output.suffix}") for i in range(1, len(images) + 1)]
    output.parent.mkdir(parents=True, exist_ok=True)
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    return paths


def check_output(output: Path) -> None:
    """Raises ConfigError if images cannot be written to that path."""
    if output.suffix.lower() not in FORMATS:
        raise ConfigError(f"--output: {output} should end in one of {', '.join(sorted(FORMATS))}")
    if output.is_dir():
        raise ConfigError(f"--output: {output} is a folder; name a file in it")


def _size(size: str | None) -> tuple[int, int] | None:
    """Width and height in pixels; None leaves them to the decoder."""
    if size is None:
        return None
    sides = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
    if sides is None:
        raise ConfigError(f"--size: {size!r} is not WIDTHxHEIGHT in pixels, such as 512x512")
    return int(sides[1]), int(sides[2])
