"""Requests and responses of the endpoint, as published in /openapi.json.

This module defines the fields; the operator sets the limits, which `serving.api.resolve` checks.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_SEED = 2**63 - 1


class Body(BaseModel):
    """Base of request bodies: unknown fields are rejected, so that a misspelt name does not silently mean a default."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


class TextPart(Body):
    """Text in the prompt."""

    type: Literal["text"]
    text: str
    """The text. A literal `<i>` is rejected: in this API, images are separate parts."""


class ImageUrl(Body):
    """An image embedded in the request."""

    url: str
    """`data:image/png;base64,...`; also JPEG, WebP, GIF (one frame), BMP, TIFF, AVIF. URLs are not fetched."""
    detail: str | None = None
    """Ignored; chat clients send it."""


class ImagePart(Body):
    """An image in the prompt."""

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
    """What the images should not show; null is the null prompt that training used."""
    model: str | None = None
    """A name from /v1/models; null means the served model."""


class GenerateRequest(PromptRequest):
    """`POST /v1/generate`."""

    n: int = Field(default=1, ge=1)
    """Number of images; image i uses seed + i."""
    size: str | None = Field(default=None, examples=["512x512"])
    """WIDTHxHEIGHT in pixels; null means the decoder's native size."""
    steps: int | None = Field(default=None, ge=1)
    """Denoising steps."""
    guidance: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Classifier-free guidance scale; 1 or less disables guidance."""
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED - 1024)
    """The same seed gives the same image, whatever else the server is doing; null picks a random one."""
    scheduler: str | None = Field(default=None, examples=["dpms"])
    """Scheduler, by a name from /v1/models; null means the decoder's own."""
    lora: list[Lora] = Field(default_factory=list)
    """Adapters, by names from /v1/models."""
    control: Control | None = None
    """A ControlNet, by a name from /v1/models."""
    format: Literal["png", "jpeg", "webp"] = "png"
    """Image format of the response."""
    stream: bool = False
    """Respond with server-sent events: progress, partial_image, completed, error."""
    partial_images: int = Field(default=2, ge=0)
    """Partial images in a stream."""


class ConditionRequest(PromptRequest):
    """`POST /v1/condition`."""

    encoding_format: Literal["base64", "float"] = "base64"
    """Little-endian float32 in base64, or nested lists."""


class ImageData(BaseModel):
    """One image."""

    b64_json: str
    seed: int


class Usage(BaseModel):
    """What the request used."""

    prompt_tokens: int
    """Tokens of the prompt, including image slots."""
    input_images: int
    output_images: int
    unet_rows: int
    """U-Net evaluations; guidance doubles the number."""
    cached: bool
    """Whether the prompt was cached and not encoded again."""


class Timings(BaseModel):
    """Seconds."""

    encode: float
    draw: float
    """Includes waiting for a slot."""
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
    """The served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "kosmosg"
    size: str
    """The WIDTHxHEIGHT that it was trained on."""
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
    """The field concerned, as a dotted path."""


class ErrorResponse(BaseModel):
    """Every response that is not a success."""

    error: ErrorDetail


STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}

REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "The body is not JSON."},
    404: {"model": ErrorResponse, "description": "No such model, LoRA or ControlNet."},
    413: {"model": ErrorResponse, "description": "The request is larger than `limits.body_bytes`."},
    422: {"model": ErrorResponse, "description": "A field or an image is invalid or exceeds a limit."},
    429: {"model": ErrorResponse, "description": "Too many requests are waiting; see Retry-After."},
    503: {"model": ErrorResponse, "description": "Starting, or a replica was lost; see Retry-After."},
}
