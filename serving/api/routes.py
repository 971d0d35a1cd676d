"""The HTTP side: routes, server-sent events, errors. It knows requests and images; it knows nothing of Ray.

What computes stands behind `Backend`; `serving/app.py` puts Ray Serve's deployments there.
"""

import asyncio
import base64
import io
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Protocol

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image

import kosmosg
from kosmosg.prompt import Prompt
from serving.api.errors import ApiError, BodyLimit, install
from serving.api.schema import (
    REFUSALS,
    STREAM,
    ConditionRequest,
    ConditionResponse,
    Embedding,
    GenerateRequest,
    GenerateResponse,
    ImageData,
    ModelCard,
    ModelList,
    ResolvedRequest,
    Timings,
    Usage,
    read_prompt,
    resolve_request,
)
from serving.config import ServingConfig
from serving.engine.messages import (
    DecoderInfo,
    DenoisingProgress,
    Embeddings,
    EncodedPrompt,
    Event,
    Finished,
    ImageArray,
    ImageRequest,
    Preview,
)


class Backend(Protocol):
    """What the routes need. Every method raises ApiError or a KosmosGError for what the client should hear."""

    async def about(self) -> DecoderInfo:
        """What is loaded; 503 as long as it is not."""

    async def missing(self) -> list[str]:
        """Which parts are not ready; empty when all are."""

    async def encode(self, prompt: Prompt, negative: str | None) -> EncodedPrompt:
        """A prompt as a condition; 429 when too many wait."""

    def draw(self, order: ImageRequest) -> AsyncGenerator[Event]:
        """Events of an order, the last of which is `Finished`; closing it early frees its place; 429 when full."""


def http_app(backend: Backend, config: ServingConfig) -> FastAPI:
    """The routes over a backend."""
    app = FastAPI(
        title="Kosmos-G",
        version=kosmosg.__version__,
        description="Images from prompts in which images stand between the words.",
    )
    app.add_middleware(BodyLimit, limit=config.limits.body_bytes)
    install(app)
    started = int(time.time())

    @app.post("/v1/generate", response_model=GenerateResponse, tags=["pictures"], responses=STREAM | REFUSALS)
    async def generate(request: GenerateRequest) -> Response:
        """Draw images from ordered text and images; with `stream` as server-sent events."""
        begun = time.perf_counter()
        wish = resolve_request(request, config, await backend.about())
        # Decoding large images takes long enough to hold up everybody else's events.
        prompt = await asyncio.to_thread(read_prompt, request, config)
        encoded = await backend.encode(prompt, request.negative)
        answer = _Answer(request, config.name, prompt, encoded, wish, begun)
        events = backend.draw(answer.order)
        # The first event means a place in the batch: until then a refusal is still a plain HTTP answer.
        first = await anext(events)
        if request.stream:
            stream = _sse(answer, first, events)
            return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        last = first
        async with aclosing(events):
            async for event in events:
                last = event
        if not isinstance(last, Finished):
            raise ApiError(500, "internal_error", "the decoder ended without an image")
        return JSONResponse((await answer.completed(last)).model_dump())

    @app.post("/v1/condition", tags=["pictures"], responses=REFUSALS)
    async def condition(request: ConditionRequest) -> ConditionResponse:
        """The embeddings that Stable Diffusion 1.5 takes as `prompt_embeds`, for users with a U-Net of their own."""
        await backend.about()
        prompt = await asyncio.to_thread(read_prompt, request, config)
        encoded = await backend.encode(prompt, request.negative)
        return ConditionResponse(
            id=_identifier("cond"),
            model=config.name,
            positive=_embedding(encoded.positive, request.encoding_format),
            negative=_embedding(encoded.negative, request.encoding_format),
            usage={"prompt_tokens": encoded.tokens, "input_images": len(prompt.images), "cached": encoded.cached},
        )

    @app.get("/v1/models", tags=["server"])
    async def models() -> ModelList:
        """The model, what it can do by default, and what a request may ask for."""
        about = await backend.about()
        card = ModelCard(
            id=config.name,
            created=started,
            size=f"{about.native_size}x{about.native_size}",
            size_step=about.size_step,
            condition=[about.queries, about.width],
            schedulers=list(about.schedulers),
            defaults=config.defaults.model_dump(),
            limits=config.limits.model_dump(),
        )
        return ModelList(data=[card])

    @app.get("/healthz", tags=["server"])
    async def healthz() -> dict[str, str]:
        """The process answers. Says nothing about models: see /readyz."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["server"])
    async def readyz() -> dict[str, str]:
        """200 when every part is up and has its weights, 503 before."""
        missing = await backend.missing()
        if missing:
            raise ApiError(503, "starting", f"not ready: {', '.join(missing)}", retry_after=config.retry_after)
        return {"status": "ready"}

    return app


class _Answer:
    """One request on its way to its answer."""

    def __init__(
        self,
        request: GenerateRequest,
        model: str,
        prompt: Prompt,
        encoded: EncodedPrompt,
        wish: ResolvedRequest,
        begun: float,
    ) -> None:
        self.request = request
        self.model = model
        self.prompt = prompt
        self.encoded = encoded
        self.wish = wish
        self.begun = begun
        self.encode_seconds = time.perf_counter() - begun

    @property
    def order(self) -> ImageRequest:
        """What the decoder is asked for."""
        return ImageRequest(
            positive=self.encoded.positive,
            negative=self.encoded.negative,
            seeds=self.wish.seeds,
            height=self.wish.height,
            width=self.wish.width,
            steps=self.wish.steps,
            guidance=self.wish.guidance,
            scheduler=self.wish.scheduler,
            previews=self.wish.previews,
        )

    async def completed(self, event: Finished) -> GenerateResponse:
        """The whole answer."""
        encoded = await self.encoded_pictures(event.pictures)
        total = time.perf_counter() - self.begun
        return GenerateResponse(
            id=_identifier("gen"),
            created=int(time.time()),
            model=self.model,
            data=[ImageData(b64_json=data, seed=seed) for data, seed in zip(encoded, self.wish.seeds, strict=True)],
            usage=Usage(
                prompt_tokens=self.encoded.tokens,
                input_images=len(self.prompt.images),
                output_images=len(encoded),
                unet_rows=event.evaluations,
                cached=self.encoded.cached,
            ),
            timings=Timings(
                encode=round(self.encode_seconds, 4),
                draw=round(total - self.encode_seconds, 4),
                total=round(total, 4),
            ),
        )

    async def encoded_pictures(self, pictures: ImageArray) -> list[str]:
        """Base64 of each image in the format asked for."""
        return await asyncio.to_thread(lambda: [_base64(picture, self.request.format) for picture in pictures])


async def _sse(answer: _Answer, first: Event, events: AsyncGenerator[Event]) -> AsyncIterator[str]:
    """Server-sent events; whatever goes wrong now is an event too, because the status is already sent."""
    try:
        async with aclosing(events):  # a client that goes away frees its place
            yield await _event(answer, first)
            async for event in events:
                yield await _event(answer, event)
    except Exception as error:  # noqa: BLE001 - becomes an answer; `ApiError.of` logs what is a fault of ours
        yield _sse_text("error", ApiError.of(error).body)


async def _event(answer: _Answer, event: Event) -> str:
    if isinstance(event, DenoisingProgress):
        return _sse_text("progress", {"step": event.step, "steps": event.steps})
    if isinstance(event, Preview):
        pictures = await answer.encoded_pictures(event.pictures)
        return "".join(
            _sse_text("partial_image", {"step": event.step, "steps": event.steps, "index": i, "b64_json": data})
            for i, data in enumerate(pictures)
        )
    return _sse_text("completed", (await answer.completed(event)).model_dump())


def _sse_text(event: str, data: dict[str, Any]) -> str:
    return f"event: {event}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"


def _base64(picture: ImageArray, kind: str) -> str:
    buffer = io.BytesIO()
    quality = {} if kind == "png" else {"quality": 92}
    Image.fromarray(picture).save(buffer, format=kind.upper(), **quality)
    return base64.b64encode(buffer.getvalue()).decode()


def _embedding(condition: Embeddings, kind: str) -> Embedding:
    values = condition.astype("<f4")
    data = values.tolist() if kind == "float" else base64.b64encode(values.tobytes()).decode()
    return Embedding(shape=list(values.shape), data=data)


def _identifier(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:20]}"
