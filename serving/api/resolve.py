"""Checks a request against the operator's limits and fills in defaults, before anything is computed."""

import re
import secrets

from pydantic import BaseModel

from kosmosg.prompt import Prompt, PromptLimits
from serving.api.errors import ApiError
from serving.api.schema import Control, GenerateRequest, PromptRequest
from serving.config import ServingConfig
from serving.engine.messages import DecoderInfo


class ResolvedRequest(BaseModel):
    """A generate request with every value filled in and within the limits."""

    height: int
    width: int
    steps: int
    guidance: float
    scheduler: str | None
    seeds: tuple[int, ...]
    previews: int


def read_prompt(request: PromptRequest, config: ServingConfig) -> Prompt:
    """The prompt of a request; images are decoded here. Raises PromptError, ImageError, ApiError."""
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
    """Fill in defaults and check limits. Raises ApiError with the field, the value and the limit."""
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
    _within("n", request.n, limits.n, "images")
    _within("steps", steps, limits.steps, "steps")
    _within("guidance", guidance, limits.guidance, "")
    _within("partial_images", previews, limits.partial_images, "partial images")
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
        raise ApiError(422, "above_limit", f"{param}: {asked} requested, the limit is {limit}", param)


def _names(control: Control | None) -> list[str]:
    return [control.name] if control else []
