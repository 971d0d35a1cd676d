"""All settings of the endpoint: what it serves, on which resources, and what it accepts.

Resolved like a job's settings: these defaults < preset < key=value.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from kosmosg.errors import ConfigError
from kosmosg_platform.cluster.session import ScaleConfig
from kosmosg_platform.config import Section, resolve
from kosmosg_platform.run_paths import ChosenModel, choose_model

PRESETS = Path(__file__).parent / "presets"
DEFAULT_PRESET = "toyworld"

Share = Annotated[float, Field(ge=0)]


class RequestDefaults(Section):
    """Values for the fields that a request omits."""

    steps: int = Field(default=50, ge=1)
    """Denoising steps (the original app's)."""
    guidance: float = Field(default=6.0, ge=0)
    """Classifier-free guidance (the original app's)."""
    scheduler: str | None = None
    """Scheduler, by a name of `kosmosg.diffusion.schedulers`; null means the decoder's own, as in the pipeline."""


class RequestLimits(Section):
    """Limits for one request. Error messages name the limit."""

    n: int = Field(default=4, ge=1)
    """Images."""
    steps: int = Field(default=100, ge=1)
    """Denoising steps."""
    guidance: float = Field(default=30.0, ge=1)
    """Classifier-free guidance."""
    pixels: int = Field(default=768 * 768, ge=1)
    """Width times height of an image."""
    partial_images: int = Field(default=8, ge=0)
    """Partial images in a stream."""
    images: int = Field(default=16, ge=0)
    """Images in a prompt."""
    image_pixels: int = Field(default=50_000_000, ge=1)
    """Pixels of one prompt image, before resizing."""
    image_bytes: int = Field(default=20_000_000, ge=1)
    """Bytes of one encoded prompt image."""
    characters: int = Field(default=8_000, ge=1)
    """Characters of a prompt, and of a negative prompt."""
    body_bytes: int = Field(default=64_000_000, ge=1)
    """Bytes of a request body. Base64 makes images a third larger."""


class EncodingConfig(Section):
    """Prompts to conditions."""

    replicas: int = Field(default=1, ge=1)
    """Replicas, each with its own copy of the model."""
    max_batch_size: int = Field(default=8, ge=1)
    """Maximum number of prompts encoded together."""
    wait_ms: float = Field(default=5.0, ge=0)
    """Milliseconds that a prompt waits for others to join its batch."""
    cache: int = Field(default=256, ge=0)
    """Conditions to cache, by content of the prompt (0.24 MB each at 77 x 768)."""
    queue: int = Field(default=64, ge=1)
    """Requests that may wait; the next is refused with 429."""
    cpus: Share = 0.5
    """CPU cores of a replica."""
    gpus: Share = 0.0
    """GPUs of a replica; a fraction shares one with the decoder."""


class DecodingConfig(Section):
    """Conditions to images."""

    replicas: int = Field(default=1, ge=1)
    """Replicas, each with its own copy of U-Net and VAE."""
    max_batch_rows: int = Field(default=16, ge=2)
    """Maximum rows of one U-Net call at its native size; a guided image takes two."""
    max_concurrent: int = Field(default=16, ge=1)
    """Maximum requests in progress per replica; image sizes take turns, and within one size the oldest go first."""
    queue: int = Field(default=32, ge=1)
    """Requests that may wait; the next is refused with 429."""
    cpus: Share = 1.0
    """CPU cores of a replica."""
    gpus: Share = 0.0
    """GPUs of a replica."""


class ServingConfig(Section):
    """The endpoint. Precedence: these defaults < preset < key=value."""

    model: str | None = None
    """`toyworld:STAGE`, a folder, a URL or a Hub id; null takes the latest finished stage under `output` or its demo,
    or else the model that ships with the decoder."""
    output: Path = Path("runs")
    """Folder in which to look for exports."""
    decoder: str = "toyworld"
    """`toyworld`, or the folder or Hub id of a Stable Diffusion 1.x pipeline."""
    name: str = "kosmosg"
    """Name of the model in requests and responses."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of model, U-Net and VAE; the schedulers always compute in fp32."""
    retry_after: int = Field(default=2, ge=1)
    """Seconds after which a rejected client may try again (Retry-After)."""
    defaults: RequestDefaults = RequestDefaults()
    limits: RequestLimits = RequestLimits()
    encoding: EncodingConfig = EncodingConfig()
    decoding: DecodingConfig = DecodingConfig()
    scale: ScaleConfig = ScaleConfig()

    @property
    def chosen(self) -> ChosenModel:
        """The model to serve. Raises ConfigError or CheckpointError if there is none."""
        return choose_model(self.output, self.decoder, self.model)


def load(preset: str = DEFAULT_PRESET, overrides: Sequence[str] = ()) -> ServingConfig:
    """The resolved and validated configuration. Raises ConfigError."""
    config = resolve(ServingConfig, preset, "serve", overrides, PRESETS)
    if config.defaults.scheduler is not None:
        from kosmosg.diffusion.schedulers import SCHEDULERS  # imports diffusers, which takes seconds

        if config.defaults.scheduler not in SCHEDULERS:
            known = ", ".join(SCHEDULERS)
            raise ConfigError(f"defaults.scheduler: there is no {config.defaults.scheduler!r}; choose one of {known}")
    for key in ("steps", "guidance"):
        default, limit = getattr(config.defaults, key), getattr(config.limits, key)
        if default > limit:
            raise ConfigError(f"defaults.{key}: {default} is above limits.{key}, {limit}; change one of them")
    return config
