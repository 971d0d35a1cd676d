"""What goes in and out of the endpoint, as it stands in /openapi.json.

The shapes are fixed here, the limits are the operator's: `check` holds a request against them, before anything is
computed, and names both values.
"""

import re
import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kosmosg.prompt import Prompt, PromptLimits
from serving.api.errors import ApiError
from serving.config import ServingConfig
from serving.engine.messages import DecoderInfo

MAX_SEED = 2**63 - 1


class Body(BaseModel):
    """Base of what is received: unknown fields are refused, so that a typing error never passes as a default."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


class TextPart(Body):
    """Words of the prompt."""

    type: Literal["text"]
    text: str
    """What to draw. A literal `<i>` is refused: here images are parts of their own."""


class ImageUrl(Body):
    """An image inside the request."""

    url: str
    """`data:image/png;base64,...`; also JPEG, WebP, GIF (one frame), BMP, TIFF, AVIF. Addresses are not fetched."""
    detail: str | None = None
    """Ignored; chat clients send it."""


class ImagePart(Body):
    """An image at its place between the words."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Lora(Body):
    """An adapter for the U-Net."""

    name: str
    scale: float = 1.0


class Control(Body):
    """A ControlNet and its image."""

    name: str
    image: ImageUrl
    scale: float = 1.0


class PromptRequest(Body):
    """A prompt of ordered text and images."""

    parts: list[Part] = Field(min_length=1, max_length=256)
    """Text and images in order."""
    negative: str | None = None
    """What not to draw; null is the null prompt that training used."""
    model: str | None = None
    """A name from /v1/models; null is the one that is served."""


class GenerateRequest(PromptRequest):
    """`POST /v1/generate`."""

    n: int = Field(default=1, ge=1)
    """Images; image i has seed + i."""
    size: str | None = Field(default=None, examples=["512x512"])
    """WIDTHxHEIGHT in pixels; null is the decoder's own."""
    steps: int | None = Field(default=None, ge=1)
    """Denoising steps."""
    guidance: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Classifier-free guidance; at 1 or below it is off."""
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED - 1024)
    """The same seed draws the same image, whatever else the server does; null draws one and tells it."""
    scheduler: str | None = Field(default=None, examples=["dpms"])
    """Sampler, by the names in /v1/models; null is the decoder's own."""
    lora: list[Lora] = Field(default_factory=list)
    """Adapters, by the names in /v1/models."""
    control: Control | None = None
    """A ControlNet, by the names in /v1/models."""
    format: Literal["png", "jpeg", "webp"] = "png"
    """How images are encoded."""
    stream: bool = False
    """Answer with server-sent events: progress, partial_image, completed, error."""
    partial_images: int = Field(default=2, ge=0)
    """Unfinished images in a stream."""


class ConditionRequest(PromptRequest):
    """`POST /v1/condition`."""

    encoding_format: Literal["base64", "float"] = "base64"
    """Little-endian float32 in base64, or nested lists."""


class ImageData(BaseModel):
    """One image."""

    b64_json: str
    seed: int


class Usage(BaseModel):
    """What was spent."""

    prompt_tokens: int
    """Tokens of the prompt, image slots included."""
    input_images: int
    output_images: int
    unet_rows: int
    """U-Net evaluations; guidance doubles them."""
    cached: bool
    """The prompt was known, and was not encoded again."""


class Timings(BaseModel):
    """Seconds."""

    encode: float
    draw: float
    """Waiting for a place included."""
    total: float


class GenerateResponse(BaseModel):
    """The images."""

    id: str
    created: int
    """Unix time."""
    model: str
    data: list[ImageData]
    usage: Usage
    timings: Timings


class Embedding(BaseModel):
    """One of the two halves of a condition."""

    shape: list[int]
    dtype: Literal["float32"] = "float32"
    data: str | list[list[float]]


class ConditionResponse(BaseModel):
    """`prompt_embeds` and `negative_prompt_embeds` for any Stable Diffusion 1.5 U-Net, without the batch dimension."""

    id: str
    model: str
    positive: Embedding
    negative: Embedding
    usage: dict[str, Any]


class ModelCard(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "kosmosg"
    size: str
    """WIDTHxHEIGHT that it was trained at."""
    size_step: int
    """Widths and heights are multiples of this."""
    condition: list[int]
    """Queries and width of a condition."""
    schedulers: list[str]
    loras: list[str] = Field(default_factory=list)
    controls: list[str] = Field(default_factory=list)
    defaults: dict[str, Any]
    limits: dict[str, Any]


class ModelList(BaseModel):
    """`GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorDetail(BaseModel):
    """What went wrong."""

    type: str
    code: str
    message: str
    param: str | None
    """The field that is meant, as a dotted path."""


class ErrorResponse(BaseModel):
    """Every answer that is not a success."""

    error: ErrorDetail


STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}

REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "The body is not JSON."},
    404: {"model": ErrorResponse, "description": "No such model, LoRA or ControlNet."},
    413: {"model": ErrorResponse, "description": "The request is larger than `limits.body_bytes`."},
    422: {"model": ErrorResponse, "description": "A field or an image that cannot be, or is beyond a limit."},
    429: {"model": ErrorResponse, "description": "Too many requests wait; see Retry-After."},
    503: {"model": ErrorResponse, "description": "Starting, or a replica was lost; see Retry-After."},
}


class ResolvedRequest(BaseModel):
    """A generate request with everything settled and within the limits."""

    height: int
    width: int
    steps: int
    guidance: float
    scheduler: str | None
    seeds: tuple[int, ...]
    previews: int


def read_prompt(request: PromptRequest, config: ServingConfig) -> Prompt:
    """The prompt of a request; the images are decoded here. Raises PromptError, ImageError, ApiError."""
    limits = config.limits
    if request.model not in (None, config.name):
        raise ApiError(
            404, "model_not_found", f"there is no model {request.model!r}, this server has {config.name!r}", "model"
        )
    _within("negative", len(request.negative or ""), limits.characters, "characters")
    return Prompt.from_messages(
        [part.model_dump() for part in request.parts],
        PromptLimits(
            images=limits.images,
            pixels=limits.image_pixels,
            encoded_bytes=limits.image_bytes,
            characters=limits.characters,
        ),
    )


def resolve_request(request: GenerateRequest, config: ServingConfig, about: DecoderInfo) -> ResolvedRequest:
    """Defaults filled in, limits held. Raises ApiError with the field, the value and the limit."""
    limits, defaults = config.limits, config.defaults
    for name, given in (("lora", [lora.name for lora in request.lora]), ("control", _names(request.control))):
        if given:
            raise ApiError(404, f"{name}_not_found", f"{name}: {given[0]!r} is not loaded; this server has none", name)
    scheduler = request.scheduler or defaults.scheduler
    if scheduler is not None and scheduler not in about.schedulers:
        known = ", ".join(about.schedulers)
        raise ApiError(422, "unknown_scheduler", f"scheduler: {scheduler!r} is not one of {known}", "scheduler")
    steps = request.steps or defaults.steps
    guidance = defaults.guidance if request.guidance is None else request.guidance
    previews = request.partial_images if request.stream else 0
    _within("n", request.n, limits.n, "pictures")
    _within("steps", steps, limits.steps, "steps")
    _within("guidance", guidance, limits.guidance, "")
    _within("partial_images", previews, limits.partial_images, "unfinished images")
    width, height = _size(request.size, about)
    _within("size", width * height, limits.pixels, f"pixels ({width}x{height})")
    seed = secrets.randbelow(2**31) if request.seed is None else request.seed
    return ResolvedRequest(
        height=height,
        width=width,
        steps=steps,
        guidance=guidance,
        scheduler=scheduler,
        seeds=tuple(seed + i for i in range(request.n)),
        previews=previews,
    )


def _size(size: str | None, about: DecoderInfo) -> tuple[int, int]:
    if size is None:
        return about.native_size, about.native_size
    sides = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
    if sides is None:
        raise ApiError(422, "bad_size", f"size: {size!r} is not WIDTHxHEIGHT in pixels, such as 512x512", "size")
    width, height = int(sides[1]), int(sides[2])
    for side in (width, height):
        if not side or side % about.size_step:
            raise ApiError(
                422, "bad_size", f"size: {side} of {size} is not a multiple of {about.size_step} pixels", "size"
            )
    return width, height


def _within(param: str, value: float, limit: float, unit: str) -> None:
    if value > limit:
        asked = " ".join(filter(None, (str(value), unit)))
        raise ApiError(422, "above_limit", f"{param}: {asked} asked for, the limit is {limit}", param)


def _names(control: Control | None) -> list[str]:
    return [control.name] if control else []
